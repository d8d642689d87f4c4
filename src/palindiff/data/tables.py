"""Captioned images in tables of `datasets`: parquet files, and data sets of the Hub.

Here: loading a table, finding its columns, and entries from its rows. The images stay in the table, undecoded.
"""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
from datasets import ClassLabel, Dataset, Features, Image, LargeList, List, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetsError

from palindiff.data import entries
from palindiff.data.entries import Entry, RowFault
from palindiff.data.index import check_datasets_cache, index_on_disk

_SCAN_BATCH = 256


@dataclass(frozen=True)
class Columns:
    """The roles of a table's columns."""

    image: str
    caption: str | None  # None: the class's name is put into a template
    label: str | None
    label_names: tuple[str, ...] = ()


def load_parquet(files: Sequence[Path]) -> Dataset:
    """Map parquet files as one table, with the builder of `datasets`.

    Files without rows, such as of an empty shard, are passed over.

    Raises: ValueError if a file is damaged, or none has rows.
    """
    check_datasets_cache()
    names = [glob.escape(str(file.absolute())) for file in files if _num_rows(file)]
    if not names:
        raise ValueError(f"`{files[0]}` and the parquet files beside it have no rows. Expected some. Check the path.")
    try:
        return load_dataset("parquet", data_files={"train": names}, split="train")
    except (DatasetGenerationError, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(
            f"`{files[0]}` and the parquet files beside it cannot be read ({reason}). "
            "Expected complete parquet files with the same columns. Write them again."
        ) from error


def _num_rows(file: Path) -> int:
    """Read a parquet file's number of rows; of a damaged one any, since loading it says what is wrong."""
    try:
        return int(pyarrow.parquet.read_metadata(file).num_rows)
    except (pyarrow.ArrowException, OSError):
        return 1


def load_hub(name: str, subset: str | None, split: str) -> Dataset:
    """Load a split of a data set on the Hub, or of a folder with a copy of such a data set, with `datasets`.

    Raises: ConnectionError if the Hub cannot be reached; ValueError if there is no such data set, subset or split.
    """
    if is_saved_to_disk(Path(name)):
        return _load_saved(name, split)
    expected = "Expected a local folder or file, or `owner/name` of a data set on the Hub"
    try:
        return load_dataset(name, name=subset, split=split)
    except ConnectionError as error:
        raise ConnectionError(
            f"`{name}` does not exist locally, and the Hub cannot be reached. {expected}. "
            "Check the path, or the connection; a data set loaded before is read from the cache."
        ) from error
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or error).splitlines()[:2]).rstrip(".")
        raise ValueError(
            f"`{name}` cannot be loaded: {reason}. {expected}, its subset and its split. Check these."
        ) from error


