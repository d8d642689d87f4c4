"""Captioned images in a folder: described by its `metadata.jsonl`, or sorted into a folder for each class.

Here: entries from single files, every fault with its line. Not here: archives (`shards.py`), tables (`tables.py`).
`datasets` reads such folders too, but stops at the first fault and does not say where it is.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from palindiff.data.entries import (
    CAPTION_KEYS,
    IMAGE_SUFFIXES,
    Entry,
    RowFault,
    as_captions,
    as_fields,
    as_record,
    class_caption,
    content_id,
    file_part,
)

METADATA_NAME = "metadata.jsonl"


def scan_folder(root: Path, image_key: str = "file_name", caption_key: str | None = None) -> Iterator[Entry]:
    """Yield an entry for each line of `metadata.jsonl`, then one for each image that no line names."""
    named: set[str] = set()
    with (root / METADATA_NAME).open("rb") as lines:  # as bytes: other line ends than \n may stand inside a caption
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"line {number} of {METADATA_NAME}"
            try:
                record = as_record(line)
                name = _image_name(record, image_key)
                named.add(name)
                yield _entry_of_file(root, name, place, **_told(record, image_key, caption_key))
            except RowFault as fault:
                yield Entry.bad(place, fault)
    for name in list_images(root):
        if name not in named:
            yield Entry.bad(f"`{name}`", RowFault(f"image without a line in {METADATA_NAME}"))


def scan_classes(root: Path, template: str) -> Iterator[Entry]:
    """Yield an entry for each `CLASS/image`, captioned by the class's name through `template`."""
    for name in list_images(root):
        label, *below = Path(name).parts
        if len(below) != 1:
            fault = RowFault("image outside the class folders", "expected CLASS/image")
            yield Entry.bad(f"`{name}`", fault)
            continue
        try:
            yield _entry_of_file(root, name, f"`{name}`", (class_caption(label, template),), label, {})
        except RowFault as fault:
            yield Entry.bad(f"`{name}`", fault)


def list_images(root: Path) -> list[str]:
    """List the image files below a folder, as sorted relative names; what begins with a dot is passed over."""
    found, seen = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link back to where we were
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(each for each in subfolders if not each.startswith("."))
        below = Path(folder).relative_to(root)
        found += [(below / file).as_posix() for file in files if is_image(file)]
    return sorted(found)


def is_image(file_name: str) -> bool:
    """Whether a file's ending says that it is an image."""
    return not file_name.startswith(".") and os.path.splitext(file_name)[1].lower() in IMAGE_SUFFIXES


def has_class_folders(root: Path) -> bool:
    """Whether some folder directly below holds an image."""
    return any(
        each.is_dir() and not each.name.startswith(".") and any(is_image(file.name) for file in each.iterdir())
        for each in sorted(root.iterdir())
    )


def _image_name(record: dict[str, Any], key: str) -> str:
    """The image's name within the folder, `a/../b.png` as `b.png`."""
    name = record.get(key)
    if not isinstance(name, str) or not name:
        told = ", ".join(list(record)[:8]) or "none"
        raise RowFault(f"no `{key}`", f"keys here: {told}")
    plain = os.path.normpath(name)
    if os.path.isabs(plain) or plain.split(os.sep)[0] == os.pardir:
        raise RowFault("image outside the folder", f"`{name}`")
    return Path(plain).as_posix()


def _told(record: dict[str, Any], image_key: str, caption_key: str | None) -> dict[str, Any]:
    keys = (caption_key,) if caption_key else CAPTION_KEYS
    found = next((record[key] for key in keys if record.get(key) is not None), None)
    label = record.get("label")
    return {
        "captions": as_captions(found),
        "label": None if label is None else str(label),
        "fields": as_fields(record, (image_key, *keys)),
    }


def _entry_of_file(
    root: Path, name: str, place: str, captions: tuple[str, ...], label: str | None, fields: dict[str, str]
) -> Entry:
    path = root / name
    try:
        name.encode()
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            content = content_id(file_part(stream), size)
    except (OSError, ValueError) as error:  # ValueError: a name with NUL, or not of UTF-8
        raise RowFault("image cannot be opened", f"`{name}`: {getattr(error, 'strerror', None) or error}") from error
    if size == 0:
        raise RowFault("empty image file", f"`{name}` has 0 bytes")
    return Entry(place, name, str(path), size=size, content=content, captions=captions, label=label, fields=fields)
