"""Captions as the network reads them: token-wise features c, which tokens are real, and the text query e.

Here: captions to tokens, and one forward of a text encoder that gives all three. Not here: what a tower is and where it
comes from (`caption_encoder.py`, whose names are passed on), noising e (a diffusers scheduler).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor
from transformers import BatchEncoding, CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase

from palindiff.models.clip_tail import ClipTail
from palindiff.pretrained.text_encoders import CLIP_TEXT_TYPE, Pooling, TextEncoder, load_text_tower, num_positions

__all__ = ["EncodedCaptions", "Pooling", "TextEncoder", "encode_captions", "load_text_tower"]

_HIGHEST_ID = 2  # a CLIP config with this `eos_token_id` (SD 2.x, older CLIP files) pools at the highest token id

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedCaptions:
    """What a text encoder tells of b captions, on the device where it ran.

    Shapes: c (b, l, d_c) in the tower's dtype; mask (b, l) bool, True for real tokens;
            e (b, d_e) float32, unit length.
    """

    c: Tensor
    mask: Tensor
    e: Tensor


def encode_captions(captions: Sequence[str], tower: TextEncoder) -> EncodedCaptions:
    """Encode captions in one forward: c as stock Stable Diffusion computes it, and e as the tower was trained for.

    The tower's `tail` holds CLIP layers that its encoder lacks: they make e, and c never sees them.
    An empty caption is the unconditional one. A caption over `tokenizer.model_max_length` tokens is cut, with one
    warning for the batch. Gradients and train or eval mode are the caller's choice.

    Source:  c: diffusers `StableDiffusionPipeline.encode_prompt`. e: transformers `CLIPTextModelWithProjection`
             ("clip") or sentence-transformers' mean pooling ("mean"); decisions row 15.
    Shapes:  b captions -> c (b, l, d_c), mask (b, l), e (b, d_e).
    Raises:  TypeError, ValueError if the captions are no captions, or the tower's parts do not fit one another;
             "clip" without projection above all (decisions row 22).
    Departs: e is normalised, in float32 under any autocast.
    """
    check_tower(tower)
    tokens = tokenize_captions(captions, tower.tokenizer)
    return encode_tokens(tokens.input_ids, tokens.attention_mask.bool(), tower)


def encode_tokens(ids: Tensor, mask: Tensor, tower: TextEncoder) -> EncodedCaptions:
    """Encode captions that are tokens already; whether the parts fit one another, `check_tower` tells.

    Source:  as `encode_captions`.
    Shapes:  ids (b, l) int64; mask (b, l) bool, True for real tokens -> c (b, l, d_c), mask (b, l), e (b, d_e).
    Raises:  ValueError if a row has no token to pool.
    Departs: as `encode_captions`.
    """
    _check_tokens(ids, mask, tower)
    text_encoder, projection, tail = tower.text_encoder, tower.projection, tower.tail
    device = text_encoder.device
    attention_mask = mask.long().to(device) if _uses_attention_mask(text_encoder) else None
    output = text_encoder(ids.to(device), attention_mask=attention_mask, output_hidden_states=tail is not None)
    c = output[0]  # (b, l, d_c)
    if c.ndim != 3:
        raise ValueError(
            f"`text_encoder` is a `{type(text_encoder).__name__}` whose first output has shape {tuple(c.shape)} in "
            "`encode_captions`. Expected (b, l, d_c): token-wise features. "
            "Pass its `text_model` and the weight of its `text_projection`."
        )
    mask = mask.to(c.device)  # (b, l); an offloaded tower runs elsewhere than it lies
    if projection is not None:
        at_end = (
            output.pooler_output if tail is None else _end_behind(tail, output.hidden_states[-1], ids, text_encoder)
        )
        pooled = F.linear(at_end, projection.to(at_end))  # (b, d_c) -> (b, d_e)
    else:
        pooled = _masked_mean(c, mask)
    with torch.autocast(c.device.type, enabled=False):
        e = F.normalize(pooled.float(), dim=-1)
    return EncodedCaptions(c.to(text_encoder.dtype), mask, e)


def tokenize_captions(captions: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> BatchEncoding:
    """Cut captions into tokens, padded to the maximal length; a longer one is cut, with one warning for the batch.

    Shapes: b captions -> `input_ids` and `attention_mask`, each (b, l) int64 on the CPU.
    Raises: TypeError, ValueError if the captions are no captions.
    """
    _check_captions(captions)
    texts, longest = _with_every_vector(list(captions), tokenizer), tokenizer.model_max_length
    tokens = tokenizer(texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
    _warn_of_cuts(texts, tokens.attention_mask.bool(), tokenizer)
    return tokens


def _with_every_vector(captions: list[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Spell out textual inversions of several vectors ("<cat>" -> "<cat> <cat>_1"), as stock pipelines do."""
    added = tokenizer.added_tokens_encoder
    if not any(f"{token}_1" in added for token in added):
        return captions
    converted: list[str] = TextualInversionLoaderMixin().maybe_convert_prompt(captions, tokenizer)
    return converted


