"""Images of an emoji vendor that training never sees, bundled with the package for the demo page, and all credits.

Here: where they are. Not here: how they were chosen (`scripts/bundle_vendor_images.py`).
"""

from importlib.resources import files
from pathlib import Path

from palindiff.data.emoji_styles import ATTRIBUTION
from palindiff.data.rows import CaptionedImage
from palindiff.data.sources import DataConfig, open_images

VENDOR_IMAGES = Path(str(files("palindiff"))) / "experiments" / "vendor_images"
ATTRIBUTION_FILE = "ATTRIBUTION.txt"


def bundled_vendor_images(folder: Path = VENDOR_IMAGES) -> list[CaptionedImage]:
    """Open the bundled images, each with the caption and the label of its concept."""
    return list(open_images(DataConfig(path=str(folder), kind="folder")))


def image_credits(data_dir: Path, folder: Path = VENDOR_IMAGES) -> list[str]:
    """List the credits that must be shown with images of an emoji set, and with the bundled ones."""
    drawn = data_dir / ATTRIBUTION_FILE
    of_set = drawn.read_text(encoding="utf-8").splitlines() if drawn.is_file() else list(ATTRIBUTION.values())
    return [*of_set, " ".join((folder / ATTRIBUTION_FILE).read_text(encoding="utf-8").split())]
