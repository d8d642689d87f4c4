"""The form that every source of captioned images is read into: a row, and a set of rows.

Here: the types that other rooms use. Not here: how a source becomes an index (`index.py` and the readers), decoding
an image (`images.py`).
"""

import hashlib
import json
import operator
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex, overload

from datasets import Dataset

from palindiff.data.images import ImageSource
from palindiff.seeds import hash_63_bits

DAMAGED = "damaged image"  # the kind of fault that only decoding an image shows


@dataclass(frozen=True)
class CaptionedImage:
    """One row: where the image is, its captions, its class if it has one, and all other columns of the row."""

    source: ImageSource
    captions: tuple[str, ...]
    label: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


class ImageSet(Sequence[CaptionedImage]):
    """Rows in a fixed order, with a fingerprint, and the number of rows left out for each reason.

    Rows are made on access from an index (`index.py`), and from the table `images` where no files hold the images.
    A pickled set holds the names of the files that both are mapped from, so worker processes read the same rows.
    The fingerprint changes with a caption, a label, a further field, and an image's name, size or content (large
    images are sampled); it does not change with the location of the files or their times. `images_fingerprint`
    changes with the sizes and contents of the images and their order alone.
    """

    def __init__(
        self,
        index: Dataset,
        images: Dataset | None,
        source: str,
        fingerprint: str,
        reasons: Mapping[str, int],
        first_faults: Sequence[str] = (),
        num_opened: int | None = None,
    ) -> None:
        """num_opened: rows of the source; None: those of `index` and those left out."""
        self._index, self._images, self.source, self.fingerprint = index, images, source, fingerprint
        self.reasons = Counter(reasons)  # of rows left out: kind of fault -> number of rows
        self.num_opened = len(index) + self.reasons.total() if num_opened is None else num_opened
        self.first_faults = tuple(first_faults)  # the first rows left out when the source was opened, and why

    @cached_property
    def images_fingerprint(self) -> str:
        """A hash of the images alone: other captions, classes, fields or names change nothing."""
        digest = hashlib.sha256()
        for batch in self._index.select_columns(["size", "content"]).iter(batch_size=1000):
            digest.update(json.dumps([batch["size"], batch["content"]]).encode())
        return digest.hexdigest()

    @property
    def num_left_out(self) -> int:
        """Number of rows left out."""
        return self.reasons.total()

    @property
    def left_out(self) -> str:
        """A sentence on the rows left out, the most frequent reason first; empty if there are none."""
        if not self.reasons:
            return ""
        reasons = ", ".join(f"{kind} ({number:,})" for kind, number in self.reasons.most_common())
        return f"{self.num_left_out:,} of {self.num_opened:,} rows of `{self.source}` were left out: {reasons}."

    def texts(self) -> Iterator[tuple[tuple[str, ...], str | None]]:
        """Yield the captions and the class of each row, read in batches and without the images."""
        for batch in self._index.select_columns(["captions", "label"]).iter(batch_size=1000):
            for captions, label in zip(batch["captions"], batch["label"], strict=True):
                yield tuple(captions), label

    def columns(self) -> Iterator[dict[str, str]]:
        """Yield each row as `texts` does: its further fields, and its `label`, `image_path` and first `caption`."""
        for batch in self._index.select_columns(["fields", "label", "name", "captions"]).iter(batch_size=1000):
            for fields, label, name, captions in zip(*batch.values(), strict=True):
                known = {"label": label or "", "image_path": name, "caption": captions[0] if captions else ""}
                yield json.loads(fields) | known

    def records(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        """Return some rows as columns: row, image_path, caption (the first, or None), captions, label."""
        found = self._index.select_columns(["name", "captions", "label"])[list(rows)]
        first = [captions[0] if captions else None for captions in found["captions"]]
        return {"row": list(rows), "image_path": found["name"], "caption": first, "captions": found["captions"],
                "label": found["label"]}  # fmt: skip

    def without(self, unreadable: Collection[int]) -> "ImageSet":
        """Leave out rows whose images turned out to be damaged.

        Raises: ValueError if no row is left.
        """
        if not unreadable:
            return self
        if len(unreadable) == len(self):
            raise ValueError(
                f"`{self.source}` has no image that can be read. Expected at least one. "
                "Run `palindiff data show --check-images` to list what is wrong with them."
            )
        gone = set(unreadable)
        kept = self._index.select([row for row in range(len(self)) if row not in gone])
        digest = hashlib.sha256(json.dumps([self.fingerprint, sorted(gone)]).encode()).hexdigest()
        reasons = self.reasons + Counter({DAMAGED: len(unreadable)})
        return ImageSet(kept, self._images, self.source, digest, reasons, num_opened=self.num_opened)

    def select(self, rows: Sequence[int]) -> "ImageSet":
        """Keep some rows, in the given order."""
        digest = hashlib.sha256(json.dumps([self.fingerprint, "rows", list(rows)]).encode()).hexdigest()
        kept = self._index.select(rows)
        return ImageSet(kept, self._images, self.source, digest, self.reasons, num_opened=self.num_opened)

    def held_out(self, fraction: float) -> tuple["ImageSet", "ImageSet"]:
        """Hold out about a fraction of the rows -> the others, and those held out, in their order.

        The captions alone decide, so the same rows are held out wherever and in whatever order they are. Further rows
        change nothing for these, unless they link them or one side would otherwise be empty. Rows with an equal
        caption stay together, also through captions of a third row.

        Raises: ValueError if all rows are linked by equal captions, so that none can be held out.
        """
        groups = _linked([captions for captions, _ in self.texts()])
        places = {group: hash_63_bits(f"held out {group}") / 2**63 for group in set(groups)}
        if len(places) < 2:
            raise ValueError(
                f"All {len(self):,} rows of `{self.source}` have equal captions, directly or through others. Expected "
                "captions that differ, to hold out some. Add a validation split, or set "
                "`evaluation.validation_split: null` and `data.validation_fraction: 0`."
            )
        first, *_, last = sorted(places, key=lambda group: (places[group], group))
        places |= {first: 0.0, last: 1.0}  # neither side is empty
        is_held_out = [places[group] < fraction for group in groups]
        return self.select([row for row, held in enumerate(is_held_out) if not held]), self.select(
            [row for row, held in enumerate(is_held_out) if held]
        )

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, index: SupportsIndex) -> CaptionedImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[CaptionedImage]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> CaptionedImage | list[CaptionedImage]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        entry = self._index[operator.index(index)]
        source = image_source(entry, self._images)
        return CaptionedImage(source, tuple(entry["captions"]), entry["label"], json.loads(entry["fields"]))


def _linked(captions_of_rows: Sequence[Sequence[str]]) -> list[str]:
    """Name each row's group: the first caption, in the order of text, of all rows that equal captions link."""
    smaller: dict[str, str] = {}

    def find(caption: str) -> str:
        """Follow a caption to the name of its group."""
        while (up := smaller.setdefault(caption, caption)) != caption:
            smaller[caption] = caption = smaller.setdefault(up, up)
        return caption

    for captions in captions_of_rows:
        groups = {find(caption) for caption in captions}
        smaller |= dict.fromkeys(groups, min(groups))
    return [find(captions[0]) for captions in captions_of_rows]


def image_source(entry: Mapping[str, Any], images: Dataset | None) -> ImageSource:
    """Locate the image of a row of an index: in a file, or in a table of images."""
    if entry["path"] is not None:
        return ImageSource(entry["name"], Path(entry["path"]), offset=entry["offset"], size=entry["size"])
    (cell,) = images[entry["table_row"]].values()  # type: ignore[index]  # a table wherever `path` is None
    return ImageSource(entry["name"], data=cell["bytes"] if isinstance(cell, dict) else cell)
