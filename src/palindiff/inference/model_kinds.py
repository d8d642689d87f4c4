"""Which of the supported models a folder holds, detected from its files, and opening it.

Here: the choice. Not here: loading each (`pipeline.py`, `clip_model.py`, diffusers).
"""

from pathlib import Path
from typing import Literal

from diffusers import StableDiffusionPipeline

from palindiff.inference.clip_model import ClipModel
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.pretrained.clip_folders import CONTRASTIVE_FILE, is_clip
from palindiff.pretrained.layout import INDEX_NAME, check_layout, check_whole, is_palindiff, result_of

ModelKind = Literal["palindiff", "stable_diffusion", "clip", "contrastive"]
CLIP_RESULT = "clip"  # the folder that a contrastive run writes


def model_kind(source: str | Path) -> tuple[ModelKind, Path]:
    """Detect the kind of model in a folder, or in that of a run, and return it with the model's own folder.

    "palindiff": a checkpoint; "stable_diffusion": a stock folder without query stream; "clip": a CLIP of transformers;
    "contrastive": a contrastive result with another text encoder than CLIP's.

    Raises: FileNotFoundError if there is no such folder; ValueError if it holds none of these.
    """
    if not Path(source).is_dir():
        raise FileNotFoundError(f"`{source}` is no folder. Expected {_EXPECTED}. Check the path.")
    folder = Path(result_of(source, "checkpoint"))
    for file in ("config.json", CONTRASTIVE_FILE):
        folder = Path(result_of(folder, CLIP_RESULT, file))
    if is_palindiff(folder):
        return "palindiff", folder
    if (folder / INDEX_NAME).is_file():
        return "stable_diffusion", folder
    if (folder / CONTRASTIVE_FILE).is_file():
        return "contrastive", folder
    if is_clip(folder):
        return "clip", folder
    held = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else "")
    raise ValueError(f"`{source}` holds no known model; in it: {shown or 'nothing'}. Expected {_EXPECTED}. Use one.")


def open_any_model(source: str | Path) -> PalindiffPipeline | StableDiffusionPipeline | ClipModel:
    """Open the model of a folder, whatever its kind, in float32 and from safetensors alone.

    Raises: FileNotFoundError, OSError or ValueError as `model_kind`, and as what loads the kind.
    """
    kind, folder = model_kind(source)
    if kind == "palindiff":
        return PalindiffPipeline.from_pretrained(folder)
    if kind != "stable_diffusion":
        return ClipModel.from_pretrained(folder)
    check_layout(folder, str(source))
    pipeline = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    check_whole(pipeline.components)
    return pipeline


_EXPECTED = (
    f"a palindiff checkpoint or a Stable Diffusion ({INDEX_NAME}), a CLIP of transformers (config.json with "
    f"`model_type` clip), a contrastive model ({CONTRASTIVE_FILE}), or the folder of a run"
)
