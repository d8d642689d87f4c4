"""One row as a reader finds it, usable or not, and the parts it is read from: captions, JSON, classes, files.

Here: the entry, its faults, and what readers share. Not here: where rows come from (`folder.py`, `shards.py`,
`tables.py`), how entries are kept and checked (`index.py`).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from palindiff.data.formats import HEADER_BYTES, unread_format

CAPTION_KEYS = ("captions", "caption", "text")
IMAGE_KEYS = ("file_name", "filename", "filepath", "image")
SAMPLE_BYTES = 1024
UNCOMPRESSED = (b"BM", b"II*\0", b"MM\0*", b"P")  # BMP, TIFF and PPM: changing a pixel changes no other byte


class RowFault(Exception):
    """Why one row cannot be used: the kind of fault, by which faults are counted, and what was found."""

    def __init__(self, fault: str, found: str = "") -> None:
        super().__init__(fault, found)
        self.fault, self.found = fault, found

    def __str__(self) -> str:
        return f"{self.fault} ({self.found})" if self.found else self.fault


@dataclass(frozen=True)
class Entry:
    """One row as its reader finds it."""

    place: str  # how messages refer to the row: "line 4 of metadata.jsonl"
    name: str = ""  # the image's name within its source
    path: str | None = None  # the file that holds the image; None: a table holds it
    offset: int | None = None  # where the image begins in that file; None: the file is the image
    size: int = 0  # bytes
    table_row: int | None = None  # the row of the table
    content: str = ""  # hash of the image's bytes, see `content_id`
    captions: tuple[str, ...] = ()
    label: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    fault: str | None = None  # the kind; None: usable
    found: str = ""

    @classmethod
    def read(cls, place: str, reader: Callable[..., Mapping[str, Any]], *arguments: Any) -> "Entry":
        """Build an entry of the values that `reader(*arguments)` returns, or of the RowFault that it raises."""
        try:
            return cls(place, **reader(*arguments))
        except RowFault as fault:
            return cls(place, fault=fault.fault, found=fault.found)

    def as_row(self) -> dict[str, Any]:
        """Convert to a row of an Arrow table."""
        row = vars(self) | {"captions": list(self.captions), "fields": json.dumps(self.fields)}
        for name in ("place", "found"):  # they may quote a file name that is not valid text
            row[name] = row[name].encode("utf-8", "backslashreplace").decode()
        return row


def content_id(stream: BinaryIO, size: int, offset: int = 0) -> str:
    """Hash an image's size and bytes; of a long compressed one only the beginning, middle and end.

    A compressed image that is saved again differs there: PNG ends with a checksum of all pixels, in other formats
    a changed pixel shifts what follows. The image is `size` bytes of `stream` from `offset` on.
    """
    stream.seek(offset)
    beginning = stream.read(min(size, SAMPLE_BYTES))
    digest = hashlib.sha256(f"{size}:".encode() + beginning)
    is_whole = size <= 3 * SAMPLE_BYTES or beginning.startswith(UNCOMPRESSED)
    for start in (len(beginning),) if is_whole else (size // 2, size - SAMPLE_BYTES):
        stream.seek(offset + start)
        digest.update(stream.read(size - start if is_whole else SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def describe_image(stream: BinaryIO, size: int, name: str, offset: int = 0) -> dict[str, Any]:
    """Read what an entry records of every image: size and content. The arguments are those of `content_id`.

    Raises: RowFault, which calls the image `name`, if it is empty or of a format that is not read.
    """
    if size == 0:
        raise RowFault("empty image file", f"`{name}` has 0 bytes")
    stream.seek(offset)
    if unread := unread_format(name, stream.read(min(size, HEADER_BYTES))):
        raise RowFault("image format that is not read", f"`{name}`: {unread}")
    return {"size": size, "content": content_id(stream, size, offset)}


def describe_file(path: Path, name: str) -> dict[str, Any]:
    """Read what an entry records of an image that is a file of its own: path, size and content.

    Raises: RowFault if the file cannot be opened, is empty, or has a name that is not valid text.
    """
    try:
        str(path).encode()
        with path.open("rb") as stream:
            return {"path": str(path), **describe_image(stream, os.fstat(stream.fileno()).st_size, name)}
    except (OSError, ValueError) as error:  # ValueError: a name with NUL, or not UTF-8
        raise RowFault("image cannot be opened", f"`{name}`: {getattr(error, 'strerror', None) or error}") from error


def as_captions(value: object) -> tuple[str, ...]:
    """Read one caption or a list of them, without surrounding white space.

    Raises: RowFault if there is none, one is empty, or one is not text.
    """
    captions = [value] if isinstance(value, str) else value
    if captions is None or captions == []:
        raise RowFault("no caption")
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise RowFault("caption is not text", f"found {type(value).__name__}; expected text or a list of texts")
    if not all(caption.strip() for caption in captions):
        raise RowFault("empty caption", "only white space" if any(captions) else "")
    return tuple(caption.strip() for caption in captions)


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

    Raises: RowFault if it is anything else.
    """
    try:
        record = json.loads(as_text(data))
    except (ValueError, RecursionError) as error:
        raise RowFault("broken JSON", str(error)) from error
    return check_record(record)


def check_record(record: object) -> dict[str, Any]:
    """Check that what was read from JSON is an object, and all of it valid text.

    Raises: RowFault.
    """
    try:
        json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is valid JSON, but not valid text
    except (ValueError, RecursionError) as error:
        raise RowFault("broken JSON", str(error)) from error
    if not isinstance(record, dict):
        raise RowFault("broken JSON", f"found a {type(record).__name__}; expected an object with keys")
    return record


def class_caption(label: str, template: str) -> str:
    """Put a class's name, in words, into a template: `golden_retriever` -> "a photo of a golden retriever"."""
    return template.replace("{c}", label.replace("_", " ").strip())


def other_keys(record: Mapping[str, Any]) -> str:
    """Name the keys of a row without a caption that hold text, and the setting that chooses one."""
    texts = [key for key, value in record.items() if isinstance(value, str)]
    return f"text is in {', '.join(texts[:8])}; `caption_column` chooses one" if texts else ""


def as_fields(record: Mapping[str, Any], taken: Iterable[str]) -> dict[str, str]:
    """Keep all other keys of a row as text; lists and dicts as JSON."""
    return {
        key: json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else str(value)
        for key, value in record.items()
        if key not in (*taken, "label") and value is not None
    }
