"""Captioned images in a folder: described by metadata files or a file of captions, or sorted into a folder per class.

Here: entries from single files, every fault with its place, and captions that are not understood. Not here: rows of a
metadata file (`metadata.py`), texts beside images (`sidecars.py`), archives (`shards.py`), tables (`tables.py`).
`datasets` reads such folders too, but stops at the first fault and does not say where it is.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from palindiff.data import entries
from palindiff.data.entries import Entry, RowFault
from palindiff.data.formats import IMAGE_SUFFIXES, TEXT_SUFFIXES, is_image_file
from palindiff.data.metadata import KARPATHY_SPLIT, METADATA_NAMES, read_records

_SEARCHED_BYTES = 4_000_000  # of a file that may hold captions
_SUFFIXES = b"|".join(re.escape(suffix.encode()) for suffix in sorted(IMAGE_SUFFIXES))
_IMAGE_NAMES = re.compile(rb"[^\s/\\\"',;|<>]+(?:%s)\b" % _SUFFIXES, re.IGNORECASE)
_CELLS = re.compile(rb"[^\r\n\t/\\\"',;|<>]+")  # a name in a cell of its own may contain spaces


@dataclass(frozen=True)
class SplitFolder:
    """A folder with metadata files or a file of captions, and which of its images are those of a split.

    A file may lie above the folders of several splits: then an image belongs to the one that holds it, and to "train"
    if none of them does.
    """

    root: Path
    split: str = "train"
    split_folders: tuple[str, ...] = ()  # sub-folders of the root that are named after splits
    captions_file: Path | None = None  # lists the images of the set; None: the metadata files do
    row_split: str | None = None  # of a file of captions that names the split of each row; None: `split`

    def holds(self, name: str) -> bool:
        """Whether an image, named relative to the root, belongs to the split."""
        first = name.split("/")[0]
        return self.split == (first if first in self.split_folders else "train")


def scan_folder(folder: SplitFolder, image_key: str | None = None, caption_key: str | None = None) -> Iterator[Entry]:
    """Yield an entry for each image that a metadata file lists, then one for each image that none lists.

    Images are named relative to the file that lists them. Of several such files the nearest counts. Rows on one image
    are one entry with all of their captions. Rows on images of other splits are passed over; one with a fault counts
    for every split. A file of captions names images relative to the root, and those that it does not list are left.
    """
    image_keys = (image_key,) if image_key else entries.IMAGE_KEYS
    caption_keys = (caption_key,) if caption_key else entries.CAPTION_KEYS
    files = list_files(folder.root)
    listing = {str(PurePosixPath(name).parent): name for name in find_metadata(folder.root, files)}
    sources = [(folder.root / name, name, place) for place, name in listing.items()]
    if folder.captions_file is not None:
        sources = [(folder.captions_file, folder.captions_file.name, ".")]
    found: dict[tuple[str, str], Entry] = {}  # by image; rows with a fault by their places
    named: dict[str, dict[str, Any]] = {}  # what entries record of each image's file; empty if it was not read
    for file, file_name, place in sources:
        if place != "." and not folder.holds(f"{place}/"):
            continue
        for row, record in read_records(file, file_name, image_keys, folder.row_split or folder.split):
            entry = Entry.read(row, _read_row, folder.root, place, record, image_keys, caption_keys, named)
            if entry.fault is None:
                is_here = folder.captions_file is not None or _nearest(entry.name, listing) == file_name
                is_of_split = KARPATHY_SPLIT in entry.fields or folder.holds(entry.name)
                if not is_here or not is_of_split:
                    continue
            key = (entry.name, "" if entry.fault is None else row)
            first = found.setdefault(key, entry)
            if first is not entry:
                found[key] = replace(first, captions=tuple(dict.fromkeys(first.captions + entry.captions)))
    yield from found.values()
    for name in files if folder.captions_file is None else ():
        if name not in named and folder.holds(name) and is_image_file(folder.root / name):
            yield Entry(f"`{name}`", fault=f"image without a line in {_nearest(name, listing) or METADATA_NAMES[0]}")


def find_metadata(root: Path, files: Sequence[str], split_folders: Sequence[str] = ()) -> list[str]:
    """List the metadata files of a folder and its sub-folders, of which `split_folders` are left out.

    Raises: ValueError if two lie in one folder.
    """
    found = [name for name in files if name.rpartition("/")[2] in METADATA_NAMES]
    found = [name for name in found if name.split("/")[0] not in split_folders]
    for folder, number in Counter(name.rpartition("/")[0] for name in found).items():
        if number > 1:
            raise ValueError(
                f"`{root / folder}` has several of {', '.join(METADATA_NAMES)}. Expected one. Remove the others."
            )
    return found


def scan_classes(root: Path, template: str) -> Iterator[Entry]:
    """Yield an entry for each `CLASS/image`, captioned with the class's name through `template`.

    A class folder without any file is a fault: its class would be missing from the set.
    """
    files = list_files(root)
    for name in files:
        if is_image_file(root / name):
            yield Entry.read(f"`{name}`", _read_class_image, root, name, template)
    filled = {name.split("/")[0] for name in files}
    for folder in sorted(root.glob("[!.]*")):
        if folder.is_dir() and folder.name not in filled:
            yield Entry(f"`{folder.name}`", fault="class folder without images")


def scan_images(root: Path) -> Iterator[Entry]:
    """Yield an entry without captions for each image file of a folder and its sub-folders.

    The label of `CLASS/image` is the class; other images have none.
    """
    for name in list_images(root):
        yield Entry.read(f"`{name}`", _read_labelled_image, root, name)


def unread_captions(path: Path, files: Sequence[str], root: Path) -> str | None:
    """Name a file that seems to hold captions of the images below `root`, in a layout that is not read.

    It names one of these images, or it is a text of an image's name in another folder. `files` are all files of the
    folder `path`, relative to it; `root` is this folder or one below.
    """
    all_files = [path.absolute() / name for name in files]
    images = [file for file in all_files if file.is_relative_to(root.absolute()) and is_image_file(file)]
    names, stems = {file.name for file in images}, {file.stem for file in images}
    for file in all_files:
        if file.suffix.lower() in TEXT_SUFFIXES and file.is_file():  # no broken link
            with file.open("rb") as stream:
                text = stream.read(_SEARCHED_BYTES)
            found = {os.fsdecode(name.strip()) for each in (_IMAGE_NAMES, _CELLS) for name in each.findall(text)}
            if file.stem in stems or found & names:
                return str(file)
    return None


def list_files(root: Path) -> list[str]:
    """List the files in a folder and its sub-folders, as sorted relative names; hidden ones are left out.

    Raises: OSError if a folder cannot be listed.
    """
    found, seen = [], set()
    for folder, subfolders, files in os.walk(root, onerror=_refuse_unlisted, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder visited before
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(each for each in subfolders if not each.startswith("."))
        relative = Path(folder).relative_to(root)
        found += [(relative / file).as_posix() for file in files if not file.startswith(".")]
    return sorted(found)


def _refuse_unlisted(error: OSError) -> None:
    """Without it, `os.walk` leaves the folder out silently."""
    raise OSError(
        f"`{error.filename}` cannot be listed ({error.strerror}). Expected a folder that can be read. Change its "
        "permissions, or move it out of the set."
    ) from error


def list_images(root: Path) -> list[str]:
    """List the image files in a folder and its sub-folders, as `list_files` does; also those that cannot be read."""
    return [name for name in list_files(root) if is_image_file(root / name)]


def has_class_folders(root: Path) -> bool:
    """Whether a direct sub-folder holds an image."""
    return any(is_image_file(file) for file in root.glob("[!.]*/*"))


def _nearest(name: str, listing: dict[str, str]) -> str | None:
    """Return the metadata file in the folder of an image, or the nearest one above it."""
    return next((listing[str(each)] for each in PurePosixPath(name).parents if str(each) in listing), None)


def _read_row(
    root: Path, place: str, read: Callable[[], dict[str, Any]], image_keys: Sequence[str],
    caption_keys: Sequence[str], named: dict[str, dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Read one row, and add the image that it names to `named` even if the row has another fault.

    `place` is the folder that images are named relative to, itself relative to the root.
    """
    record = read()
    name = _image_name(record, image_keys, place)
    described = named.setdefault(name, {})
    caption = next((record[key] for key in caption_keys if record.get(key) is not None), None)
    if caption is None:
        others = {key: value for key, value in record.items() if key not in (*image_keys, "label")}
        raise RowFault("no caption", entries.other_keys(others))
    captions = entries.as_captions(caption)
    if not described:
        described.update(entries.describe_file(root / name, name))
    return {
        "name": name,
        "captions": captions,
        "label": None if record.get("label") is None else str(record["label"]),
        "fields": entries.as_fields(record, (*image_keys, *caption_keys)),
        **described,
    }


def _read_labelled_image(root: Path, name: str) -> dict[str, Any]:
    folder, *rest = Path(name).parts
    return {"name": name, "label": folder if len(rest) == 1 else None, **entries.describe_file(root / name, name)}


def _read_class_image(root: Path, name: str, template: str) -> dict[str, Any]:
    label, *rest = Path(name).parts
    if len(rest) != 1:
        raise RowFault("image outside the class folders", "expected CLASS/image")
    captions = (entries.class_caption(label, template),)
    return {"name": name, "captions": captions, "label": label, **entries.describe_file(root / name, name)}


def _image_name(record: dict[str, Any], keys: Sequence[str], place: str) -> str:
    """Return the image's name within the root, `a/../b.png` as `b.png`."""
    name = next((record[key] for key in keys if key in record), None)
    if not isinstance(name, str) or not name:
        raise RowFault(f"no `{keys[0]}`", f"keys here: {', '.join(list(record)[:8]) or 'none'}")
    plain = os.path.normpath(name)
    if os.path.isabs(plain) or plain.split(os.sep)[0] == os.pardir:
        raise RowFault("image outside the folder", f"`{name}`")
    return (PurePosixPath(place) / Path(plain).as_posix()).as_posix()
