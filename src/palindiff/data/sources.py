"""Captioned images from any source, in one form.

Here: the settings, which kind of source a path is, and where its split is. Not here: reading each kind (`folder.py`,
`sidecars.py`, `shards.py`, `tables.py`), checking the rows (`index.py`), decoding an image (`images.py`).
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from palindiff.data.conditions import Where, select_where
from palindiff.data.folder import (
    SplitFolder,
    find_metadata,
    has_class_folders,
    list_files,
    scan_classes,
    scan_folder,
    scan_images,
    unread_captions,
)
from palindiff.data.images import Fit
from palindiff.data.index import check_rows, index_in_memory
from palindiff.data.metadata import METADATA_NAMES
from palindiff.data.on_bad import OnBad
from palindiff.data.rows import ImageSet
from palindiff.data.samples import SampleReading, read_class_names
from palindiff.data.shards import expand_pattern, index_tars, is_pattern
from palindiff.data.sidecars import has_sidecars, scan_sidecars
from palindiff.data.tables import find_columns, index_table, is_saved_to_disk, load_hub, load_parquet

Lister = Callable[[Path], list[str]]  # lists all files of a folder, each folder once
Kind = Literal["folder", "sidecars", "classes", "webdataset", "parquet", "hub"]

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
    captions_file: str | None = None  # lists the images with captions, relative to `path`; None: the usual files do
    image_column: str | None = None  # key or column of the image; None: "file_name", or the only one that can be
    caption_column: str | None = None  # of the captions; None: "captions", "caption", "text", KEY.txt, or the only one
    caption_template: str = "a photo of a {c}"  # the caption of a row that has only a class {c}
    on_bad: OnBad = "refuse"  # bad rows: "refuse" the source, listing them; or "skip" them, reporting how many and why
    check_images: bool = False  # True: decode each once on opening, so that damaged ones count as bad rows
    where: Where = ()  # KEY=PATTERN or KEY!=PATTERN: keep the rows that meet all, such as style=flat
    num_images: int | None = Field(None, gt=0)  # that training chooses of those rows, by hash; None: all

    @field_validator("caption_template")
    @classmethod
    def _names_the_class(cls, template: str) -> str:
        if "{c}" not in template:
            raise ValueError(
                f"`{template}` names no class. Expected {{c}} in place of its name. Use 'a photo of a {{c}}'."
            )
        return template

    @model_validator(mode="after")
    def _is_a_folder_with_captions(self) -> "DataConfig":
        if self.captions_file is not None and self.kind not in ("auto", "folder"):
            raise ValueError(
                f"`captions_file` is set for the kind `{self.kind}`. Expected `auto` or `folder`: the file lists "
                "images of a folder. Remove one of the two."
            )
        return self


def open_images(config: DataConfig) -> ImageSet:
    """Open the rows of a split that meet the conditions, checked but not decoded.

    Raises: ValueError if rows are bad (all are reported at once), if the source has no such split or is not a
        supported kind, or if it has no row or column of a condition; FileNotFoundError if the path does not exist;
        ConnectionError if the Hub cannot be reached.
    """
    kind, found = find_source(config)
    path, split = _split_path(config)
    source = f"{path}/{split}" if (path / split).is_dir() else str(path)
    images = None
    if kind == "folder":
        index = index_in_memory(scan_folder(found, config.image_column, config.caption_column))
    elif kind == "classes":
        index = index_in_memory(scan_classes(found, config.caption_template))
    elif kind == "sidecars":
        reading = SampleReading(config.caption_template, config.caption_column, read_class_names(found))
        index = index_in_memory(scan_sidecars(found, list_files(found), reading))
    elif kind == "webdataset":
        reading = SampleReading(config.caption_template, config.caption_column, read_class_names(found[0].parent))
        index = index_tars(found, reading)
    else:
        table = load_parquet(found) if kind == "parquet" else load_hub(found, config.subset, config.split)
        columns = find_columns(table.features, config.image_column, config.caption_column, source)
        index, images = index_table(table, columns, config.caption_template)
    rows = check_rows(index, images, source, config.on_bad, config.check_images)
    return select_where(rows, config.where)


def open_any_images(config: DataConfig) -> ImageSet:
    """Open a source as `open_images`; of a folder whose images have no captions, all image files below it.

    Class folders count as such a folder: their images are named by their paths, and have no captions.

    Raises: as `open_images`.
    """
    path, split = _split_path(config)
    if path.is_dir() and config.kind == "auto" and config.captions_file is None:
        listed = cache(list_files)
        if not any(find(path, split, listed) for kind, find in _FINDERS.items() if kind != "classes"):
            folder = path / split if (path / split).is_dir() else path
            index = index_in_memory(scan_images(folder.absolute()))
            return check_rows(index, None, str(folder), config.on_bad, config.check_images)
    return open_images(config)


def find_shards(config: DataConfig) -> list[Path]:
    """List the archives of a source that is made of tars; empty for any other."""
    kind, found = find_source(config)
    return found if kind == "webdataset" else []


def find_source(config: DataConfig) -> tuple[Kind, Any]:
    """Detect the kind of a source from its files, and find those of the split.

    Returns: the kind, and the split's folder, its archives or tables, or the name of a Hub data set.
    Raises: FileNotFoundError if nothing exists at the path and it is not a Hub name; ValueError if the path has no
        such split or is not a supported kind of source.
    """
    path, split = _split_path(config)
    if config.captions_file is not None:
        return "folder", _captions_folder(path, config)
    is_missing = not path.exists() and not is_pattern(str(path))
    is_hub_name = _HUB_NAME.fullmatch(str(path)) and not (len(path.parts) == 2 and path.parent.is_dir())
    if config.kind == "hub" or (config.kind == "auto" and is_missing and is_hub_name):
        return "hub", str(path)
    if is_missing:
        raise FileNotFoundError(
            f"`{path}` does not exist. Expected a folder, .tar, .parquet, a pattern of these or a Hub name. "
            "Check the path."
        )
    listed = cache(list_files)
    for kind, finder in _FINDERS.items():
        if config.kind in (kind, "auto") and (found := finder(path, split, listed)):
            if config.kind == "auto" and kind == "classes":
                _check_no_captions(path, listed(path), found)
            return kind, found
    raise ValueError(_nothing_found(path, split, listed))


def _check_no_captions(path: Path, files: list[str], root: Path) -> None:
    """Refuse class folders if a file seems to hold captions of their images, which the classes would replace."""
    if file := unread_captions(path, files, root):
        raise ValueError(
            f"`{file}` seems to hold captions of the images in `{root}`. Expected {_EXPECTED}. Set `captions_file` to "
            "a file that lists images with captions, or `kind` to `classes` if the names of the folders are meant."
        )


def _split_path(config: DataConfig) -> tuple[Path, str]:
    """Return the path, and the split to find in it: a path that names the split holds nothing else."""
    path = Path(config.path.replace("{split}", config.split)).expanduser()
    return path, "train" if "{split}" in config.path else config.split


def _root(path: Path, split: str, holds_rows: Callable[[Path], bool]) -> Path | None:
    """Return the folder of a split; unsplit data are the split "train" and no other."""
    folders = [path / split, *([path] if split == "train" else [])]
    return next((folder.absolute() for folder in folders if folder.is_dir() and holds_rows(folder)), None)


def _captions_folder(path: Path, config: DataConfig) -> SplitFolder:
    """Find the file of captions that the settings name; one whose name is the same for all splits divides its rows."""
    file = path / str(config.captions_file).replace("{split}", config.split)
    if not path.is_dir() or not file.is_file():
        raise FileNotFoundError(
            f"`{file}` does not exist. Expected a file of captions, named relative to the folder of the images in "
            "`path`. Set `captions_file` to such a file."
        )
    if "{split}" in f"{config.path}{config.captions_file}":
        return SplitFolder(path.absolute(), captions_file=file, row_split=config.split)
    return SplitFolder(path.absolute(), config.split, _split_folders(path), file)


def _metadata_folder(path: Path, split: str, listed: Lister) -> SplitFolder | None:
    """Find the metadata files of a split: in its own folder and below, or above the folders of all splits."""
    own = path / split
    if own.is_dir() and find_metadata(own, listed(own)):
        return SplitFolder(own.absolute())
    if not path.is_dir():
        return None
    folders = _split_folders(path)
    found = find_metadata(path, listed(path), folders)
    is_there = split == "train" if split not in folders else not set(METADATA_NAMES).isdisjoint(found)
    return SplitFolder(path.absolute(), split, folders) if found and is_there else None


def _split_folders(path: Path) -> tuple[str, ...]:
    return tuple(name for name in SPLIT_NAMES if (path / name).is_dir())


def _sidecar_root(path: Path, split: str, listed: Lister) -> Path | None:
    """Return the folder of a split whose images have texts beside them."""
    root = _root(path, split, lambda folder: has_sidecars(folder, listed(folder)))
    return None if root == path.absolute() and _split_folders(path) else root


def _class_root(path: Path, split: str, _listed: Lister) -> Path | None:
    """Return the parent of a split's class folders; folders that are splits are not classes of an unsplit set."""
    root = _root(path, split, has_class_folders)
    if root != path.absolute():
        return root
    folders = [each for each in path.iterdir() if each.is_dir()]
    return None if any(each.name in SPLIT_NAMES for each in folders) else root


