"""Rows of a file that lists images with captions: JSON lines, CSV, parquet, COCO's annotations, Karpathy's splits.

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
KARPATHY_SPLIT = "karpathy_split"  # the field of a row that keeps the split which Karpathy's file names
_SPLIT_OF = {"train": "train", "restval": "train", "val": "validation", "test": "test"}  # in Karpathy's file


def read_records(file: Path, name: str, image_keys: Sequence[str], split: str = "train") -> Iterator[Record]:
    """Yield the rows of a file that messages call `name`.

    COCO's annotations give one row for each image; other formats as many as they list. Of Karpathy's file, which
    holds all splits, only the rows of `split`: "train" is train and restval, "validation" is val.

    Raises: ValueError if the file is damaged as a whole, of another layout, or a table without any of `image_keys`.
    """
    suffix = file.suffix.lower()
    if suffix == ".json":
        yield from _json(file, name, split)
    elif suffix in _READERS:
        yield from _READERS[suffix](file, name, image_keys)
    else:
        raise ValueError(
            f"`{file}` has no suffix of a file of captions. Expected one of {', '.join((*_READERS, '.json'))}. "
            "Rename or convert it."
        )


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


def _json(file: Path, name: str, split: str) -> Iterator[Record]:
    """Read a list of records, Karpathy's images with their sentences, or COCO's annotations with their images."""
    expected = f"a list of objects, COCO's keys {' and '.join(_COCO_KEYS)}, or Karpathy's images with sentences"
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _unreadable(file, expected, f"broken JSON: {error}") from error
    if isinstance(found, list):
        for number, record in enumerate(found):
            yield f"record {number} of {name}", partial(entries.check_record, record)
        return
    if isinstance(found, dict) and "annotations" not in found and _has_sentences(found.get("images")):
        yield from _karpathy(found["images"], name, split)
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


def _has_sentences(images: object) -> bool:
    """Whether this is Karpathy's list of images, of `dataset_coco.json` or `dataset_flickr30k.json`."""
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        return False
    return any("sentences" in image for image in images)


def _karpathy(images: Sequence[dict[str, Any]], name: str, split: str) -> Iterator[Record]:
    """Yield the images of a split, and those whose split is unknown as faults.

    Source: Karpathy and Fei-Fei, Deep Visual-Semantic Alignments, 2015; `restval` is the rest of COCO's validation
            images, which the field trains on.
    """
    for number, image in enumerate(images):
        place, found = f"image {number} of {name}", str(image.get("split"))
        if found not in _SPLIT_OF:
            yield place, partial(_broken, "unknown split", f"{found}; expected one of {', '.join(_SPLIT_OF)}")
        elif split in (found, _SPLIT_OF[found]):
            yield place, partial(_karpathy_record, image)


def _karpathy_record(image: dict[str, Any]) -> dict[str, Any]:
    """Read one image: its file, its captions in their order, and its split."""
    sentences = image.get("sentences")
    if not isinstance(sentences, list) or not all(isinstance(sentence, dict) for sentence in sentences):
        raise RowFault("no caption", "expected `sentences`, each with `raw`")
    folder, file = image.get("filepath", ""), image.get("filename")  # Flickr30K has no `filepath`
    path = f"{folder}/{file}" if folder and file else file
    captions = [sentence.get("raw") for sentence in sentences]
    return entries.check_record({"file_name": path, "captions": captions, KARPATHY_SPLIT: image["split"]})


def _broken(fault: str, found: str) -> dict[str, Any]:
    raise RowFault(fault, found)


_READERS: dict[str, Callable[[Path, str, Sequence[str]], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".csv": _csv,
    ".tsv": _csv,
    ".txt": _csv,
    ".parquet": _parquet,
}


def _no_image_column(file: Path, image_keys: Sequence[str], columns: Sequence[str]) -> ValueError:
    return ValueError(
        f"`{file}` has the columns {', '.join(columns) or 'none'}. Expected one of {', '.join(image_keys)}. "
        "Set `image_column`."
    )


def _unreadable(file: Path, expected: str, found: str) -> ValueError:
    return ValueError(f"`{file}` cannot be read as captions ({found}). Expected {expected}. Pass another file.")
