"""The checkpoints bundled with the package: their folders, the VAE, and the parts of a model.

The text encoder is loaded from a package of its own. Not here: the pipeline (`inference/bundled.py`).
"""

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from palindiff.models.query_stream import QueryStream
from palindiff.pretrained.hub import PACKAGE_MAX_LENGTH, PACKAGE_SOURCE
from palindiff.pretrained.layout import result_of
from palindiff.pretrained.text_encoders import load_text_encoder

CHECKPOINTS = Path(str(files("palindiff"))) / "checkpoints"
BUNDLED_VAE = "vae-emoji"
BUNDLED_LICENSE = "cc-by-sa-4.0"  # of all bundled weights
BUNDLED_TEXT_ENCODER = PACKAGE_SOURCE


def bundled_folder(name: str, base: Path | None = None) -> Path:
    """Find the folder of a bundled checkpoint, below the package's own folder or another `base`.

    Raises: FileNotFoundError if there is none of that name.
    """
    base = base or CHECKPOINTS
    return base / _known(name, sorted(path.name for path in base.glob("*") if path.is_dir()), "checkpoint")


def bundled_models(base: Path | None = None) -> list[str]:
    """List the names that `palindiff.load` takes."""
    return sorted(path.parent.name for path in (base or CHECKPOINTS).glob("*/query_stream"))


def bundled_vae(torch_dtype: torch.dtype = torch.float32, base: Path | None = None) -> AutoencoderKL:
    """Load the VAE for 64 px images."""
    folder = bundled_folder(BUNDLED_VAE, base)
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch_dtype, use_safetensors=True).eval()


def load_vae(source: str, with_weights: bool = True) -> AutoencoderKL:
    """Load the frozen VAE of a folder, or the "bundled" one, in float32; without weights, build it from its config.

    The folder may be that of a run of `palindiff train-vae`.

    Raises: FileNotFoundError if a folder holds none; OSError if the Hub has none of that name.
    """
    folder = bundled_folder(BUNDLED_VAE) if source == "bundled" else result_of(source, "vae", "config.json")
    if Path(folder).is_dir() and not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(
            f"`{folder}` holds no VAE: it has no config.json. Expected 'bundled', a folder in diffusers' layout, or "
            "the folder of a finished run of `palindiff train-vae`. Check the path."
        )
    if with_weights:
        vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
    else:
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
    return vae.requires_grad_(False).eval()


def bundled_parts(name: str, torch_dtype: torch.dtype = torch.float32, base: Path | None = None) -> dict[str, Any]:
    """Load the components of a bundled model, offline.

    Raises: FileNotFoundError if there is none of that name; ModuleNotFoundError if the text encoder's package is
            missing.
    """
    folder = bundled_folder(_known(name, bundled_models(base), "model"), base)
    encoder = load_text_encoder(BUNDLED_TEXT_ENCODER, PACKAGE_MAX_LENGTH)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch_dtype, use_safetensors=True)
    return {
        "vae": bundled_vae(torch_dtype, base),
        "text_encoder": encoder.model.to(torch_dtype),  # type: ignore[arg-type]  # transformers types `to` wrongly
        "tokenizer": encoder.tokenizer,
        "unet": unet.eval(),
        "scheduler": DDIMScheduler.from_pretrained(folder / "scheduler"),
        "query_stream": QueryStream.from_pretrained(folder / "query_stream", torch_dtype=torch_dtype).eval(),
        "query_scheduler": DDIMScheduler.from_pretrained(folder / "query_scheduler"),
    }


def _known(name: str, known: list[str], kind: str) -> str:
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    expected = f"one of: {', '.join(known)}" if known else "one that is, but this installation has none"
    raise FileNotFoundError(
        f"No {kind} called '{name}' is bundled with palindiff{f'; the nearest is `{near[0]}`' if near else ''}. "
        f"Expected {expected}. "
        "Use `PalindiffPipeline.from_pretrained` for a folder of your own."
    )
