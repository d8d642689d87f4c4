"""A text encoder's shape, from its config alone: what can be told of a tower whose weights are not here.

Here: a tower with weights of no meaning, its widths and the length of a caption. Not here: towers that encode
(`caption_encoder.py`).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedModel,
)

from palindiff.models.clip_tail import ClipTail
from palindiff.pretrained.hub import PACKAGE_MAX_LENGTH, PACKAGE_SOURCE, folder_of, package_folder
from palindiff.pretrained.text_encoders import CLIP_TYPES, Pooling, num_positions, sentence_encoder_options

PAPER_TOWER = "openai/clip-vit-large-patch14"  # its shape is told here, so that the paper's model needs no download
_PAPER_TEXT = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "projection_dim": 768,
}  # fmt: skip
_LENGTHS = (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length"))


@dataclass(frozen=True)
class TowerShape:
    """A text encoder with new weights, on whatever device was in force when it was made."""

    text_encoder: PreTrainedModel
    pooling: Pooling
    projection: Tensor | None  # (d_e, d_c), new numbers; None for sentence encoders
    num_tokens: int  # of a caption, beginning and end included
    tail: ClipTail | None = None  # CLIP layers that Stable Diffusion 2.x leaves out of the tower

    @property
    def d_c(self) -> int:
        """Width of the token-wise features."""
        return int(self.text_encoder.config.hidden_size)

    @property
    def d_e(self) -> int:
        """Width of the text query."""
        return self.d_c if self.projection is None else len(self.projection)


def read_tower_shape(source: str, max_length: int | None = None) -> TowerShape:
    """Build a tower as `load_text_tower(source, max_length)` would, from its config and without its weights.

    Raises: FileNotFoundError, ModuleNotFoundError, ValueError: one sentence on what was found and what to do.
    """
    if source == PAPER_TOWER:
        return _clip_shape(CLIPTextConfig.from_dict(_PAPER_TEXT), max_length)
    folder = package_folder() if source == PACKAGE_SOURCE else _config_folder(source)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"`{folder}` has no config.json. Expected a text encoder's folder, as `save_pretrained` writes it. "
            "Name the folder with the tower's config."
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    own_length = PACKAGE_MAX_LENGTH if source == PACKAGE_SOURCE else _own_length(folder)
    if config.model_type in CLIP_TYPES:
        return _clip_shape(_text_config(config), max_length or own_length)
    model_class: Any = MODEL_MAPPING[type(config)]
    text_encoder = model_class(config, **sentence_encoder_options(model_class))
    return TowerShape(text_encoder, "mean", None, _length(text_encoder, max_length or own_length))


def _clip_shape(config: CLIPTextConfig, length: int | None) -> TowerShape:
    model = CLIPTextModelWithProjection(config)
    projection = model.text_projection.weight.detach().clone()
    return TowerShape(model.text_model, "clip", projection, _length(model.text_model, length))


def _text_config(config: Any) -> CLIPTextConfig:
    """The text half of a CLIP's config; its own `projection_dim` is often missing or stale."""
    text_config: CLIPTextConfig = config.text_config if config.model_type == "clip" else config
    text_config.projection_dim = config.projection_dim
    return text_config


def _length(text_encoder: PreTrainedModel, length: int | None) -> int:
    longest = num_positions(text_encoder)
    return longest if length is None else min(length, longest)


def _own_length(folder: Path) -> int | None:
    """The length that the files beside a tower tell, without loading its tokenizer."""
    for name, key in _LENGTHS:
        for place in (folder, folder.parent / "tokenizer"):
            if (place / name).is_file() and (length := json.loads((place / name).read_text("utf-8")).get(key)):
                return int(length)
    return None


def _config_folder(source: str) -> Path:
    return folder_of(
        source,
        ["config.json", *(name for name, _ in _LENGTHS)],
        f"No text encoder `{source}`: it is no folder, and neither the Hub nor its cache on this machine gave its "
        f"config. Expected a folder, a Hub name, `{PAPER_TOWER}` (known without a download) or "
        f"`{PACKAGE_SOURCE}`. Check the name and the connection.",
    )
