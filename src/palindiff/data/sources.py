"""Captioned images from any source, in one form.

Here: the settings, which kind of source a path is, and where its split is. Not here: reading each kind (`folder.py`,
`shards.py`, `tables.py`), checking the rows (`index.py`), decoding an image (`images.py`).
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

from palindiff.data.folder import METADATA_NAME, SplitFolder, has_class_folders, scan_classes, scan_folder
from palindiff.data.images import Fit
from palindiff.data.index import check_rows, index_in_memory
from palindiff.data.on_bad import OnBad
from palindiff.data.rows import ImageSet
from palindiff.data.shards import ShardReading, expand_pattern, index_tars, is_pattern, read_class_names
from palindiff.data.tables import find_columns, index_table, is_saved_to_disk, load_hub, load_parquet

Kind = Literal["folder", "classes", "webdataset", "parquet", "hub"]

SPLIT_NAMES = ("train", "validation", "valid", "val", "dev", "test")
_SPLIT_NAME = re.compile(rf"({'|'.join(SPLIT_NAMES)})[-._]")
_IN_NAME = re.compile(rf"(?:^|[-._])({'|'.join(SPLIT_NAMES)})[-._]")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class DataConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Which images to read, how their rows are named, and how they become squares."""

    path: str  # a folder, a tar or parquet file, a pattern such as "{split}/{00000..00331}.tar", or a Hub name
    kind: Literal["auto"] | Kind = "auto"  # "auto": detected from the files
    split: str = "train"  # a sub-folder of `path`, `{split}` in it, or a split of a Hub set; unsplit data are "train"
    validation_fraction: float = Field(0, ge=0, lt=1)  # of the split, held out from training; 0: another split is used
    subset: str | None = None  # the configuration of a Hub data set; None: it has only one
    fit: Fit = "crop"  # "crop": the middle square; "pad": the whole image on white
    image_column: str | None = None  # key or column of the image; None: "file_name", or the only one that can be
    caption_column: str | None = None  # of the captions; None: "captions", "caption", "text", KEY.txt, or the only one
    caption_template: str = "a photo of a {c}"  # the caption of a row that has only a class {c}
    on_bad: OnBad = "refuse"  # bad rows: "refuse" the source, listing them; or "skip" them, reporting how many and why
    check_images: bool = False  # True: decode each once on opening, so that damaged ones count as bad rows

    @field_validator("caption_template")
    @classmethod
    def _names_the_class(cls, template: str) -> str:
        if "{c}" not in template:
            raise ValueError(
                f"`{template}` names no class. Expected {{c}} in place of its name. Use 'a photo of a {{c}}'."
            )
        return template


def open_images(config: DataConfig) -> ImageSet:
    """Open the rows of a split, checked but not decoded.

    Raises: ValueError if rows are bad (all are reported at once), the source has no such split, or is of no known
        kind; FileNotFoundError if the path does not exist; ConnectionError if the Hub cannot be reached.
    """
    kind, found = find_source(config)
    path, split = _split_path(config)
    source = f"{path}/{split}" if (path / split).is_dir() else str(path)
    images = None
    if kind == "folder":
        index = index_in_memory(scan_folder(found, config.image_column or "file_name", config.caption_column))
    elif kind == "classes":
        index = index_in_memory(scan_classes(found, config.caption_template))
    elif kind == "webdataset":
        reading = ShardReading(config.caption_template, config.caption_column, read_class_names(found))
        index = index_tars(found, reading)
    else:
        table = load_parquet(found) if kind == "parquet" else load_hub(found, config.subset, config.split)
        columns = find_columns(table.features, config.image_column, config.caption_column, source)
        index, images = index_table(table, columns, config.caption_template)
    return check_rows(index, images, source, config.on_bad, config.check_images)


def find_shards(config: DataConfig) -> list[Path]:
    """List the archives of a source that is made of tars; empty for any other."""
    kind, found = find_source(config)
    return found if kind == "webdataset" else []


def find_source(config: DataConfig) -> tuple[Kind, Any]:
    """Detect the kind of a source from its files, and find those of the split.

    Returns: the kind, and the split's folder, its archives or tables, or the name of a Hub data set.
    Raises: FileNotFoundError if nothing exists at the path and it is no Hub name; ValueError if the path has no such
        split or is of no known kind.
    """
    path, split = _split_path(config)
    is_missing = not path.exists() and not is_pattern(str(path))
    is_hub_name = _HUB_NAME.fullmatch(str(path)) and not (len(path.parts) == 2 and path.parent.is_dir())
    if config.kind == "hub" or (config.kind == "auto" and is_missing and is_hub_name):
        return "hub", str(path)
    if is_missing:
        raise FileNotFoundError(
            f"`{path}` does not exist. Expected a folder, .tar, .parquet, a pattern of these or a Hub name. "
            "Check the path."
        )
    for kind, finder in _FINDERS.items():
        if config.kind in (kind, "auto") and (found := finder(path, split)):
            return kind, found
    raise ValueError(_nothing_found(path, split))


