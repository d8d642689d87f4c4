"""Captioned images from wherever a user has them, in one shape.

Here: the settings, which kind of source a path is, and where its split lies. Not here: reading each kind (`folder.py`,
`shards.py`, `tables.py`), judging the rows (`index.py`), decoding an image (`images.py`).
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel, field_validator

from palindiff.data.folder import METADATA_NAME, has_class_folders, scan_classes, scan_folder
from palindiff.data.images import Fit
from palindiff.data.index import index_in_memory, judge
from palindiff.data.on_bad import OnBad
from palindiff.data.rows import CaptionedImage, ImageSet
from palindiff.data.shards import ShardReading, expand_pattern, index_tars, is_pattern, read_class_names
from palindiff.data.tables import find_columns, index_table, is_saved_to_disk, load_hub, load_parquet

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["CaptionedImage", "DataConfig", "ImageSet", "Kind", "open_images"]

Kind = Literal["folder", "classes", "webdataset", "parquet", "hub"]

Found = TypeVar("Found")

SPLIT_NAMES = ("train", "validation", "valid", "val", "dev", "test")
_SPLIT_NAME = re.compile(rf"({'|'.join(SPLIT_NAMES)})[-._]")
_IN_NAME = re.compile(rf"(?:^|[-._])({'|'.join(SPLIT_NAMES)})[-._]")
_MISSING = "`{}` does not exist. Expected a folder, .tar, .parquet, a pattern of these or a Hub name. Check the path."
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class DataConfig(BaseModel, frozen=True, extra="forbid"):
    """Which images, what their rows are called, and how they become squares."""

    path: str  # a folder, a tar or parquet file, a pattern such as "{split}/{00000..00331}.tar", or a Hub name
    kind: Literal["auto"] | Kind = "auto"  # "auto": by what lies there; else what to take it for
    split: str = "train"  # a folder below `path`, `{split}` in it, or a split of a Hub set; unsplit data are "train"
    subset: str | None = None  # the configuration of a Hub set that has several; None: it has one
    fit: Fit = "crop"  # "crop": the middle square; "pad": the whole image on white
    image_column: str | None = None  # key or column of the image; None: "file_name", or the only one that can be
    caption_column: str | None = None  # of the captions; None: "captions", "caption", "text", KEY.txt, or the only one
    caption_template: str = "a photo of a {c}"  # the caption where a row has a class {c} alone
    on_bad: OnBad = "refuse"  # a bad row: "refuse" the source, naming all; or "skip" it, telling how many and why
    check_images: bool = False  # True: decode each once when opening, so that damaged ones count as bad rows

    @field_validator("caption_template")
    @classmethod
    def _names_the_class(cls, template: str) -> str:
        if "{c}" not in template:
            raise ValueError(f"`{template}` names no class. Expected {{c}} where its name goes: 'a photo of a {{c}}'")
        return template


def open_images(config: DataConfig) -> ImageSet:
    """Open the rows of a split, checked but not decoded.

    Raises: ValueError if rows are bad (all are told at once), the source has no such split, or is of no known kind;
        FileNotFoundError if nothing lies at the path; ConnectionError if the Hub cannot be reached.
    """
    path, split = _place(config)
    kind = find_kind(path, split) if config.kind == "auto" else config.kind
    source = f"{path}/{split}" if (path / split).is_dir() else str(path)
    if kind == "hub":
        table, images = _index_table(load_hub(str(path), config.subset, config.split), source, config)
    elif kind == "parquet":
        table, images = _index_table(load_parquet(_found(_parquet_files, path, split)), source, config)
    elif kind == "webdataset":
        tars = _found(_tars, path, split)
        reading = ShardReading(config.caption_template, config.caption_column, read_class_names(tars))
        table, images = index_tars(tars, reading), None
    elif kind == "classes":
        root = _found(_class_root, path, split)
        table, images = index_in_memory(scan_classes(root, config.caption_template)), None
    else:
        root = _found(_metadata_root, path, split)
        entries = scan_folder(root, config.image_column or "file_name", config.caption_column)
        table, images = index_in_memory(entries), None
    return judge(table, images, source, config.on_bad, config.check_images)


def find_shards(config: DataConfig) -> list[Path]:
    """List the archives of a source that is made of tars, none for any other."""
    path, split = _place(config)
    kind = find_kind(path, split) if config.kind == "auto" else config.kind
    return _found(_tars, path, split) if kind == "webdataset" else []


def _place(config: DataConfig) -> tuple[Path, str]:
    """The path of a split, and the split to look for there: a path that names the split holds nothing else."""
    path = Path(config.path.replace("{split}", config.split)).expanduser()
    return path, "train" if "{split}" in config.path else config.split


def find_kind(path: Path, split: str) -> Kind:
    """Progress by what lies at a path how to read it.

    Raises: FileNotFoundError if nothing lies there and it is no Hub name; ValueError if it is of no known kind.
    """
    if not path.exists() and not is_pattern(str(path)):
        if _HUB_NAME.fullmatch(str(path)) and not (len(path.parts) == 2 and path.parent.is_dir()):
            return "hub"
        raise FileNotFoundError(_MISSING.format(path))
    for kind, finder in _FINDERS.items():
        if finder(path, split):
            return kind
    raise ValueError(_nothing_found(path, split))


def _index_table(table: "Dataset", source: str, config: DataConfig) -> "tuple[Dataset, Dataset]":
    columns = find_columns(table.features, config.image_column, config.caption_column, source)
    return index_table(table, columns, config.caption_template)


def _root(path: Path, split: str, holds_rows: Callable[[Path], bool]) -> Path | None:
    """The folder of a split; what is not split is the split "train" and no other."""
    folders = [path / split, *([path] if split == "train" else [])]
    return next((folder.absolute() for folder in folders if folder.is_dir() and holds_rows(folder)), None)


def _metadata_root(path: Path, split: str) -> Path | None:
    return _root(path, split, lambda folder: (folder / METADATA_NAME).is_file())


def _class_root(path: Path, split: str) -> Path | None:
    """Class folders of a split; folders that are splits themselves are no classes of an unsplit set."""
    root = _root(path, split, has_class_folders)
    is_split = root == path.absolute() and any(_is_split(each) for each in path.iterdir())
    return None if is_split else root


def _is_split(folder: Path) -> bool:
    return folder.is_dir() and (folder.name in SPLIT_NAMES or (folder / METADATA_NAME).is_file())


def _tars(path: Path, split: str) -> list[Path]:
    """Tars as `_files` finds them; of a folder that holds several splits, those named after this one."""
    if not path.is_dir() or any((path / split).glob("*.tar")):
        return _files(path, split, ".tar")
    tars = [file.absolute() for file in sorted(path.glob("*.tar"))]
    splits = {file: named[1] for file in tars if (named := _IN_NAME.search(file.name))}
    return [file for file, named in splits.items() if named == split] if splits else tars * (split == "train")


def _parquet_files(path: Path, split: str) -> list[Path]:
    """Parquet files as `_files` finds them, or named after their split, as the Hub keeps them."""
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


_FINDERS: dict[Kind, Callable[[Path, str], object]] = {
    "folder": _metadata_root,
    "webdataset": _tars,  # before parquet: img2dataset writes both, and the tars hold the images
    "parquet": _parquet_files,
    "hub": lambda path, split: is_saved_to_disk(path),
    "classes": _class_root,
}


def _found(finder: Callable[[Path, str], Found | None], path: Path, split: str) -> Found:
    if not path.exists() and not is_pattern(str(path)):
        raise FileNotFoundError(_MISSING.format(path))
    if not (found := finder(path, split)):
        raise ValueError(_nothing_found(path, split))
    return found


def _nothing_found(path: Path, split: str) -> str:
    if not path.is_dir():
        told = "is not split" if split != "train" else "is of no known kind"
        return (
            f"`{path}` {told}, so it cannot be read as `{split}`. Expected a folder, a .tar or .parquet file, or a "
            "pattern of these; `{split}` in it stands for the split."
        )
    folders = [each.name for each in sorted(path.iterdir()) if each.is_dir()]
    names = [*folders, *(each for each in SPLIT_NAMES if each not in folders)]  # the latter: in the names of files
    splits = [name for name in names if name != split and any(finder(path, name) for finder in _FINDERS.values())]
    beside = f" (splits found: {', '.join(splits)})" if splits else ""
    return (
        f"`{path}` has no images of the split `{split}`{beside}. Expected {METADATA_NAME}, *.tar, *.parquet or "
        f"class folders in `{path / split}`, or for `train` in `{path}`. Check `path` and `split`."
    )
