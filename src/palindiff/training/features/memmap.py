"""Arrays on disk: written completely or not at all, and read row by row from one or several memory maps.

Here: writing batches into files, and several files that read like one array. Not here: what the arrays hold
(`dataset.py`).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from palindiff.atomic import atomic_folder


class StackedArrays:
    """Arrays whose rows have the same shape, read as if concatenated; nothing is joined in memory."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        """Take the arrays in the order of their rows.

        Raises: ValueError if they differ in the shape or type of a row.
        """
        self.arrays = list(arrays)
        kinds = {(array.shape[1:], str(array.dtype)) for array in arrays}
        if len(kinds) != 1:
            raise ValueError(
                f"Rows in `StackedArrays` are of {len(kinds)} kinds: {sorted(map(str, kinds))}. Expected one shape "
                "and type. Remove the cache folder; it is then computed again."
            )
        self._stops = np.cumsum([len(array) for array in arrays])
        self.shape = (int(self._stops[-1]), *self.arrays[0].shape[1:])
        self.dtype = self.arrays[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: tuple[np.ndarray, ...]) -> np.ndarray:
        """Index by integer arrays, as numpy does; the first array holds the rows, none of them negative.

        Shapes: index arrays (b,) each -> (b, remaining dimensions of a row).
        """
        rows, *within = index
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"Rows {rows.min()} to {rows.max()} in `StackedArrays`. Expected 0 to {len(self) - 1}.")
        number = np.searchsorted(self._stops, rows, side="right")
        found = np.empty((len(rows), *self.shape[1 + len(within) :]), self.dtype)
        for each in np.unique(number):
            here = number == each
            first = self._stops[each] - len(self.arrays[each])
            found[here] = self.arrays[each][(rows[here] - first, *(other[here] for other in within))]
        return found


def map_arrays(files: Sequence[Path]) -> np.ndarray | StackedArrays:
    """Map .npy files as one array; a single file stays numpy's own map."""
    maps = [np.load(file, mmap_mode="r") for file in files]
    return maps[0] if len(maps) == 1 else StackedArrays(maps)


def write_arrays(
    path: Path,
    num_rows: int,
    batches: Iterable[dict[str, np.ndarray]],
    progress: Callable[[int], None],
    notes: Mapping[str, Mapping[Any, Any]] | None = None,
) -> None:
    """Write batches of named arrays into `path/NAME.npy`, all of them or none; `progress` gets the rows written.

    Writes plain files, since a full disk kills a process that writes through a memory map. A folder that another
    process has written meanwhile stays. Non-empty `notes` are written as `path/NAME.json` at the end.
    """
    try:
        with atomic_folder(path) as folder, ExitStack() as open_files:
            files: dict[str, BinaryIO] = {}
            done = 0
            for batch in batches:
                for name, array in batch.items():
                    if name not in files:
                        files[name] = open_files.enter_context((folder / f"{name}.npy").open("wb"))
                        header = np.lib.format.header_data_from_array_1_0(np.ascontiguousarray(array))
                        header["shape"] = (num_rows, *array.shape[1:])
                        np.lib.format.write_array_header_1_0(files[name], header)
                    files[name].write(array.tobytes())
                done += len(array)
                progress(done)
            for name, note in (notes or {}).items():
                if note:
                    (folder / f"{name}.json").write_text(json.dumps(note, ensure_ascii=False), encoding="utf-8")
    except OSError:
        if not path.exists():
            raise