def _split_path(config: DataConfig) -> tuple[Path, str]:
    """Return the path, and the split to find in it: a path that names the split holds nothing else."""
    path = Path(config.path.replace("{split}", config.split)).expanduser()
    return path, "train" if "{split}" in config.path else config.split


def _root(path: Path, split: str, holds_rows: Callable[[Path], bool]) -> Path | None:
    """Return the folder of a split; unsplit data are the split "train" and no other."""
    folders = [path / split, *([path] if split == "train" else [])]
    return next((folder.absolute() for folder in folders if folder.is_dir() and holds_rows(folder)), None)


def _metadata_folder(path: Path, split: str) -> SplitFolder | None:
    """Find the metadata file of a split: in its own folder, or above the folders of all splits."""
    if (path / split / METADATA_NAME).is_file():
        return SplitFolder((path / split).absolute())
    if not path.is_dir() or not (path / METADATA_NAME).is_file():
        return None
    folders = tuple(name for name in SPLIT_NAMES if (path / name).is_dir())
    is_there = split == "train" or split in folders
    return SplitFolder(path.absolute(), split, folders) if is_there else None


def _class_root(path: Path, split: str) -> Path | None:
    """Return the parent of a split's class folders; folders that are splits are not classes of an unsplit set."""
    root = _root(path, split, has_class_folders)
    if root != path.absolute():
        return root
    folders = [each for each in path.iterdir() if each.is_dir()]
    return None if any(each.name in SPLIT_NAMES or (each / METADATA_NAME).is_file() for each in folders) else root


def _tars(path: Path, split: str) -> list[Path]:
    """List tars as `_files` does; in a folder that holds several splits, those named after this one."""
    if not path.is_dir() or any((path / split).glob("*.tar")):
        return _files(path, split, ".tar")
    tars = [file.absolute() for file in sorted(path.glob("*.tar"))]
    splits = {file: named[1] for file in tars if (named := _IN_NAME.search(file.name))}
    return [file for file, named in splits.items() if named == split] if splits else tars * (split == "train")


def _parquet_files(path: Path, split: str) -> list[Path]:
    """List parquet files as `_files` does, or those named after their split, as on the Hub."""
    for folder in (path, path / "data"):
        files = sorted(folder.glob("*.parquet")) if folder.is_dir() else []
        if of_split := [file.absolute() for file in files if re.match(rf"{re.escape(split)}[-._]", file.name)]:
            return of_split
        if any(_SPLIT_NAME.match(file.name) for file in files):
            return []  # named after splits, but not after this one
    return _files(path, split, ".parquet")


def _files(path: Path, split: str, suffix: str) -> list[Path]:
    if path.is_dir():
        root = _root(path, split, lambda folder: any(folder.glob(f"*{suffix}")))
        return sorted(root.glob(f"*{suffix}")) if root else []
    if path.suffix != suffix or split != "train":
        return []
    return [file.absolute() for file in expand_pattern(str(path))]


_FINDERS: dict[Kind, Callable[[Path, str], Any]] = {
    "folder": _metadata_folder,
    "webdataset": _tars,  # before parquet: img2dataset writes both, and the tars hold the images
    "parquet": _parquet_files,
    "hub": lambda path, split: str(path) if is_saved_to_disk(path) else None,
    "classes": _class_root,
}


def _nothing_found(path: Path, split: str) -> str:
    if not path.is_dir():
        found = "is not split" if split != "train" else "is of no known kind"
        return (
            f"`{path}` {found}, so it cannot be read as `{split}`. Expected a folder, a .tar or .parquet file, or a "
            "pattern of these. Use `{split}` in the path in place of the split's name."
        )
    folders = [each.name for each in sorted(path.iterdir()) if each.is_dir()]
    names = [*folders, *(each for each in SPLIT_NAMES if each not in folders)]  # the latter from file names
    splits = [name for name in names if name != split and any(finder(path, name) for finder in _FINDERS.values())]
    others = f" (splits found: {', '.join(splits)})" if splits else ""
    return (
        f"`{path}` has no images of the split `{split}`{others}. Expected {METADATA_NAME}, *.tar, *.parquet or "
        f"class folders in `{path / split}`, or for `train` in `{path}`. Check `path` and `split`."
    )
