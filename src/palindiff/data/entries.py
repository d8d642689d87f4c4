"""One row as its source tells it, usable or not, and what a reader makes an entry of: captions, JSON, classes.

Here: the entry, its faults, and the parts that readers share. Not here: where rows come from (`folder.py`,
`shards.py`, `tables.py`), or what becomes of many entries (`index.py`).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

CAPTION_KEYS = ("captions", "caption", "text")
IMAGE_SUFFIXES = frozenset(  # of the formats that images.py takes
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif"}
)
SAMPLE_BYTES = 1024
UNCOMPRESSED = (b"BM", b"II*\0", b"MM\0*", b"P")  # BMP, TIFF and PPM: a change within moves no other byte


class RowFault(Exception):
    """Why one row cannot be used: the kind of fault, by which faults are counted, and what was found."""

    def __init__(self, fault: str, found: str = "") -> None:
        super().__init__(fault, found)
        self.fault, self.found = fault, found


@dataclass(frozen=True)
class Entry:
    """One row as its source tells it."""

    place: str  # what a message calls the row: "line 4 of metadata.jsonl"
    name: str = ""  # the image's name within its source
    path: str | None = None  # the file that holds the image; None: a table does
    offset: int | None = None  # where it begins in that file; None: the file is the image
    size: int = 0  # bytes
    table_row: int | None = None  # which row of the table
    content: str = ""  # stands for the image's bytes, see `content_id`
    captions: tuple[str, ...] = ()
    label: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    fault: str | None = None  # the kind; None: usable
    found: str = ""

    @classmethod
    def bad(cls, place: str, fault: RowFault) -> "Entry":
        """Build the entry of a row that cannot be used."""
        return cls(place, fault=fault.fault, found=fault.found)

    def as_row(self) -> dict[str, Any]:
        """Flatten for Arrow."""
        told = {
            name: getattr(self, name).encode("utf-8", "backslashreplace").decode()  # a file's name may be no text
            for name in ("place", "found")
        }
        return vars(self) | told | {"captions": list(self.captions), "fields": json.dumps(self.fields)}


def content_id(part: Callable[[int, int], bytes | memoryview], size: int) -> str:
    """Hash an image's size and bytes; of a long compressed one the beginning, middle and end alone.

    A compressed image saved anew differs there: PNG ends on a sum over all pixels, the others shift what follows.
    `part(start, num_bytes)` reads.
    """
    beginning = bytes(part(0, min(size, SAMPLE_BYTES)))
    digest = hashlib.sha256(f"{size}:".encode() + beginning)
    if size <= 3 * SAMPLE_BYTES or beginning.startswith(UNCOMPRESSED):
        digest.update(part(len(beginning), size - len(beginning)))
    else:
        for start in (size // 2, size - SAMPLE_BYTES):
            digest.update(part(start, SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def file_part(stream: BinaryIO, offset: int = 0) -> Callable[[int, int], bytes]:
    """Read parts of a file, or of what begins at `offset` in it, for `content_id`."""

    def part(start: int, num_bytes: int) -> bytes:
        stream.seek(offset + start)
        return stream.read(num_bytes)

    return part


def as_captions(value: object) -> tuple[str, ...]:
    """Take one caption or a list of them, without white space around.

    Raises: RowFault if there is none, one is empty, or one is not text.
    """
    several = [value] if isinstance(value, str) else value
    if several is None or several == []:
        raise RowFault("no caption")
    if not isinstance(several, list) or not all(isinstance(caption, str) for caption in several):
        raise RowFault("caption is not text", f"found {type(value).__name__}; expected text or a list of texts")
    if not all(caption.strip() for caption in several):
        raise RowFault("empty caption", "only white space" if any(several) else "")
    return tuple(caption.strip() for caption in several)


def as_text(data: bytes) -> str:
    """Decode a text file.

    Raises: RowFault if it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowFault("not UTF-8", f"{error.reason} at byte {error.start}") from error


def as_record(data: bytes) -> dict[str, Any]:
    """Read one JSON object.

    Raises: RowFault if it is none.
    """
    try:
        record = json.loads(as_text(data))
        json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
    except (ValueError, RecursionError) as error:
        raise RowFault("broken JSON", str(error)) from error
    if not isinstance(record, dict):
        raise RowFault("broken JSON", f"found a {type(record).__name__}; expected an object with keys")
    return record


def class_caption(label: str, template: str) -> str:
    """Put a class's name, in words, into a template: `golden_retriever` -> "a photo of a golden retriever"."""
    return template.replace("{c}", label.replace("_", " ").strip())


def as_fields(record: Mapping[str, Any], taken: Iterable[str]) -> dict[str, str]:
    """Keep what else a row tells, as text; lists and the like as JSON."""
    skipped = {*taken, "label"}
    rest = {key: value for key, value in record.items() if key not in skipped and value is not None}
    return {
        key: json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else str(value)
        for key, value in rest.items()
    }
