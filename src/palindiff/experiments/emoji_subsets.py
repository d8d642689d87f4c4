"""Which images of the emoji set are measured and shown: one of each concept, by split, style and vendor.

Here: choosing rows of a set. Not here: what is measured of them (`naming_protocol.py`, `vendor_protocol.py`,
`emoji_protocol.py`) and drawing the set (`data/emoji_set.py`).
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from palindiff.data.conditions import evenly_spread
from palindiff.data.rows import CaptionedImage, ImageSet
from palindiff.data.sources import DataConfig, open_images

FLAG = " of the flag of "  # in the caption of the flag of a country or region
VENDOR, COMPOSITION = "vendor", "composition"  # splits that a set may lack
SEEN, UNSEEN = "seen", "unseen"
SPLITS = {SEEN: "train", COMPOSITION: COMPOSITION, UNSEEN: "test"}  # label in results -> split of the set
HOW_TO_GET = "`palindiff data emoji --icons FOLDER`"

T = TypeVar("T")


def concept_images(data_dir: Path, split: str, style: str) -> list[CaptionedImage]:
    """List one image of each concept, the neutral one, in the order of the set.

    Raises: ValueError if the set's rows have no style and representative, as the emoji set's do, or none is of the
            style.
    """
    rows = representatives(data_dir, split)
    chosen = [row for row in rows if row.fields["style"] == style]
    if not chosen:
        styles = sorted({row.fields["style"] for row in rows})
        raise ValueError(
            f"`{data_dir}` has no image of the style `{style}` in its split `{split}`. Expected one of "
            f"{', '.join(styles)}. Use one of these."
        )
    return chosen


def representatives(data_dir: Path, split: str) -> list[CaptionedImage]:
    """List one image of each concept in every style.

    Raises: ValueError as `concept_images`.
    """
    return list(_representatives(data_dir, split, _state(data_dir, split)))


def training_images(data_dir: Path, style: str | None = None) -> ImageSet:
    """Open all images of the training split, or those of one style."""
    rows = _open(data_dir, "train", _state(data_dir, "train"))
    if style is None:
        return rows
    return rows.select([number for number, row in enumerate(rows.columns()) if row.get("style") == style])


def styles_of(data_dir: Path, split: str) -> list[str]:
    """List the styles of a split, in the order of the set."""
    return list(dict.fromkeys(row.fields["style"] for row in representatives(data_dir, split)))


def is_flag(row: CaptionedImage) -> bool:
    """Whether the image is the flag of a country or region."""
    return FLAG in row.captions[0]


def has_split(data_dir: Path, split: str) -> bool:
    """Whether the set was drawn with this split."""
    return (data_dir / split).is_dir()


def missing_vendor(data_dir: Path) -> str | None:
    """Say what the set lacks for the measurement of an unseen vendor; None if it has all."""
    if not has_split(data_dir, VENDOR):
        return f"`{data_dir}` has no split `{VENDOR}`"
    if any("concept_split" not in row.fields or row.label is None for row in representatives(data_dir, VENDOR)):
        return f"rows of the split `{VENDOR}` have no `concept_split` or no `label`"
    return None


def vendor_images(data_dir: Path) -> dict[str, list[CaptionedImage]]:
    """List one image of each concept that training sees in another style, without flags, by the vendor's style.

    Raises: ValueError if rows have no `concept_split` or no `label`.
    """
    if (problem := missing_vendor(data_dir)) is not None:
        raise ValueError(f"In `vendor_images`, {problem}. Expected both. Draw the set with {HOW_TO_GET}.")
    chosen: dict[str, list[CaptionedImage]] = {}
    for row in representatives(data_dir, VENDOR):
        if row.fields["concept_split"] == "train" and not is_flag(row):
            chosen.setdefault(row.fields["style"], []).append(row)
    return chosen


def evenly(rows: Sequence[T], number: int) -> list[T]:
    """Take `number` rows spread evenly over all, so that none is hand-picked; all rows if there are no more."""
    return [rows[i] for i in evenly_spread(len(rows), number)]


@lru_cache(maxsize=8)
def _representatives(data_dir: Path, split: str, state: object) -> tuple[CaptionedImage, ...]:
    rows = _open(data_dir, split, state)
    columns = list(rows.columns())
    for number, row in enumerate(columns):
        if not {"style", "is_representative"} <= row.keys():
            raise ValueError(
                f"`{rows[number].source.place}` has no `style` and `is_representative` in its row. Expected the emoji "
                f"set in `{data_dir}`. Use a folder that `palindiff data emoji` wrote, or one that does not exist yet."
            )
    return tuple(rows.select([number for number, row in enumerate(columns) if row["is_representative"] == "True"]))


@lru_cache(maxsize=8)
def _open(data_dir: Path, split: str, state: object) -> ImageSet:
    """Open a split once; a page asks for each many times."""
    return open_images(DataConfig(path=str(data_dir), split=split))


def _state(data_dir: Path, split: str) -> object:
    """When a split's folders and list last changed: nothing is kept of a set that was drawn anew."""
    folder = data_dir / split
    entries = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
    return tuple((each.name, each.stat().st_ino, each.stat().st_mtime_ns) for each in entries)
