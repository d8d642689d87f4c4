"""The index of a source: its entries as an Arrow table, and the judgement over them.

Here: keeping entries, telling all faults at once, the fingerprint of what is kept. Not here: what an entry is
(`entries.py`), where entries come from (`folder.py`, `shards.py`, `tables.py`). An index is a table of `datasets`:
a large one stays on disk, and worker processes share it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from palindiff.data.entries import Entry, RowFault
from palindiff.data.images import ImageFileError, decode_image
from palindiff.data.on_bad import OnBad
from palindiff.data.rows import DAMAGED, ImageSet, IndexedRows, left_out_sentence

if TYPE_CHECKING:
    from datasets import Dataset, Features

INDEX_VERSION = 2  # raised when entries change their meaning, so that no kept index of before is read
NUM_NAMED_FAULTS = 10

_HASHED = ("name", "size", "content", "captions", "label", "fields")


def index_features() -> "Features":
    """Name the columns of an index and their types."""
    from datasets import Features, List, Value

    whole, text = Value("int64"), Value("string")
    columns = dict.fromkeys(("place", "name", "path", "content", "label", "fields", "fault", "found"), text)
    return Features(columns | dict.fromkeys(("offset", "size", "table_row"), whole) | {"captions": List(text)})


def index_in_memory(entries: Iterable[Entry]) -> "Dataset":
    """Keep entries as an Arrow table in memory: for sources that must be looked through at every opening."""
    from datasets import Dataset

    features = index_features()
    columns: dict[str, list[Any]] = {name: [] for name in features}
    for entry in entries:
        for name, value in entry.as_row().items():
            columns[name].append(value)
    return Dataset.from_dict(columns, features=features)


def index_on_disk(
    scan: Callable[..., Iterator[dict[str, Any]]], arguments: Mapping[str, Any], fingerprints: Sequence[object]
) -> "Dataset":
    """Keep the rows that `scan` yields in the cache of `datasets`, or map what an earlier call kept.

    `fingerprints` tells apart what is scanned: the state of the files and all that changes an entry.
    """
    from datasets import Dataset, NamedSplit

    digest = hashlib.sha256(json.dumps([INDEX_VERSION, scan.__name__, *fingerprints]).encode()).hexdigest()
    return Dataset.from_generator(
        scan,
        features=index_features(),
        gen_kwargs=dict(arguments),
        split=NamedSplit("index"),  # what the progress bar calls it
        fingerprint=f"images-{digest[:32]}",
    )


def judge(index: "Dataset", images: "Dataset | None", source: str, on_bad: OnBad, use_decoder: bool) -> ImageSet:
    """Refuse a source with bad rows, naming them all at once, or leave them out and say so.

    `use_decoder` decodes every image once, so that damaged ones count among the bad rows.

    Raises: ValueError if a row is bad and `on_bad` is "refuse", or if no row is left.
    """
    verdicts = _entries(index.select_columns(["fault", "found"]))
    faults = {number: RowFault(**each) for number, each in enumerate(verdicts) if each["fault"]}
    if use_decoder:
        faults |= _undecodable(IndexedRows(index, images), skipped=faults)
    if faults and on_bad == "refuse":
        raise ValueError(_refusal(index, faults, source))
    reasons = Counter(fault.fault for fault in faults.values())
    kept = index.select([number for number in range(len(index)) if number not in faults]) if faults else index
    if not len(kept):
        left_out = left_out_sentence(reasons, len(index), source)
        raise ValueError(
            f"`{source}` has {_first_fault(faults, left_out) if faults else 'no image'}. Expected an image with a "
            "caption. Check `path`, `split` and the columns' names."
        )
    return ImageSet(IndexedRows(kept, images), _fingerprint(kept), source, reasons)


def _first_fault(faults: Mapping[int, RowFault], left_out: str) -> str:
    first = faults[min(faults)]
    why = f"{first.fault}, {first.found}" if first.found else first.fault
    return f"no usable row; {left_out.rstrip('.')} (the first: {why})"


def _undecodable(rows: IndexedRows, skipped: Mapping[int, RowFault]) -> dict[int, RowFault]:
    found = {}
    for number in range(len(rows)):
        if number in skipped:
            continue
        try:
            decode_image(rows[number].source)
        except ImageFileError as error:
            found[number] = RowFault(DAMAGED, str(error).split(". Expected ")[0])
    return found


def _refusal(index: "Dataset", faults: Mapping[int, RowFault], source: str) -> str:
    lines = [f"`{source}`: {len(faults):,} of {len(index):,} rows are bad. Expected an image and a caption in each."]
    places = index.select_columns(["place"])
    for number in sorted(faults)[:NUM_NAMED_FAULTS]:
        found = f" ({faults[number].found})" if faults[number].found else ""
        lines.append(f"  {places[number]['place']}: {faults[number].fault}{found}")
    if len(faults) > NUM_NAMED_FAULTS:
        lines.append(f"  and {len(faults) - NUM_NAMED_FAULTS:,} more")
    return "\n".join([*lines, "Mend them, or leave them out with `on_bad: skip`."])


def _fingerprint(index: "Dataset") -> str:
    digest = hashlib.sha256(f"{INDEX_VERSION}".encode())
    for entry in _entries(index.select_columns(list(_HASHED))):
        digest.update(json.dumps([entry[column] for column in _HASHED]).encode())
    return digest.hexdigest()


def _entries(index: "Dataset") -> Iterator[dict[str, Any]]:
    """Read an index in batches: far quicker than row by row."""
    for batch in index.iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))