def is_saved_to_disk(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def find_columns(features: Features, image: str | None, caption: str | None, source: str) -> Columns:
    """Take the columns that are named, and infer the others where only one column fits.

    Raises: ValueError if a named column is missing or of another type, or if no column or several fit.
    """
    kinds = {name: _kind(feature) for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "image"]
    image = _one_of(images, image, "image", features, source)
    label = "label" if "label" in features and image != "label" else None
    texts = [name for name, kind in kinds.items() if kind in ("text", "texts") and name not in (image, label)]
    usual = [name for name in entries.CAPTION_KEYS if name in texts][:1]
    if caption or texts or not label:
        caption = _one_of(texts if caption else usual or texts, caption, "caption", features, source)
    return Columns(image, caption, label, tuple(getattr(features[label], "names", None) or ()) if label else ())


def index_table(table: Dataset, columns: Columns, template: str) -> tuple[Dataset, Dataset]:
    """Index a table, or map its cached index; return the index and the table's undecoded images."""
    if isinstance(table.features[columns.image], Image):
        table = table.cast_column(columns.image, Image(decode=False))
    arguments = {"table": table, "columns": columns, "template": template}
    index = index_on_disk(scan_table, arguments, [table._fingerprint, asdict(columns), template])
    return index, table.select_columns([columns.image])


def scan_table(table: Dataset, columns: Columns, template: str) -> Iterator[Entry]:
    """Yield an entry for each row of a table, without reading more of an image than `content_id` samples."""
    kinds = {name: _kind(feature) for name, feature in table.features.items()}
    texts = [name for name, kind in kinds.items() if kind in ("text", "scalar") or name == columns.caption]
    batches = table.select_columns([columns.image, *texts]).with_format("arrow").iter(_SCAN_BATCH)
    rows = (row for batch in batches for row in zip(*batch.itercolumns(), strict=True))
    for number, (image, *cells) in enumerate(rows):
        record = {name: cell.as_py() for name, cell in zip(texts, cells, strict=True)}
        yield Entry.read(f"row {number}", _read_row, number, image, record, columns, template)


def _read_row(number: int, image: Any, record: Mapping[str, Any], columns: Columns, template: str) -> dict[str, Any]:
    label = _label(record, columns)
    if columns.caption is not None:
        captions = entries.as_captions(record[columns.caption])
    elif label is not None and label.lstrip("-").isdecimal():
        raise RowFault("no caption", f"class {label} has no name: `{columns.label}` holds numbers, without names")
    elif label is not None:
        captions = (entries.class_caption(label, template),)
    else:
        raise RowFault("no caption", "and no class")
    fields = entries.as_fields(record, (columns.caption or "",))
    file = _describe_cell(image, f"row {number}")
    return {"table_row": number, "captions": captions, "label": label, "fields": fields, **file}


def _describe_cell(cell: Any, place: str) -> dict[str, Any]:
    """Locate a cell's image: its bytes, or a file that `datasets` names."""
    path = None
    if isinstance(cell, Mapping):
        path, cell = (cell[key] if key in cell else None for key in ("path", "bytes"))  # noqa: SIM401  # no `get`
        path = path.as_py() if path is not None else None
    if cell is not None and cell.is_valid:
        with pyarrow.BufferReader(cell.as_buffer()) as stream:
            name = path or place
            return {"name": name, **entries.describe_image(stream, stream.size(), name)}
    if not path or not os.path.isabs(path):
        raise RowFault("no image", f"only the name `{path}`" if path else "")
    return {"name": Path(path).name, **entries.describe_file(Path(path), path)}


def _label(record: Mapping[str, Any], columns: Columns) -> str | None:
    label = record.get(columns.label or "")
    if label is None or (columns.label_names and label < 0):  # -1: the class is not published
        return None
    return columns.label_names[label] if columns.label_names else str(label)


def _load_saved(folder: str, split: str) -> Dataset:
    saved = load_from_disk(folder)
    splits = {"train": saved} if isinstance(saved, Dataset) else saved  # an unsplit data set is the split "train"
    if split not in splits:
        raise ValueError(f"`{folder}` has no split `{split}`. Expected one of {', '.join(splits)}. Use one of these.")
    return splits[split]


def _one_of(possible: Sequence[str], named: str | None, role: str, features: Features, source: str) -> str:
    """Return the named column if it fits the role, or the only one that does."""
    if named in possible or (named is None and len(possible) == 1):
        return named or possible[0]
    found = f"{len(possible) or 'no'} column{'s' if possible else ''} that could hold {role}s"
    if named is not None:
        found = f"no {role}s in its column `{named}`" if named in features else f"no column `{named}`"
    expected, remedy = f"one of {', '.join(possible)}", f"Set `{role}_column`"
    if not possible:
        expected, remedy = f"one besides {', '.join(features)}", f"Add the {role}s to the data"
    raise ValueError(f"`{source}` has {found}. Expected {expected}. {remedy}.")


def _kind(feature: object) -> str:
    """Classify a column: "image", "text", "texts" (several a row), "scalar" (any other single value) or "other"."""
    if isinstance(feature, dict):
        return "image" if _kind(feature.get("bytes")) == "image" else "other"
    if isinstance(feature, List | LargeList):
        return "texts" if _kind(feature.feature) == "text" else "other"
    dtype = feature.dtype if isinstance(feature, Value) else ""
    if isinstance(feature, Image) or "binary" in dtype:
        return "image"
    if "string" in dtype:
        return "text"
    return "scalar" if isinstance(feature, Value | ClassLabel) else "other"
