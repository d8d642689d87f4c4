"""A training set of images as pixels: small sets in memory, large ones decoded at each reading, in threads.

Here: decoding and choosing views. Not here: views themselves (`views.py`), captions (`dataset.py`), reading ahead of a
step (`loop/loop.py`).
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from palindiff.data.images import Fit, ImageFileError
from palindiff.data.sources import ImageSet
from palindiff.training.features.dataset import CaptionsOfRows, Progress
from palindiff.training.features.views import Squares, ViewConfig, draw_views

T = TypeVar("T")
U = TypeVar("U")
IN_MEMORY_BYTES = 2**30  # of a whole set, with its crops; a larger set is decoded at each reading
ROWS_AT_ONCE = 64  # decoded between two reports of progress


class PixelSet:
    """Images with their captions, read by row number; what is read depends on rows and uniform numbers alone."""

    def __init__(
        self,
        rows: ImageSet,
        captions: CaptionsOfRows,
        size_px: int,
        fit: Fit,
        views: ViewConfig,
        num_threads: int = 0,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        """Decode a set of up to IN_MEMORY_BYTES, all its views, in num_threads threads; 0: in the one that reads.

        Raises: ImageFileError if an image of such a set cannot be read; one of a larger set raises it when it is read.
        """
        self.squares, self.captions, self.views = Squares(rows, size_px, fit, views), captions, views
        self.num_views = 1 + views.crops
        self._threads = ThreadPoolExecutor(num_threads) if num_threads else None
        num_bytes = len(rows) * self.num_views * 3 * size_px**2
        self.decoded = self._decode_all(progress) if num_bytes <= IN_MEMORY_BYTES else None

    def __len__(self) -> int:
        return len(self.captions)

    def read(self, rows: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        """Read rows; of the two uniform numbers the first chooses the image's view, the second its caption.

        Shapes: rows (b,) int64; uniform (b, 2) -> x (b, 3, H, W) uint8; what `CaptionsOfRows.read` reads.
        Raises: ImageFileError if an image cannot be read.
        """
        number, is_flipped = draw_views(uniform[:, 0], self.num_views, self.views.flip)
        if self.decoded is not None:
            x = self.decoded[rows, number]
        else:
            x = torch.stack(list(self._map(self._decode_view, zip(rows.tolist(), number.tolist(), strict=True))))
        x = torch.where(is_flipped[:, None, None, None], x.flip(-1), x)
        return {"x": x, **self.captions.read(rows, uniform[:, 1])}

    def _decode_all(self, progress: Progress) -> Tensor:
        """Shapes: -> (n, 1 + crops, 3, H, W) uint8."""
        num_rows, size_px = len(self.squares), self.squares.size_px
        decoded = torch.empty(num_rows, self.num_views, 3, size_px, size_px, dtype=torch.uint8)
        for start in range(0, num_rows, ROWS_AT_ONCE):
            rows = range(start, min(start + ROWS_AT_ONCE, num_rows))
            for row, (views, fault) in zip(rows, self._map(self.squares.__getitem__, rows), strict=True):
                if fault:
                    raise _unreadable(fault)
                decoded[row] = views
            progress("decoding images", rows.stop, num_rows)
        return decoded

    def _decode_view(self, place: tuple[int, int]) -> Tensor:
        try:
            return self.squares.view(*place)
        except ImageFileError as error:
            raise _unreadable(str(error)) from error

    def _map(self, decode: Callable[[T], U], places: Iterable[T]) -> Iterator[U]:
        return map(decode, places) if self._threads is None else self._threads.map(decode, places)


def _unreadable(fault: str) -> ImageFileError:
    return ImageFileError(
        f"{fault} Or set `data.check_images: true` and `data.on_bad: skip`: such images are then left out and counted."
    )
