"""The text encoder: captions to token-wise features c, a mask of real tokens, and the text query e.

Here: tokenizing and encoding. Not here: loading text encoders (`pretrained/text_encoders.py`), and adding noise to e
(a diffusers scheduler).
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from palindiff.models.clip_projection import ClipProjection

Pooling = Literal["clip", "mean"]  # "clip": end token, then the text projection; "mean": mean over real tokens

CLIP_TEXT_TYPE = "clip_text_model"  # transformers' name for the text encoder of CLIP, OpenAI's and OpenCLIP's alike
_HIGHEST_ID = 2  # a CLIP config with this `eos_token_id` (SD 2.x, older CLIP files) pools at the highest token id
_TOKENIZED_AT_ONCE = 10_000  # captions, of which only lengths are kept
_NOT_IDENTITY = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedCaptions:
    """Features of b captions, on the device where the text encoder ran.

    Shapes: c (b, l, d_c) in the text encoder's dtype; mask (b, l) bool, True for real tokens;
            e (b, d_e) float32, unit length.
    """

    c: Tensor
    mask: Tensor
    e: Tensor


class TextEncoder(nn.Module):
    """A text encoder with its tokenizer and pooling; `model` and `tokenizer` fit a stock Stable Diffusion pipeline.

    It is trained if the weights of `model` require gradients. It stays in eval mode: dropout would draw numbers that a
    resumed run cannot draw again. `projection` is not a registered sub-module: the query stream owns and saves it.

    Source:  c: diffusers `StableDiffusionPipeline.encode_prompt`. e: transformers `CLIPTextModelWithProjection`
             ("clip") or sentence-transformers' mean pooling ("mean"); decisions row 15. Training: DiffDis Table 5.
    Departs: e is normalised, in float32 under any autocast; the projection stays frozen.
    """

    projection: ClipProjection | None

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pooling: Pooling,
        projection: ClipProjection | None = None,  # None for sentence encoders, and for a CLIP folder that has none
        name: str = "text_encoder",  # where it came from, for messages
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.pooling, self.name = model, tokenizer, pooling, name
        self.__dict__["projection"] = projection

    @property
    def d_c(self) -> int:
        """Width of the token-wise features."""
        return int(self.model.config.hidden_size)

    @property
    def d_e(self) -> int:
        """Width of the text query."""
        return self.d_c if self.projection is None else len(self.projection.weight)

    @property
    def max_length(self) -> int:
        """Number of tokens that every caption is padded or cut to, beginning and end included."""
        return int(self.tokenizer.model_max_length)

    @property
    def has_missing_layers(self) -> bool:
        """Whether layers of the projection follow `model`, as in Stable Diffusion 2.x; they run where they are."""
        return self.projection is not None and len(self.projection.layers) > 0

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides an encoding: config, weights, projection, pooling, tokenizer, maximal length.

        Equal after saving and reloading. Reads every weight, so keep the result. A sentence encoder's unused pooler is
        left out, since reloading adds a random one.
        """
        config = {str(k): value for k, value in self.model.config.to_dict().items() if k not in _NOT_IDENTITY}
        digest = hashlib.sha256()
        for part in (self.pooling, config, _tokenizer_identity(self.tokenizer)):
            digest.update(json.dumps(part, sort_keys=True).encode())
        weights = sorted(self.model.state_dict().items())
        if self.pooling == "mean":
            weights = [(name, tensor) for name, tensor in weights if not name.startswith("pooler.")]
        if self.projection is not None:
            weights += [
                (f"projection.{name}", tensor) for name, tensor in sorted(self.projection.state_dict().items())
            ]
        for name, tensor in weights:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, but for what whole layers look at before they checkpoint their activations."""
        super().train(False)
        for layer in self.model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = mode  # its own alone: what drops out are its sub-modules
        return self

    def forward(self, ids: Tensor, mask: Tensor) -> EncodedCaptions:
        """Encode captions as `tokenize` returns them; no value of a tensor is read, so a GPU never has to wait.

        Shapes: ids (b, l) int64; mask (b, l) bool, True for real tokens -> c (b, l, d_c), mask (b, l), e (b, d_e).
        """
        device = self.model.device
        attention_mask = mask.long().to(device) if _uses_attention_mask(self.model) else None
        output = self.model(
            ids.to(device), attention_mask=attention_mask, output_hidden_states=self.has_missing_layers
        )
        c = output[0]  # (b, l, d_c)
        mask = mask.to(c.device)  # an offloaded model runs on another device than its weights are on
        if self.projection is None:
            pooled = _masked_mean(c, mask)
        else:
            is_whole = not self.has_missing_layers
            at_end = output.pooler_output if is_whole else self._at_end(output.hidden_states[-1], ids)
            pooled = F.linear(at_end, self.projection.weight.to(at_end))  # (b, d_c) -> (b, d_e)
        with torch.autocast(c.device.type, enabled=False):
            e = F.normalize(pooled.float(), dim=-1)
        return EncodedCaptions(c.to(self.model.dtype), mask, e)

    def encode(self, captions: Sequence[str], warn_of_cuts: bool = True) -> EncodedCaptions:
        """Tokenize and encode captions; the empty caption is the unconditional one. Gradients are the caller's choice.

        Shapes: b captions -> c (b, l, d_c), mask (b, l), e (b, d_e).
        Raises: as `tokenize`.
        """
        return self(*self.tokenize(captions, warn_of_cuts))

    def tokenize(self, captions: Sequence[str], warn_of_cuts: bool = True) -> tuple[Tensor, Tensor]:
        """Tokenize captions, padded to the maximal length; longer ones are cut, with one warning for the batch.

        Shapes: b captions -> ids (b, l) int64, mask (b, l) bool, on the CPU.
        Raises: TypeError, ValueError if `captions` is not a list of strings, or as `check` and `check_tokens`.
        """
        self.check()
        ids, mask = tokenize_captions(captions, self.tokenizer, warn_of_cuts)
        self.check_tokens(ids, mask)
        return torch.tensor(ids), torch.tensor(mask, dtype=torch.bool)

    def check(self) -> None:
        """Refuse parts that do not fit one another; "clip" without a projection above all (decisions row 22).

        Raises: ValueError.
        """
        if self.max_length > num_positions(self.model):
            raise ValueError(
                f"`tokenizer.model_max_length` is {self.max_length} in `TextEncoder`. "
                f"Expected at most {num_positions(self.model)}, the text encoder's positions. Set it on the tokenizer."
            )
        if self.pooling not in _CHECKS:
            raise ValueError(
                f"`pooling` is {self.pooling!r} in `TextEncoder`. Expected 'clip' or 'mean'. Pass one of them."
            )
        _CHECKS[self.pooling](self.model, self.projection)

    def check_tokens(self, ids: Sequence[Sequence[int]], mask: Sequence[Sequence[int]]) -> None:
        """Refuse captions without a token to pool; without an end token CLIP silently pools another place.

        Raises: ValueError.
        """
        if self.pooling == "mean":
            if not all(any(row) for row in mask):
                raise ValueError(
                    "A caption became no token at all in `TextEncoder`. Expected a tokenizer that marks beginning and "
                    "end, so that an empty caption can be embedded. Use the tokenizer saved with the text encoder."
                )
            return
        end_id = _end_id(self.model)
        pooled = {max(row) if end_id == _HIGHEST_ID else end_id if end_id in row else row[0] for row in ids}
        if pooled - {self.tokenizer.eos_token_id}:
            raise ValueError(
                f"The token that CLIP pools is not the tokenizer's end token {self.tokenizer.eos_token_id} in "
                f"`TextEncoder` (`eos_token_id` of the model is {end_id}). Expected the tokenizer that belongs to the "
                "text encoder. Set `eos_token_id` of the model and of its config to the tokenizer's where tokens were "
                "added."
            )

    def _at_end(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """What CLIP pools where its last layers are missing in `model`: (b, l, d_c), (b, l) -> (b, d_c).

        Padding follows the end token, which therefore never attends to it.
        """
        assert self.projection is not None, "only a projection has missing layers"
        hidden = self.model.final_layer_norm(self.projection(hidden))  # type: ignore[operator]
        end_id = _end_id(self.model)
        places = ids.argmax(dim=1) if end_id == _HIGHEST_ID else (ids == end_id).int().argmax(dim=1)  # (b, l) -> (b,)
        return hidden[torch.arange(len(hidden), device=hidden.device), places.to(hidden.device)]

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        """Move the projection along with the model."""
        if self.projection is not None:
            self.projection._apply(fn)
        return super()._apply(fn, recurse)


def tokenize_captions(
    captions: Sequence[str], tokenizer: PreTrainedTokenizerBase, warn: bool = True
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokenize captions without a model: b rows of l ids, and of l marks that are 1 for real tokens.

    warn: report captions that are cut.

    Raises: TypeError, ValueError if `captions` is not a list of strings.
    """
    _check_captions(captions)
    texts, longest = _with_every_vector(list(captions), tokenizer), tokenizer.model_max_length
    tokens = tokenizer(texts, padding="max_length", max_length=longest, truncation=True)
    if warn:
        # only captions without padding can be too long
        _report_cuts(
            [text for text, row in zip(texts, tokens.attention_mask, strict=True) if all(row)], len(texts), tokenizer
        )
    return tokens.input_ids, tokens.attention_mask


