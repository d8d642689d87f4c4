"""Stable Diffusion as one .safetensors file in the layout of its first authors, through diffusers' own converter.

Here: telling from the file's header what it holds, the configs its converter needs, and checking its text encoder
against CLIP's, from which it is then taken. Not here: converting U-Net and VAE (diffusers).
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from palindiff.models.strict_model import without_warnings
from palindiff.models.text_diffusion import STABLE_DIFFUSION_NOISE
from palindiff.pretrained.checkpoint_folder import INDEX_NAME, check_whole, read_json
from palindiff.pretrained.clip_projection import check_clip, differing_shapes, differing_tensors, with_clip_projection
from palindiff.pretrained.layout import START, TASKS, WORKS, check_configs, check_small_parts
from palindiff.pretrained.text_encoders import TextEncoder

UNET = "model.diffusion_model."
TOWER_1, TOWER_2 = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
FIRST_CONV = f"{UNET}input_blocks.0.0.weight"
TEXT_KEYS = f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"

# OpenCLIP's names of what transformers calls otherwise.
OPEN_CLIP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip

# Stable Diffusion 1.x, where these classes' defaults differ from it.
CONFIGS_1 = {
    "unet": {"_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 768},
    "vae": {
        "_class_name": "AutoencoderKL",
        "sample_size": 512,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
    },
}


def load_single_file(
    path: Path, clip: TextEncoder, config: str | Path | None = None, dtype: torch.dtype = torch.float32
) -> tuple[StableDiffusionPipeline, TextEncoder]:
    """Load a base from one file; its text encoder is CLIP's own, once both are seen to be one.

    `config` is a folder in diffusers' layout, without weights, of the same model; Stable Diffusion 1.x needs none.

    Raises: FileNotFoundError or ValueError, in a sentence, for all that cannot work.
    """
    check_clip(clip, str(path))
    held = _read_tower(path)
    if differences := differing_tensors(held, clip.text_encoder.state_dict()):
        raise ValueError(
            f"The text encoder in `{path}` is not that of `{clip.name}`: {differences[0]}. Expected the CLIP that it "
            "was taken from. Name that CLIP's folder; a tower that was trained further has none."
        )
    with _config_folder(path, config) as folder:
        if config is not None:
            check_small_parts(folder, str(config))
        of_unet, of_vae = (read_json(folder / part / "config.json", str(config)) for part in ("unet", "vae"))
        check_configs(of_unet, of_vae, clip.text_encoder.config.hidden_size, str(config or path))
        scheduler = scheduler_1() if config is None else _scheduler_of(folder)
        text_encoder, tokenizer = cast("CLIPTextModel", clip.text_encoder), clip.tokenizer
        if config is not None:
            text_encoder = _shortened_tower(folder, clip)
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")  # 2.x pads otherwise than its CLIP
        _check_held(held, text_encoder, path)
        unet = _convert(UNet2DConditionModel, path, folder, "unet", dtype)
        vae = _convert(AutoencoderKL, path, folder, "vae", dtype)
    tower = with_clip_projection(text_encoder, tokenizer, str(path), clip)
    text_encoder.to(unet.dtype)
    parts = (vae, text_encoder, tokenizer, unet, scheduler)
    base = StableDiffusionPipeline(*parts, None, None, requires_safety_checker=False)  # the file holds no checker
    check_whole(base.components)
    return base, tower


def _convert(model_class: Any, path: Path, folder: Path, part: str, dtype: torch.dtype) -> Any:
    """Convert a part by diffusers' own converter, what it raises in one sentence.

    It also takes what is missing for granted, and then fails on an empty weight.
    """
    try:
        with without_warnings():
            return model_class.from_single_file(
                str(path), config=str(folder), subfolder=part, local_files_only=True, dtype=dtype
            )
    except (SingleFileComponentError, NotImplementedError, ValueError, KeyError, IndexError) as error:
        told = " ".join(str(error).split()).rstrip(".")
        found = "are not all there" if isinstance(error, NotImplementedError) else f"do not fit ({told})"
        raise ValueError(
            f"The weights of `{part}` in `{path}` {found}. Expected every weight that the configs "
            "of the same model ask for. Copy the file again, or name that model's configs with --config."
        ) from error


def _check_held(held: Mapping[str, Tensor], text_encoder: CLIPTextModel, path: Path) -> None:
    """Refuse a file with a part of a tower: nobody could say that the rest was CLIP's."""
    if missing := sorted(text_encoder.state_dict().keys() - held.keys()):
        raise ValueError(
            f"The text encoder in `{path}` lacks {len(missing)} weights (`{missing[0]}` is the first). Expected a whole "
            "tower, to compare with CLIP's. Copy the file again."
        )