def _tars(path: Path, split: str, _listed: Lister) -> list[Path]:
    """List tars as `_files` does; in a folder that holds several splits, those named after this one."""
    if not path.is_dir() or any((path / split).glob("*.tar")):
        return _files(path, split, ".tar")
    tars = [file.absolute() for file in sorted(path.glob("*.tar"))]
    splits = {file: named[1] for file in tars if (named := _IN_NAME.search(file.name))}
    return [file for file, named in splits.items() if named == split] if splits else tars * (split == "train")


def _parquet_files(path: Path, split: str, _listed: Lister) -> list[Path]:
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


_FINDERS: dict[Kind, Callable[[Path, str, Lister], Any]] = {
    "folder": _metadata_folder,
    "webdataset": _tars,  # before parquet: img2dataset writes both, and the tars hold the images
    "sidecars": _sidecar_root,  # as before
    "parquet": _parquet_files,
    "hub": lambda path, split, _: str(path) if is_saved_to_disk(path) else None,
    "classes": _class_root,
}


_EXPECTED = f"{', '.join(METADATA_NAMES)}, images with texts beside them, *.tar, *.parquet or class folders"


def _nothing_found(path: Path, split: str, listed: Lister) -> str:
    if not path.is_dir():
        found = "is not split" if split != "train" else "is not a supported kind of source"
        return (
            f"`{path}` {found}, so it cannot be read as `{split}`. Expected a folder, a .tar or .parquet file, or a "
            "pattern of these. Use `{split}` in the path in place of the split's name."
        )
    folders = [each.name for each in sorted(path.iterdir()) if each.is_dir()]
    names = [*folders, *(each for each in SPLIT_NAMES if each not in folders)]  # the latter from file names
    splits = [
        name for name in names if name != split and any(finder(path, name, listed) for finder in _FINDERS.values())
    ]
    others = f" (splits found: {', '.join(splits)})" if splits else ""
    return (
        f"`{path}` has no images of the split `{split}`{others}. Expected {_EXPECTED} "
        f"in `{path / split}`, or for `train` in `{path}`. Check `path` and `split`."
    )
