"""Which of the supported models a folder holds, detected from its files.

Not here: loading each (`pipeline.py`, `clip_model.py`, diffusers).
"""

from pathlib import Path
from typing import Literal

from palindiff.pretrained.clip_folders import CONTRASTIVE_FILE, is_clip
from palindiff.pretrained.layout import INDEX_NAME, is_palindiff, result_of

ModelKind = Literal["palindiff", "stable_diffusion", "clip", "contrastive"]
CLIP_RESULT = "clip"  # the folder that a contrastive run writes


def model_kind(source: str | Path) -> tuple[ModelKind, Path]:
    """Detect the kind of model in a folder, or in that of a run, and return it with the model's own folder.

    "palindiff": a checkpoint; "stable_diffusion": a stock folder without query stream; "clip": a CLIP of transformers;
    "contrastive": a contrastive result with another text encoder than CLIP's.

    Raises: FileNotFoundError if there is no such folder; ValueError if it holds none of these.
    """
    if not Path(source).is_dir():
        raise FileNotFoundError(f"`{source}` is not a folder. Expected {_EXPECTED}. Check the path.")
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
    raise ValueError(
        f"`{source}` does not contain a supported model; it contains: {shown or 'nothing'}. "
        f"Expected {_EXPECTED}. Use one."
    )


_EXPECTED = (
    f"a palindiff checkpoint or a Stable Diffusion ({INDEX_NAME}), a CLIP of transformers (config.json with "
    f"`model_type` clip), a contrastive model ({CONTRASTIVE_FILE}), or the folder of a run"
)