def _read_tower(path: Path) -> dict[str, Tensor]:
    """Read the text encoder's tensors under transformers' names, once the header shows what can be started from."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            shapes = {key: file.get_slice(key).get_shape() for key in (FIRST_CONV, TEXT_KEYS) if key in names}
            _check_kind(path, shapes, names)
            prefix = TOWER_1 if any(name.startswith(TOWER_1) for name in names) else TOWER_2
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}
    except (SafetensorError, OSError) as error:
        raise FileNotFoundError(
            f"`{path}` cannot be read as safetensors ({error}). Expected an undamaged file. Check the name, or copy "
            "it again."
        ) from error
    if prefix == TOWER_2:
        return dict(_from_open_clip(tensors))
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}


def _from_open_clip(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield OpenCLIP's tensors under transformers' names, its joint projections of query, key and value apart.

    Left out are projection, logit scale and mask, which belong to no tower.
    """
    for name, tensor in tensors.items():
        if name in OPEN_CLIP:
            yield OPEN_CLIP[name], tensor
        elif match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)", name):
            layer, part, kind = match.groups()
            yield f"encoder.layers.{layer}.{OPEN_CLIP_LAYER.get(part, part)}.{kind}", tensor
        elif match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
            for part, third in zip("qkv", tensor.chunk(3), strict=True):  # (3 d, ...) -> three times (d, ...)
                yield f"encoder.layers.{match[1]}.self_attn.{part}_proj.{match[2]}", third


def _shortened_tower(folder: Path, clip: TextEncoder) -> CLIPTextModel:
    """CLIP's tower with as many layers as the config folder says."""
    path = folder / "text_encoder" / "config.json"
    read_json(path, str(folder))
    config = CLIPTextConfig.from_pretrained(path.parent)
    shortened = CLIPTextModel(config).eval()
    held, whole = shortened.state_dict(), clip.text_encoder.state_dict()
    if differences := differing_shapes(held, whole):
        raise ValueError(
            f"`{path}` does not describe the text encoder of `{clip.name}`: {differences[0]}. Expected the config "
            "folder of the same model. Name another --config."
        )
    shortened.load_state_dict({name: whole[name] for name in held})
    return shortened


def _check_kind(path: Path, shapes: Mapping[str, list[int]], names: list[str]) -> None:
    if FIRST_CONV not in shapes or TEXT_KEYS not in shapes:
        missing = TEXT_KEYS if FIRST_CONV in shapes else FIRST_CONV
        raise ValueError(
            f"`{path}` holds no U-Net of Stable Diffusion's first layout (`{missing}` is missing). {WORKS} For a "
            "model in diffusers' layout, name its folder; a LoRA is no model of its own."
        )
    ch = shapes[FIRST_CONV][1]
    if ch != 4:
        raise ValueError(
            f"The U-Net in `{path}` takes {ch} channels: it is made for {TASKS.get(ch, 'another task')}, and naming "
            f"has latents alone to give it. {WORKS} {START}; inpainting by masking works with any."
        )
    if any(name.startswith(("conditioner.embedders.", f"{UNET}label_emb.")) for name in names):
        raise ValueError(
            f"`{path}` is a Stable Diffusion XL, or another model with added embeddings, for which naming has no "
            f"input. {WORKS} {START}."
        )
    if not any(name.startswith((TOWER_1, TOWER_2)) for name in names):
        raise ValueError(
            f"`{path}` holds no text encoder of Stable Diffusion 1.x or 2.x. {WORKS} Name a file with the whole model."
        )


@contextmanager
def _config_folder(path: Path, config: str | Path | None) -> Iterator[Path]:
    """Yield a folder of the parts' configs: the given one, or Stable Diffusion 1.x's, if that is what the file is."""
    if config is not None:
        if not (Path(config) / "unet" / "config.json").is_file():
            raise FileNotFoundError(
                f"`{config}` has no unet/config.json. Expected a folder in diffusers' layout of the same model; it "
                "needs no weights. Name one."
            )
        yield Path(config)
        return
    with safe_open(path, framework="pt") as file:
        width = file.get_slice(TEXT_KEYS).get_shape()[1]
    if width != CONFIGS_1["unet"]["cross_attention_dim"]:
        raise ValueError(
            f"`{path}` reads text of width {width}, as Stable Diffusion 2.x does, and a file does not tell whether it "
            "predicts noise or velocity. Expected a folder in diffusers' layout of the same model, without weights. "
            "Name it: --config DIR, or `config=`."
        )
    with tempfile.TemporaryDirectory() as folder:
        for part, settings in CONFIGS_1.items():
            (Path(folder) / part).mkdir()
            (Path(folder) / part / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        yield Path(folder)


def _scheduler_of(folder: Path) -> Any:
    _, kind = read_json(folder / INDEX_NAME, str(folder)).get("scheduler") or (None, None)
    if not (isinstance(kind, str) and kind.endswith("Scheduler") and hasattr(diffusers, kind)):
        raise ValueError(
            f"`{folder}` names a scheduler `{kind}`. Expected one of diffusers' schedulers. Mend its model_index.json."
        )
    return getattr(diffusers, kind).from_pretrained(folder, subfolder="scheduler")


def scheduler_1() -> PNDMScheduler:
    """Build the scheduler of Stable Diffusion 1.x."""
    return PNDMScheduler(**STABLE_DIFFUSION_NOISE, skip_prk_steps=True, steps_offset=1)
