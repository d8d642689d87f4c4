"""Captioned images with a text file beside each: img2dataset's `output_format=files`, and kohya's folders.

Here: entries from images and the texts of their names. Not here: what the texts say (`samples.py`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from palindiff.data import entries
from palindiff.data.entries import Entry, RowFault
from palindiff.data.formats import is_image_file
from palindiff.data.samples import MAX_TEXT_BYTES, TEXT_KINDS, SampleReading

_KIND_OF = {".caption": "txt"} | {f".{kind}": kind for kind in TEXT_KINDS}
_REPEATED = re.compile(r"(\d{1,3})_\D.*")  # kohya's folders: 10_name, whose images count ten times
_DOCUMENTS = (
    "classnames", "readme", "license", "licence", "notice", "attribution", "copying", "requirements", "changelog",
)  # fmt: skip


def has_sidecars(root: Path, files: Sequence[str]) -> bool:
    """Whether an image of a folder has a text of its name beside it; `files` are relative to the folder."""
    texts = _texts_by_stem(files)
    return any(_stem(name) in texts and is_image_file(root / name) for name in files)


def scan_sidecars(root: Path, files: Sequence[str], reading: SampleReading) -> Iterator[Entry]:
    """Yield an entry for each image, several if its folder is called N_NAME, then one for each text without an image.

    `files` are all files of the folder, relative to it.
    """
    texts = _texts_by_stem(files)
    images = [name for name in files if is_image_file(root / name)]
    for name in images:
        entry = Entry.read(f"`{name}`", _read_image, root, name, texts.get(_stem(name), {}), reading)
        repeated = _REPEATED.fullmatch(PurePosixPath(name).parts[0]) if "/" in name else None
        yield from [entry] * (int(repeated[1]) if repeated and entry.fault is None else 1)
    folders, stems = {str(PurePosixPath(name).parent) for name in images}, {_stem(name) for name in images}
    for stem, of_stem in texts.items():
        path = PurePosixPath(stem)
        is_document = path.name.lower().startswith(_DOCUMENTS)
        if "txt" in of_stem and stem not in stems and str(path.parent) in folders and not is_document:
            yield Entry(f"`{of_stem['txt']}`", fault="caption without an image")


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _texts_by_stem(files: Sequence[str]) -> dict[str, dict[str, str]]:
    """Map the names of texts without suffix to their kinds, and these to the names."""
    texts: dict[str, dict[str, str]] = {}
    for name in files:
        if kind := _KIND_OF.get(PurePosixPath(name).suffix.lower()):
            texts.setdefault(_stem(name), {})[kind] = name
    return texts


def _read_image(root: Path, name: str, texts: Mapping[str, str], reading: SampleReading) -> dict[str, Any]:
    if not texts:
        raise RowFault("no caption", f"expected `{_stem(name)}.txt` beside it")
    data = {kind: _read_text(root / text, text) for kind, text in texts.items()}
    return {"name": name, **reading.read(data), **entries.describe_file(root / name, name)}


def _read_text(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_TEXT_BYTES + 1)
    except (OSError, ValueError) as error:
        raise RowFault("caption cannot be opened", f"`{name}`: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_TEXT_BYTES:
        raise RowFault("text too long", f"{name} has over {MAX_TEXT_BYTES:,} bytes")
    return data