def warn_of_cuts(captions: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Report captions that are longer than the text encoder reads, of a whole data set with one warning."""
    _report_cuts(_with_every_vector(list(captions), tokenizer), len(captions), tokenizer)


def num_positions(model: PreTrainedModel) -> int:
    """Return how many tokens a model has positions for; RoBERTa and MPNet start counting after their padding id."""
    num_places: int = model.config.max_position_embeddings
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return num_places - int(module.padding_idx) - 1
    return num_places


def _masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens, of which `check_tokens` requires one in every row."""
    with torch.autocast(features.device.type, enabled=False):
        weight = mask[..., None].float()  # (b, l) -> (b, l, 1)
        return (features.float() * weight).sum(dim=1) / weight.sum(dim=1)  # (b, l, d_c) -> (b, d_c)


def _end_id(model: PreTrainedModel) -> int:
    return int(getattr(model, "eos_token_id", model.config.eos_token_id))  # CLIP reads its config only once


def _uses_attention_mask(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config, "use_attention_mask", False))


def _with_every_vector(captions: list[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Spell out textual inversions of several vectors ("<cat>" -> "<cat> <cat>_1"), as stock pipelines do."""
    added = tokenizer.added_tokens_encoder
    if not any(f"{token}_1" in added for token in added):
        return captions
    converted: list[str] = TextualInversionLoaderMixin().maybe_convert_prompt(captions, tokenizer)
    return converted


def _report_cuts(texts: list[str], num_captions: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tokenize without truncation, and count."""
    longest, cuts = tokenizer.model_max_length, []
    for start in range(0, len(texts), _TOKENIZED_AT_ONCE):
        ids = tokenizer(texts[start : start + _TOKENIZED_AT_ONCE], verbose=False).input_ids
        cuts += [len(of_one) - longest for of_one in ids if len(of_one) > longest]
    if cuts:
        _logger.warning(
            f"{len(cuts):,} of {num_captions:,} captions are longer than the text encoder's {longest} tokens; "
            f"{sum(cuts):,} tokens were cut."
        )


def _tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> list[object]:
    """The tokenizer's rules; its truncation and padding only repeat the last call."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    sides = (tokenizer.padding_side, tokenizer.truncation_side)
    return [rules, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.model_max_length, *sides]


def _check_captions(captions: Sequence[str]) -> None:
    if isinstance(captions, str) or not isinstance(captions, Sequence):
        raise TypeError(
            f"`captions` is a `{type(captions).__name__}`. Expected a list of captions. "
            "Pass `[caption]` for a single one."
        )
    if not captions:
        raise ValueError("`captions` is empty. Expected one or more. Pass `['']` for the empty caption.")
    for place, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise TypeError(
                f"`captions[{place}]` is a `{type(caption).__name__}`. Expected a str. "
                "Pass '' for an image without a caption."
            )


def _check_clip(model: PreTrainedModel, projection: ClipProjection | None) -> None:
    if model.config.model_type != CLIP_TEXT_TYPE or hasattr(model, "text_projection"):
        raise ValueError(
            f"`model` is a `{type(model).__name__}` and `pooling` is 'clip' in `TextEncoder`. Expected a "
            "`CLIPTextModel`. Pass the `text_model` of a CLIP, or `pooling='mean'` for a sentence encoder."
        )
    if projection is None:
        raise ValueError(
            "`projection` is None and `pooling` is 'clip' in `TextEncoder`. Expected CLIP's text projection: a "
            "Stable Diffusion folder has none, and the CLIP folder it was made from is needed. Pass that folder "
            "(openai/clip-vit-large-patch14 for Stable Diffusion 1.x)."
        )
    if projection.weight.shape[1] != model.config.hidden_size:
        raise ValueError(
            f"`projection.weight` has shape {tuple(projection.weight.shape)} in `TextEncoder`. Expected (d_e, "
            f"{model.config.hidden_size}): one column for each channel of the text encoder. Use the projection of the "
            "CLIP that the text encoder was taken from."
        )


def _check_sentence_encoder(model: PreTrainedModel, projection: ClipProjection | None) -> None:
    if projection is not None:
        raise ValueError(
            "A `projection` is given and `pooling` is 'mean' in `TextEncoder`. Expected None: a sentence encoder has "
            "no projection. Remove it."
        )
    if not _uses_attention_mask(model):
        raise ValueError(
            "`model.config.use_attention_mask` is not set in `TextEncoder`. Expected True for a sentence "
            "encoder, or padding would change every embedding. Set it, as `load_text_encoder` does."
        )


_CHECKS = {"clip": _check_clip, "mean": _check_sentence_encoder}
