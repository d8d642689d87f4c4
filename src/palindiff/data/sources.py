"""Captioned pictures from wherever a user has them, in one shape.

Here: finding rows and checking them. Not here: decoding a picture (`pictures.py`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from palindiff.data.pictures import Fit, PictureSource


class DataConfig(BaseModel, frozen=True, extra="forbid"):
    """Which pictures, and how they become squares."""

    path: str  # a folder, a tar or parquet file, or a Hub name
    split: str = "train"
    fit: Fit = "crop"  # "crop": the middle square; "pad": the whole picture on white


@dataclass(frozen=True)
class CaptionedPicture:
    """One row: where the picture is, what it is called, its captions, and whatever else the row tells."""

    source: PictureSource
    captions: tuple[str, ...]
    label: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


class PictureSet(Sequence[CaptionedPicture]):
    """Rows in a fixed order, with a fingerprint of what they are."""

    def __init__(self, rows: Sequence[CaptionedPicture], fingerprint: str) -> None:
        self._rows, self.fingerprint = rows, fingerprint

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
        return self._rows[index]


def open_pictures(config: DataConfig) -> PictureSet:
    """Open the rows of a split, checked but not decoded."""
    folder = Path(config.path) / config.split
    text = (folder / "metadata.jsonl").read_text(encoding="utf-8")
    rows = []
    for line in text.splitlines():
        row = json.loads(line)
        source = PictureSource(row["file_name"], path=folder / row["file_name"])
        others = {key: str(value) for key, value in row.items() if key not in ("file_name", "captions")}
        rows.append(CaptionedPicture(source, tuple(row["captions"]), fields=others))
    return PictureSet(rows, hashlib.sha256(text.encode()).hexdigest())