def _masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens; `_check_tokens` has seen at least one in every row."""
    with torch.autocast(features.device.type, enabled=False):
        weight = mask[..., None].float()  # (b, l) -> (b, l, 1)
        return (features.float() * weight).sum(dim=1) / weight.sum(dim=1)  # (b, l, d_c) -> (b, d_c)


def _end_behind(tail: ClipTail, hidden: Tensor, ids: Tensor, text_encoder: PreTrainedModel) -> Tensor:
    """What CLIP pools where its last layers come behind the tower: (b, l, d_c) before the final LayerNorm -> (b, d_c).

    Padding stands behind the end token, which therefore never sees it.
    """
    behind = tail(hidden.to(next(tail.parameters()).dtype)).to(hidden.dtype)  # the query stream's type may be another
    hidden = cast("CLIPTextModel", text_encoder).final_layer_norm(behind)
    places = _end_places(ids, text_encoder).to(hidden.device)
    return hidden[torch.arange(len(hidden), device=hidden.device), places]  # (b, l, d_c) -> (b, d_c)


def _end_places(ids: Tensor, text_encoder: PreTrainedModel) -> Tensor:
    """Where CLIP pools: its end token, or the highest token id where the config is an older one. (b, l) -> (b,)."""
    end_id = _end_id(text_encoder)
    return ids.argmax(dim=1) if end_id == _HIGHEST_ID else (ids == end_id).int().argmax(dim=1)


def _end_id(text_encoder: PreTrainedModel) -> int:
    end_id: int = getattr(text_encoder, "eos_token_id", text_encoder.config.eos_token_id)  # CLIP reads its config once
    return end_id


def _uses_attention_mask(text_encoder: PreTrainedModel) -> bool:
    return bool(getattr(text_encoder.config, "use_attention_mask", False))


def _warn_of_cuts(texts: list[str], mask: Tensor, tokenizer: PreTrainedTokenizerBase) -> None:
    """Count again, without truncation, only the captions that fill every place."""
    full = [text for text, is_full in zip(texts, mask.all(dim=1).tolist(), strict=True) if is_full]
    if not full:
        return
    lengths = [len(ids) for ids in tokenizer(full, verbose=False).input_ids]
    cuts = [length - mask.shape[1] for length in lengths if length > mask.shape[1]]
    if cuts:
        _logger.warning(
            "%d of %d captions are longer than the text encoder's %d tokens; %d tokens were cut.",
            len(cuts), len(texts), mask.shape[1], sum(cuts),
        )  # fmt: skip


def _check_captions(captions: Sequence[str]) -> None:
    if isinstance(captions, str) or not isinstance(captions, Sequence):
        raise TypeError(
            f"`captions` is a `{type(captions).__name__}` in `encode_captions`. Expected a list of captions. "
            "Pass `[caption]` for a single one."
        )
    if not captions:
        raise ValueError(
            "`captions` is empty in `encode_captions`. Expected one or more. Pass `['']` for the empty caption."
        )
    for place, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise TypeError(
                f"`captions[{place}]` is a `{type(caption).__name__}` in `encode_captions`. Expected a str. "
                "Pass '' for an image without a caption."
            )


def check_tower(tower: TextEncoder) -> None:
    """Refuse parts that do not fit one another, as far as can be told before a forward.

    Raises: ValueError.
    """
    text_encoder, longest = tower.text_encoder, tower.tokenizer.model_max_length
    if longest > num_positions(text_encoder):
        raise ValueError(
            f"`tokenizer.model_max_length` is {longest} in `encode_captions`. "
            f"Expected at most {num_positions(text_encoder)}, the tower's positions. Set it on the tokenizer."
        )
    if tower.pooling == "clip":
        _check_clip(text_encoder, tower.projection)
    elif tower.pooling == "mean":
        _check_sentence_encoder(text_encoder, tower.projection)
    else:
        raise ValueError(f"`pooling` is {tower.pooling!r} in `encode_captions`. Expected 'clip' or 'mean'.")


def _check_clip(text_encoder: PreTrainedModel, projection: Tensor | None) -> None:
    if text_encoder.config.model_type != CLIP_TEXT_TYPE:
        raise ValueError(
            f"`text_encoder` is a `{text_encoder.config.model_type}` tower and `pooling` is 'clip' in "
            "`encode_captions`. Expected a `CLIPTextModel`. Pass `pooling='mean'` for a sentence encoder."
        )
    if projection is None:
        raise ValueError(
            "`projection` is None and `pooling` is 'clip' in `encode_captions`. Expected CLIP's text projection: a "
            "Stable Diffusion folder has none, and the CLIP folder it was made from is needed. Name that folder "
            "(openai/clip-vit-large-patch14 for Stable Diffusion 1.x)."
        )
    hidden_size = text_encoder.config.hidden_size
    if projection.ndim != 2 or projection.shape[1] != hidden_size:
        raise ValueError(
            f"`projection` has shape {tuple(projection.shape)} in `encode_captions`. Expected (d_e, {hidden_size}): "
            "one column for each channel of the tower. Take it from the CLIP folder this tower was made from."
        )


def _check_sentence_encoder(text_encoder: PreTrainedModel, projection: Tensor | None) -> None:
    if projection is not None:
        raise ValueError(
            f"`projection` has shape {tuple(projection.shape)} and `pooling` is 'mean' in `encode_captions`. "
            "Expected None: a sentence encoder has no projection."
        )
    if not _uses_attention_mask(text_encoder):
        raise ValueError(
            "`text_encoder.config.use_attention_mask` is not set in `encode_captions`. Expected True for a sentence "
            "encoder, or padding would change every embedding. Set it, as `load_text_tower` does."
        )


def _check_tokens(ids: Tensor, mask: Tensor, tower: TextEncoder) -> None:
    """Looks at values: without an end token CLIP silently pools another place."""
    text_encoder, tokenizer = tower.text_encoder, tower.tokenizer
    if tower.pooling == "mean":
        if not mask.any(dim=1).all():
            raise ValueError(
                "A caption became no token at all in `encode_captions`. Expected a tokenizer that marks beginning and "
                "end, so that an empty caption has an embedding too. Use the tokenizer saved beside the tower."
            )
        return
    if not (ids.gather(1, _end_places(ids, text_encoder)[:, None]) == tokenizer.eos_token_id).all():
        raise ValueError(
            f"The place where CLIP pools does not hold the tokenizer's end token {tokenizer.eos_token_id} in "
            f"`encode_captions` (`text_encoder.eos_token_id` is {_end_id(text_encoder)}). Expected the tokenizer that "
            "belongs to the tower. Where tokens were added, set that attribute and "
            "`text_encoder.config.eos_token_id` to its own."
        )
