"""Copy images of an unseen emoji vendor into the package, for the demo page: CC BY 4.0, with their attribution.

Run: `python scripts/bundle_vendor_images.py DATA`, DATA drawn by `palindiff data emoji --icons FOLDER --size-px 96`.

Of the vendor's concepts that training sees, flags left out, those with the smallest hashes of their names are taken,
so that none is hand-picked.
"""

import hashlib
import json
import sys
from pathlib import Path

from PIL import Image

from palindiff.atomic import atomic_folder
from palindiff.data.images import decode_image
from palindiff.data.rows import CaptionedImage
from palindiff.experiments.bundled_vendor import ATTRIBUTION_FILE, VENDOR_IMAGES
from palindiff.experiments.emoji_subsets import vendor_images

STYLE = "emojione"
NUM_IMAGES = 24
SIZES_PX = (72, 96)
MAX_BYTES = 150_000
LICENCE = "Licence: https://creativecommons.org/licenses/by/4.0/."


def bundle_vendor_images(data_dir: Path, target: Path = VENDOR_IMAGES) -> Path:
    """Write the images, `metadata.jsonl` and the attribution; they replace an earlier folder.

    Raises: ValueError if the set has no vendor, or too few of its images, another image size, or they are too large.
    """
    rows = sorted(vendor_images(data_dir).get(STYLE, []), key=_hash)[:NUM_IMAGES]
    if len(rows) < NUM_IMAGES:
        raise ValueError(
            f"`{data_dir}` has {len(rows)} images of {STYLE} to choose from. Expected {NUM_IMAGES} or more. Draw the "
            "set with the package @iconify-json/emojione."
        )
    images = [decode_image(row.source) for row in rows]
    if len(sizes := {image.size for image in images}) > 1 or sizes.pop() not in {(side, side) for side in SIZES_PX}:
        raise ValueError(
            f"Images of `{data_dir}` are {images[0].width} x {images[0].height} pixels. Expected a side of "
            f"{' or '.join(map(str, SIZES_PX))}. Draw the set with `--size-px {SIZES_PX[-1]}`."
        )
    with atomic_folder(target, replace=True) as folder:
        _write(folder, rows, images)
        if (num_bytes := sum(path.stat().st_size for path in folder.iterdir())) > MAX_BYTES:
            raise ValueError(f"The images take {num_bytes:,} bytes. Expected at most {MAX_BYTES:,}. Use smaller ones.")
    return target


def _write(folder: Path, rows: list[CaptionedImage], images: list[Image.Image]) -> None:
    lines = []
    for row, image in zip(rows, images, strict=True):
        name = f"{Path(row.source.name).stem}.png"
        image.save(folder / name, optimize=True)
        lines.append({"file_name": name, "captions": list(row.captions), "label": row.label})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    credits = sorted({row.fields["license"] for row in rows})
    changes = f"{LICENCE} Changes: rendered from SVG to PNG of {images[0].width} pixels."
    text = "".join(f"{line}\n" for line in (*credits, changes))
    (folder / ATTRIBUTION_FILE).write_text(text, encoding="utf-8")


def _hash(row: CaptionedImage) -> str:
    return hashlib.sha256(f"palindiff vendor images:{row.label}".encode()).hexdigest()


if __name__ == "__main__":
    print(bundle_vendor_images(Path(sys.argv[1])))
