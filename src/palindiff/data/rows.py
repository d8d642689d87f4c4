"""What every source of captioned images is brought into: one row, and a set of rows.

Here: the shapes that other rooms see. Not here: how a source becomes an index (`index.py` and the readers),
or what an image's bytes become (`images.py`).
"""

import hashlib
import json
import operator
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from palindiff.data.images import ImageSource

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class CaptionedImage:
    """One row: where the image is, its captions, its class if it has one, and whatever else the row tells."""

    source: ImageSource
    captions: tuple[str, ...]
    label: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


DAMAGED = "damaged image"  # the kind of fault that shows when an image is decoded


class ImageSet(Sequence[CaptionedImage]):
    """Rows in a fixed order, with a fingerprint of what they are, and how many were left out for which reason.

    The fingerprint changes with a caption, a label, a further field, and an image's name, size or content (of
    which large images give samples); it does not change with the place of the files or their times.
    """

    def __init__(
        self, rows: "IndexedRows", fingerprint: str, source: str, reasons: Mapping[str, int] | None = None
    ) -> None:
        self._rows, self.fingerprint, self.source = rows, fingerprint, source
        self.reasons = Counter(reasons or {})  # of rows left out: kind of fault -> how many

    @property
    def num_left_out(self) -> int:
        """How many rows were left out."""
        return self.reasons.total()

    @property
    def left_out(self) -> str:
        """A sentence on what was left out and why, or nothing."""
        return left_out_sentence(self.reasons, len(self) + self.num_left_out, self.source)

    def texts(self) -> Iterator[tuple[tuple[str, ...], str | None]]:
        """Yield the captions and the class of each row: far quicker than row by row, and without the images."""
        return self._rows.texts()

    def without(self, unreadable: Collection[int]) -> "ImageSet":
        """Leave out rows whose images turned out to be damaged.

        Raises: ValueError if no row is left.
        """
        if not unreadable:
            return self
        gone = sorted(unreadable)
        if len(gone) == len(self):
            raise ValueError(
                f"`{self.source}` has no image that can be read. Expected at least one. "
                "`palindiff data show --check-images` tells what is wrong with them."
            )
        digest = hashlib.sha256(json.dumps([self.fingerprint, gone]).encode()).hexdigest()
        reasons = self.reasons + Counter({DAMAGED: len(gone)})
        return ImageSet(self._rows.without(gone), digest, self.source, reasons)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: SupportsIndex) -> CaptionedImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[CaptionedImage]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> CaptionedImage | list[CaptionedImage]:
        if isinstance(index, slice):
            return [self._rows[place] for place in range(*index.indices(len(self)))]
        return self._rows[operator.index(index)]


def left_out_sentence(reasons: Counter[str], num_rows: int, source: str) -> str:
    """Say how many of a source's rows were left out, the most frequent reason first; nothing where none was."""
    if not reasons:
        return ""
    told = ", ".join(f"{kind} ({number:,})" for kind, number in reasons.most_common())
    return f"{reasons.total():,} of {num_rows:,} rows of `{source}` were left out: {told}."


class IndexedRows(Sequence[CaptionedImage]):
    """Rows of an index (`index.py`), made when asked for; it pickles as the names of the files it is mapped from."""

    def __init__(self, index: "Dataset", images: "Dataset | None" = None) -> None:
        """Take the index, and the table that holds the images where files do not."""
        self._index, self._images = index, images

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]  # whole numbers only; ImageSet has slices
        entry = self._index[place]
        return CaptionedImage(
            self._source(entry), tuple(entry["captions"]), entry["label"], json.loads(entry["fields"])
        )

    def texts(self) -> Iterator[tuple[tuple[str, ...], str | None]]:
        """Captions and class of each row."""
        for batch in self._index.select_columns(["captions", "label"]).iter(batch_size=1000):
            for captions, label in zip(batch["captions"], batch["label"], strict=True):
                yield tuple(captions), label

    def without(self, gone: Sequence[int]) -> "IndexedRows":
        """All rows but some."""
        left_out = set(gone)
        kept = [row for row in range(len(self)) if row not in left_out]
        return IndexedRows(self._index.select(kept), self._images)

    def _source(self, entry: Mapping[str, Any]) -> ImageSource:
        if entry["path"] is not None:
            return ImageSource(entry["name"], Path(entry["path"]), offset=entry["offset"], size=entry["size"])
        (cell,) = self._images[entry["table_row"]].values()  # type: ignore[index]  # a table wherever path is None
        return ImageSource(entry["name"], data=cell["bytes"] if isinstance(cell, dict) else cell)
