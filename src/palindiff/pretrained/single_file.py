"""Stable Diffusion as one .safetensors file in the layout of its first authors, through diffusers' own converter.

Here: reading the file's header, and comparing its text encoder with CLIP's, from which it is then taken: diffusers'
converter drops weights it does not know and leaves missing ones empty. Not here: converting U-Net and VAE (diffusers).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from palindiff.models.strict_model import GET_ANOTHER, check_finite, check_weights, without_warnings
from palindiff.models.text_encoder import TextEncoder
from palindiff.models.unet_encoder import WORKS
from palindiff.pretrained import clip_projection
from palindiff.pretrained.hub import STABLE_DIFFUSION_1
from palindiff.pretrained.layout import INDEX_NAME, check_configs, check_layout, check_whole, read_json

UNET = "model.diffusion_model."
TEXT_1, TEXT_2 = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
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


def load_single_file(
    path: Path, clip: TextEncoder, config: str | Path | None = None, dtype: torch.dtype = torch.float32
) -> tuple[StableDiffusionPipeline, TextEncoder]:
    """Load a base from one file; its text encoder is CLIP's own, once both are seen to be one.

    `config` is a folder in diffusers' layout, without weights, of the same model; Stable Diffusion 1.x needs none.

    Raises: FileNotFoundError or ValueError, in a sentence, for all that cannot work.
    """
    clip_projection.check_clip(clip, str(path))
    held, width = _read_text_encoder(path)
    clip_projection.check_same(clip_projection.differing_tensors(held, clip.model.state_dict()), str(path), clip)
    check_configs({"cross_attention_dim": width}, {}, clip.d_c, str(path))
    if config is None:
        folder, text_model, tokenizer = STABLE_DIFFUSION_1, cast("CLIPTextModel", clip.model), clip.tokenizer
        _check_version(path, width)
    else:
        folder = Path(config)
        check_layout(folder, str(config))
        text_model = _shortened_model(folder, clip)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")  # 2.x pads otherwise than its CLIP
    check_weights(f"The text encoder in `{path}`", text_model.state_dict().keys() - held.keys())
    scheduler = scheduler_of(folder)
    unet = _convert(UNet2DConditionModel, path, folder, "unet", dtype)
    vae = _convert(AutoencoderKL, path, folder, "vae", dtype)
    encoder = clip_projection.with_clip_projection(
        text_model, tokenizer, str(path), clip, with_weights=False
    )  # CLIP's own
    text_model.to(unet.dtype)
    parts = (vae, text_model, tokenizer, unet, scheduler)
    base = StableDiffusionPipeline(*parts, None, None, requires_safety_checker=False)  # the file holds no checker
    check_whole(base.components)
    check_finite(base.components, GET_ANOTHER)
    return base, encoder


def scheduler_of(folder: Path) -> Any:
    """Load the scheduler of a folder, of the class that its index names.

    Raises: FileNotFoundError if there is no index; ValueError if it names no scheduler of diffusers.
    """
    _, kind = read_json(folder, INDEX_NAME).get("scheduler") or (None, None)
    if not (isinstance(kind, str) and kind.endswith("Scheduler") and hasattr(diffusers, kind)):
        raise ValueError(
            f"`{folder}` names a scheduler `{kind}`. Expected one of diffusers' schedulers. Fix its {INDEX_NAME}."
        )
    return getattr(diffusers, kind).from_pretrained(folder, subfolder="scheduler")


def _convert(model_class: Any, path: Path, folder: Path, part: str, dtype: torch.dtype) -> Any:
    """Convert a part with diffusers' own converter; where weights are missing, it fails in many ways."""
    try:
        with without_warnings():
            return model_class.from_single_file(
                str(path), config=str(folder), subfolder=part, local_files_only=True, dtype=dtype
            )
    except (SingleFileComponentError, NotImplementedError, ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        found = "are not all there" if isinstance(error, NotImplementedError) else f"do not fit ({reason})"
        raise ValueError(
            f"The weights of `{part}` in `{path}` {found}. Expected every weight that the configs "
            "of the same model ask for. Copy the file again, or name that model's configs with --config."
        ) from error


def _read_text_encoder(path: Path) -> tuple[dict[str, Tensor], int]:
    """Read the text encoder's tensors under transformers' names, and the width of text that the U-Net reads."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            shapes = {key: file.get_slice(key).get_shape() for key in (FIRST_CONV, TEXT_KEYS) if key in names}
            _check_kind(path, shapes, names)
            prefix = TEXT_1 if any(name.startswith(TEXT_1) for name in names) else TEXT_2
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}
    except (SafetensorError, OSError) as error:
        raise FileNotFoundError(
            f"`{path}` cannot be read as safetensors ({error}). Expected an undamaged file. Check the name, or copy "
            "it again."
        ) from error
    held = {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
    return dict(_from_open_clip(held)) if prefix == TEXT_2 else held, shapes[TEXT_KEYS][1]


def _from_open_clip(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield OpenCLIP's tensors under transformers' names, its joint projections of query, key and value apart.

    Projection, logit scale and mask are left out: they are not part of a text encoder.
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


def _shortened_model(folder: Path, clip: TextEncoder) -> CLIPTextModel:
    """Copy CLIP's text model with as many layers as the config folder says."""
    shortened = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")).eval()
    held, whole = shortened.state_dict(), clip.model.state_dict()
    if differences := clip_projection.differing_shapes(held, whole):
        raise ValueError(
            f"`{folder / 'text_encoder' / 'config.json'}` does not describe the text encoder of `{clip.name}`: "
            f"{differences[0]}. Expected the config folder of the same model. Name another --config."
        )
    shortened.load_state_dict({name: whole[name] for name in held})
    return shortened


def _check_kind(path: Path, shapes: Mapping[str, list[int]], names: list[str]) -> None:
    if FIRST_CONV not in shapes or TEXT_KEYS not in shapes:
        missing = TEXT_KEYS if FIRST_CONV in shapes else FIRST_CONV
        raise ValueError(
            f"`{path}` holds no U-Net of Stable Diffusion's first layout (`{missing}` is missing). {WORKS}. For a "
            "model in diffusers' layout, name its folder; a LoRA is not a complete model."
        )
    embeddings = next((name for name in names if name.startswith(f"{UNET}label_emb.")), None)
    check_configs({"in_channels": shapes[FIRST_CONV][1], "label_emb": embeddings}, {}, None, str(path))
    if not any(name.startswith((TEXT_1, TEXT_2)) for name in names):
        raise ValueError(
            f"`{path}` holds no text encoder of Stable Diffusion 1.x or 2.x. {WORKS}. Name a file with the whole "
            "model."
        )


def _check_version(path: Path, width: int) -> None:
    """Refuse a file without configs unless its U-Net reads text of the width of Stable Diffusion 1.x."""
    if width != read_json(STABLE_DIFFUSION_1, "unet/config.json")["cross_attention_dim"]:
        raise ValueError(
            f"`{path}` reads text of width {width}, as Stable Diffusion 2.x does, and the file does not say whether "
            "it predicts noise or velocity. Expected a folder in diffusers' layout of the same model, without "
            "weights. Name it: --config DIR, or `config=`."
        )
