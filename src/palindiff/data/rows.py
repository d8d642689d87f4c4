"""What every source of captioned pictures is brought into: one row, and a set of rows.

Here: the shapes that other rooms see. Not here: how a source becomes an index (`index.py` and the readers),
or what a picture's bytes become (`pictures.py`).
"""

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from palindiff.data.pictures import PictureSource

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class CaptionedPicture:
    """One row: where the picture is, its captions, its class if it has one, and whatever else the row tells."""

    source: PictureSource
    captions: tuple[str, ...]
    label: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


class PictureSet(Sequence[CaptionedPicture]):
    """Rows in a fixed order, with a fingerprint of what they are, and a sentence on what was left out.

    The fingerprint changes with a caption, a label, a further field, and a picture's name, size or content (of
    which large pictures give samples); it does not change with the place of the files or their times.
    """

    def __init__(
        self, rows: Sequence[CaptionedPicture], fingerprint: str, num_left_out: int = 0, left_out: str = ""
    ) -> None:
        self._rows, self.fingerprint, self.num_left_out, self.left_out = rows, fingerprint, num_left_out, left_out

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: SupportsIndex) -> CaptionedPicture: ...
    @overload
    def __getitem__(self, index: slice) -> list[CaptionedPicture]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> CaptionedPicture | list[CaptionedPicture]:
        if isinstance(index, slice):
            return [self._rows[place] for place in range(*index.indices(len(self)))]
        return self._rows[operator.index(index)]


class IndexedRows(Sequence[CaptionedPicture]):
    """Rows of an index (`index.py`), made when asked for; it pickles as the names of the files it is mapped from."""

    def __init__(self, index: "Dataset", pictures: "Dataset | None" = None) -> None:
        """Take the index, and the table that holds the pictures where files do not."""
        self._index, self._pictures = index, pictures

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]  # whole numbers only; PictureSet has slices
        entry = self._index[place]
        return CaptionedPicture(
            self._source(entry), tuple(entry["captions"]), entry["label"], json.loads(entry["fields"])
        )

    def _source(self, entry: Mapping[str, Any]) -> PictureSource:
        if entry["path"] is not None:
            return PictureSource(entry["name"], Path(entry["path"]), offset=entry["offset"], size=entry["size"])
        (cell,) = self._pictures[entry["table_row"]].values()  # type: ignore[index]  # a table wherever path is None
        return PictureSource(entry["name"], data=cell["bytes"] if isinstance(cell, dict) else cell)
