"""A base's shapes, from its configs alone: what can be told of Stable Diffusion weights that are not here.

Not here: loading them (`inference/stable_diffusion.py`), what is counted on the shapes (`estimate.py`).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from transformers import CLIPTextConfig, CLIPTextModel

from palindiff.models.clip_tail import ClipTail
from palindiff.models.text_diffusion import STABLE_DIFFUSION_NOISE
from palindiff.models.tower_shape import TowerShape, read_tower_shape
from palindiff.pretrained.checkpoint_folder import read_json
from palindiff.pretrained.hub import folder_of
from palindiff.pretrained.layout import is_palindiff
from palindiff.pretrained.single_file import CONFIGS_1
from palindiff.training.recipes.build_models import BaseConfig, TextConfig

PAPER_BASE = "CompVis/stable-diffusion-v1-1"  # its shapes are told here, so that the paper's model needs no download
_CONFIGS = ["model_index.json", "*/config.json", "scheduler/*.json", "tokenizer/tokenizer_config.json"]


@dataclass(frozen=True)
class BaseShape:
    """Configs of a base's parts; its tower has weights of no meaning."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    scheduler: DDPMScheduler
    tower: TowerShape
    query_stream: dict[str, Any] | None  # of a palindiff checkpoint


def read_base_shape(base: BaseConfig, text: TextConfig) -> BaseShape:
    """Read what `build_models` would load, without weights; Stable Diffusion v1-1 and CLIP ViT-L/14 need no file.

    Raises: FileNotFoundError, ModuleNotFoundError, ValueError if a config cannot be had.
    """
    is_file = Path(base.source).suffix == ".safetensors"
    if (base.source == PAPER_BASE and not Path(base.source).exists()) or (is_file and base.config is None):
        tower = read_tower_shape(_clip_of(text))
        return BaseShape(
            CONFIGS_1["unet"], CONFIGS_1["vae"], DDPMScheduler.from_config(STABLE_DIFFUSION_NOISE), tower, None
        )
    folder = _config_folder(base.config if is_file and base.config else base.source)
    unet, vae = (read_json(folder / part / "config.json", base.source) for part in ("unet", "vae"))
    scheduler = DDPMScheduler.from_config(read_json(folder / "scheduler" / "scheduler_config.json", base.source))
    if is_palindiff(folder):
        stream = read_json(folder / "query_stream" / "config.json", base.source)
        tower = _completed(read_tower_shape(str(folder / "text_encoder")), stream)
        return BaseShape(unet, vae, scheduler, tower, stream)
    return BaseShape(unet, vae, scheduler, _tower_in(folder, _clip_of(text)), None)


def _tower_in(folder: Path, clip: str) -> TowerShape:
    """The tower of a folder with the projection of its CLIP, and the layers that it lacks."""
    whole = read_tower_shape(clip)
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    num_kept, num_whole = config.num_hidden_layers, whole.text_encoder.config.num_hidden_layers
    if num_kept >= num_whole:
        return whole
    tail = ClipTail({"num_layers": num_whole - num_kept, **whole.text_encoder.config.to_dict()})
    return replace(whole, text_encoder=CLIPTextModel(config), tail=tail)


def _completed(tower: TowerShape, stream: dict[str, Any]) -> TowerShape:
    """A checkpoint's tower with the projection and layers that its query stream keeps for it."""
    width, settings = stream["projection_width"], stream["clip_tail_settings"]
    projection = None if width is None else torch.randn(stream["d_e"], width)
    return replace(tower, projection=projection, tail=ClipTail(settings) if settings else None)


def _clip_of(text: TextConfig) -> str:
    if text.source is None:
        raise ValueError(
            "`text.source` is missing beside a Stable Diffusion as `base`. Expected the CLIP that its text encoder was "
            "taken from. Name its folder or Hub name."
        )
    return text.source


def _config_folder(source: str) -> Path:
    return folder_of(
        source,
        _CONFIGS,
        f"No configs of `{source}`: it is no folder, and neither the Hub nor its cache on this machine gave them. "
        f"Expected a folder, a Hub name, or `{PAPER_BASE}` (known without a download). Check the name and the "
        "connection.",
    )
