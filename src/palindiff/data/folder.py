"""Captioned images in a folder: described by its `metadata.jsonl`, or sorted into a folder for each class.

Here: entries from single files, every fault with its line. Not here: archives (`shards.py`), tables (`tables.py`).
`datasets` reads such folders too, but stops at the first fault and does not say where it is.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palindiff.data import entries
from palindiff.data.entries import Entry, RowFault

METADATA_NAME = "metadata.jsonl"


@dataclass(frozen=True)
class SplitFolder:
    """A folder with a `metadata.jsonl`, and which of its rows are those of a split.

    The file may lie above the folders of several splits: then a row belongs to the one that holds its image, and to
    "train" if none of them does.
    """

    root: Path
    split: str = "train"
    split_folders: tuple[str, ...] = ()  # sub-folders of the root that are named after splits

    def holds(self, name: str) -> bool:
        """Whether an image, named relative to the root, belongs to the split."""
        first = name.split("/")[0]
        return self.split == (first if first in self.split_folders else "train")


def scan_folder(folder: SplitFolder, image_key: str = "file_name", caption_key: str | None = None) -> Iterator[Entry]:
    """Yield an entry for each line of `metadata.jsonl`, then one for each image that no line names.

    Lines on images of other splits are passed over; one with a fault counts for every split.
    """
    root = folder.root
    caption_keys = (caption_key,) if caption_key else entries.CAPTION_KEYS
    named: set[str] = set()
    with (root / METADATA_NAME).open("rb") as lines:  # as bytes: a caption may hold other line ends than \n
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"line {number} of {METADATA_NAME}"
                entry = Entry.read(place, _read_line, root, line, image_key, caption_keys, named)
                if entry.fault is not None or folder.holds(entry.name):
                    yield entry
    for name in list_images(root):
        if name not in named and folder.holds(name):
            yield Entry(f"`{name}`", fault=f"image without a line in {METADATA_NAME}")


def scan_classes(root: Path, template: str) -> Iterator[Entry]:
    """Yield an entry for each `CLASS/image`, captioned with the class's name through `template`."""
    for name in list_images(root):
        yield Entry.read(f"`{name}`", _read_class_image, root, name, template)


def list_images(root: Path) -> list[str]:
    """List the image files in a folder and its sub-folders, as sorted relative names; hidden ones are left out."""
    found, seen = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder visited before
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(each for each in subfolders if not each.startswith("."))
        relative = Path(folder).relative_to(root)
        found += [(relative / file).as_posix() for file in files if is_image(file)]
    return sorted(found)


def is_image(file_name: str) -> bool:
    """Whether a file's suffix is that of an image."""
    return not file_name.startswith(".") and os.path.splitext(file_name)[1].lower() in entries.IMAGE_SUFFIXES


def has_class_folders(root: Path) -> bool:
    """Whether a direct sub-folder holds an image."""
    return any(is_image(file.name) for file in root.glob("[!.]*/*"))


def _read_line(
    root: Path, line: bytes, image_key: str, caption_keys: Sequence[str], named: set[str]
) -> dict[str, Any]:
    """Read the row of one line, and add the image that it names to `named` even if the row has another fault."""
    record = entries.as_record(line)
    name = _image_name(record, image_key)
    named.add(name)
    caption = next((record[key] for key in caption_keys if record.get(key) is not None), None)
    if caption is None:
        others = {key: value for key, value in record.items() if key not in (image_key, "label")}
        raise RowFault("no caption", entries.other_keys(others))
    return {
        "name": name,
        "captions": entries.as_captions(caption),
        "label": None if record.get("label") is None else str(record["label"]),
        "fields": entries.as_fields(record, (image_key, *caption_keys)),
        **entries.describe_file(root / name, name),
    }


def _read_class_image(root: Path, name: str, template: str) -> dict[str, Any]:
    label, *rest = Path(name).parts
    if len(rest) != 1:
        raise RowFault("image outside the class folders", "expected CLASS/image")
    captions = (entries.class_caption(label, template),)
    return {"name": name, "captions": captions, "label": label, **entries.describe_file(root / name, name)}


def _image_name(record: dict[str, Any], key: str) -> str:
    """Return the image's name within the folder, `a/../b.png` as `b.png`."""
    name = record.get(key)
    if not isinstance(name, str) or not name:
        raise RowFault(f"no `{key}`", f"keys here: {', '.join(list(record)[:8]) or 'none'}")
    plain = os.path.normpath(name)
    if os.path.isabs(plain) or plain.split(os.sep)[0] == os.pardir:
        raise RowFault("image outside the folder", f"`{name}`")
    return Path(plain).as_posix()
