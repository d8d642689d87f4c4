"""Rows of a file that lists images with their captions: JSON lines, CSV, parquet, or COCO's annotations.

Here: records from one file, each with its place. Not here: the images (`folder.py`).
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet  # type: ignore[import-untyped]

from palindiff.data import entries
from palindiff.data.entries import RowFault

Record = tuple[str, Callable[[], dict[str, Any]]]
"""How messages refer to a row, and a function that reads it or raises RowFault"""
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_DELIMITERS = (",", "\t", ";", "|")
_COCO_KEYS = ("images", "annotations")


def read_records(file: Path, name: str, image_keys: Sequence[str]) -> Iterator[Record]:
    """Yield the rows of a file that messages call `name`.

    COCO's annotations give one row for each image; other formats as many as they list.

    Raises: ValueError if the file is damaged as a whole, of another layout, or a table without any of `image_keys`.
    """
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise ValueError(
            f"`{file}` has no suffix of a file of captions. Expected one of {', '.join(_READERS)}. "
            "Rename or convert it."
        )
    yield from reader(file, name, image_keys)


def _json_lines(file: Path, name: str, image_keys: Sequence[str]) -> Iterator[Record]:
    with file.open("rb") as lines:  # as bytes: a caption may hold other line ends than \n
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"line {number} of {name}", partial(entries.as_record, line)


def _csv(file: Path, name: str, image_keys: Sequence[str]) -> Iterator[Record]:
    """Read CSV with the delimiter by which its first line has a column of images."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        first = lines.readline()
        headers = {
            sign: [key.strip() for key in next(csv.reader([first], delimiter=sign), [])] for sign in _DELIMITERS
        }
        delimiter = next((sign for sign in _DELIMITERS if set(image_keys) & set(headers[sign])), None)
        if delimiter is None:
            raise _no_image_column(file, image_keys, max(headers.values(), key=len))
        header, rows = headers[delimiter], csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        while True:
            place = f"line {rows.line_num + 2} of {name}"
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield place, partial(_broken, "broken CSV", str(error))
                continue
            if row:
                yield place, partial(_csv_record, header, row)


def _csv_record(header: Sequence[str], row: Sequence[str]) -> dict[str, Any]:
    if len(row) != len(header):
        raise RowFault("broken CSV", f"{len(row)} values; the first line names {len(header)} columns")
    try:
        "".join(row).encode()
    except UnicodeEncodeError as error:
        raise RowFault("not UTF-8", error.reason) from error
    return {key: value.strip() or None for key, value in zip(header, row, strict=True)}


def _parquet(file: Path, name: str, image_keys: Sequence[str]) -> Iterator[Record]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
        if not set(image_keys) & set(table.schema_arrow.names):
            raise _no_image_column(file, image_keys, table.schema_arrow.names)
        rows = (row for batch in table.iter_batches(1024) for row in batch.to_pylist())
        for number, row in enumerate(rows):
            yield f"row {number} of {name}", partial(dict, row)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, "a complete parquet file", str(error).splitlines()[0]) from error


def _json(file: Path, name: str, image_keys: Sequence[str]) -> Iterator[Record]:
    """Read a list of records, or COCO's annotations with their images."""
    expected = f"a list of objects, or COCO's keys {' and '.join(_COCO_KEYS)}"
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _unreadable(file, expected, f"broken JSON: {error}") from error
    if isinstance(found, list):
        for number, record in enumerate(found):
            yield f"record {number} of {name}", partial(entries.check_record, record)
        return
    lists: list[Any] = [found.get(key) for key in _COCO_KEYS] if isinstance(found, dict) else [None]
    if not all(isinstance(each, list) and all(isinstance(row, dict) for row in each) for each in lists):
        keys = f"keys {', '.join(map(str, list(found)[:8]))}" if isinstance(found, dict) else type(found).__name__
        raise _unreadable(file, expected, keys)
    images, annotations = lists
    if not any("caption" in row for row in annotations):
        raise _unreadable(
            file, "annotations with captions, such as captions_train2017.json", "none of them has a caption"
        )
    captions: dict[Any, list[Any]] = {}
    for row in annotations:
        captions.setdefault(str(row.get("image_id")), []).append(row.get("caption"))
    for image in images:
        record = {"file_name": image.get("file_name"), "captions": captions.pop(str(image.get("id")), None)}
        yield f"image {image.get('id')} of {name}", partial(entries.check_record, record)
    for number, of_image in captions.items():
        fault = partial(_broken, "captions of an unknown image", f"{len(of_image)} of image {number}")
        yield f"image {number} of {name}", fault


def _broken(fault: str, found: str) -> dict[str, Any]:
    raise RowFault(fault, found)


_READERS: dict[str, Callable[[Path, str, Sequence[str]], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".csv": _csv,
    ".tsv": _csv,
    ".txt": _csv,
    ".parquet": _parquet,
    ".json": _json,
}


def _no_image_column(file: Path, image_keys: Sequence[str], columns: Sequence[str]) -> ValueError:
    return ValueError(
        f"`{file}` has the columns {', '.join(columns) or 'none'}. Expected one of {', '.join(image_keys)}. "
        "Set `image_column`."
    )


def _unreadable(file: Path, expected: str, found: str) -> ValueError:
    return ValueError(f"`{file}` cannot be read as captions ({found}). Expected {expected}. Pass another file.")
