"""The index of a source: its entries as an Arrow table, and the check of them all.

Here: keeping entries, reporting all faults at once, the fingerprint of the rows kept. Not here: what an entry is
(`entries.py`), where entries come from (`folder.py`, `shards.py`, `tables.py`). An index is a table of `datasets`:
a large one stays on disk, and worker processes share it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, NamedSplit, Value, config

from palindiff.atomic import check_writable
from palindiff.data.entries import Entry, RowFault
from palindiff.data.images import ImageFileError, decode_image
from palindiff.data.on_bad import OnBad
from palindiff.data.rows import DAMAGED, ImageSet, image_source

INDEX_VERSION = 3  # increase when entries change their meaning, so that no older index on disk is used
NUM_NAMED_FAULTS = 10

_TEXTS = ("place", "name", "path", "content", "label", "fields", "fault", "found")
INDEX_FEATURES = Features(  # a column for each value of `Entry`
    dict.fromkeys(_TEXTS, Value("string"))
    | dict.fromkeys(("offset", "size", "table_row"), Value("int64"))
    | {"captions": List(Value("string"))}
)
_HASHED = ("name", "size", "content", "captions", "label", "fields")


def index_in_memory(entries: Iterable[Entry]) -> Dataset:
    """Index entries in memory: for sources that must be scanned each time they are opened."""
    columns: dict[str, list[Any]] = {name: [] for name in INDEX_FEATURES}
    for entry in entries:
        for name, value in entry.as_row().items():
            columns[name].append(value)
    return Dataset.from_dict(columns, features=INDEX_FEATURES)


def index_on_disk(
    scan: Callable[..., Iterator[Entry]], arguments: Mapping[str, Any], fingerprints: Sequence[object]
) -> Dataset:
    """Index the entries that `scan(**arguments)` yields in the cache of `datasets`, or map an index cached before.

    `fingerprints` identify what is scanned: the state of the files and all settings that change an entry.
    """
    check_datasets_cache()
    digest = hashlib.sha256(json.dumps([INDEX_VERSION, scan.__name__, *fingerprints]).encode()).hexdigest()
    return Dataset.from_generator(
        lambda: (entry.as_row() for entry in scan(**arguments)),
        features=INDEX_FEATURES,
        split=NamedSplit("index"),  # its name in the progress bar
        fingerprint=f"images-{digest[:32]}",
    )


def check_datasets_cache() -> None:
    """Check that `datasets`, which maps tables and indices from its cache, can write there.

    Raises: OSError.
    """
    remedy = "Name another one in the environment variable HF_DATASETS_CACHE."
    check_writable(Path(config.HF_DATASETS_CACHE), "The index of the images", remedy)


def check_rows(
    index: Dataset, images: Dataset | None, source: str, on_bad: OnBad, decodes_images: bool = False
) -> ImageSet:
    """Refuse a source with bad rows, listing them, or leave them out and count them.

    `decodes_images`: decode every image once, so that damaged ones count as bad rows.

    Raises: ValueError if a row is bad and `on_bad` is "refuse", or if no row is left.
    """
    marks = enumerate(_entries(index.select_columns(["fault", "found"])))
    faults = {row: RowFault(**mark) for row, mark in marks if mark["fault"]}
    if decodes_images:
        faults |= _undecodable(index, images, faults)
    if faults and on_bad == "refuse":
        raise ValueError(_refusal(index, faults, source))
    kept = index.select([row for row in range(len(index)) if row not in faults]) if faults else index
    reasons = Counter(fault.fault for fault in faults.values())
    rows = ImageSet(kept, images, source, _fingerprint(kept), reasons, _first_faults(index, faults))
    if not len(rows):
        found = "no image"
        if faults:
            found = f"no usable row; {rows.left_out.rstrip('.')} (the first: {faults[min(faults)]})"
        raise ValueError(
            f"`{source}` has {found}. Expected an image with a caption. Check `path`, `split` and the columns' names."
        )
    return rows


def _undecodable(index: Dataset, images: Dataset | None, skipped: Mapping[int, RowFault]) -> dict[int, RowFault]:
    found = {}
    for row, entry in enumerate(_entries(index)):
        if row not in skipped:
            try:
                decode_image(image_source(entry, images))
            except ImageFileError as error:
                found[row] = RowFault(DAMAGED, str(error).split(". Expected ")[0])
    return found


def _refusal(index: Dataset, faults: Mapping[int, RowFault], source: str) -> str:
    lines = [f"`{source}`: {len(faults):,} of {len(index):,} rows are bad. Expected an image and a caption in each."]
    lines += [f"  {line}" for line in _first_faults(index, faults)]
    if len(faults) > NUM_NAMED_FAULTS:
        lines.append(f"  and {len(faults) - NUM_NAMED_FAULTS:,} more")
    return "\n".join([*lines, "Fix them, or leave them out with `on_bad: skip`."])


def _first_faults(index: Dataset, faults: Mapping[int, RowFault]) -> list[str]:
    return [f"{index[row]['place']}: {faults[row]}" for row in sorted(faults)[:NUM_NAMED_FAULTS]]


def _fingerprint(index: Dataset) -> str:
    digest = hashlib.sha256(f"{INDEX_VERSION}".encode())
    for entry in _entries(index.select_columns(list(_HASHED))):
        digest.update(json.dumps([entry[column] for column in _HASHED]).encode())
    return digest.hexdigest()


def _entries(index: Dataset) -> Iterator[dict[str, Any]]:
    """Read an index in batches, not row by row."""
    for batch in index.iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))
