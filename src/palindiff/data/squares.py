"""Images of a set as squares of one size, decoded in worker processes of a DataLoader.

Here: squares without captions or crops, and batches of images. Not here: the crops that training draws
(`training/features/views.py`).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from palindiff.data.images import Fit, ImageFileError, decode_image, fit_image, to_tensor
from palindiff.data.rows import CaptionedImage


class SquareImages(Dataset[tuple[Tensor, str]]):
    """Each image as a square (3, H, W) uint8, and why it cannot be read, or ""; black if it cannot."""

    def __init__(self, rows: Sequence[CaptionedImage], size_px: int, fit: Fit) -> None:
        """Build the data set; nothing is decoded before a row is asked for."""
        self.rows, self.size_px, self.fit = rows, size_px, fit

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        try:
            return to_tensor(fit_image(decode_image(self.rows[index].source), self.size_px, self.fit)), ""
        except ImageFileError as error:
            return torch.zeros(3, self.size_px, self.size_px, dtype=torch.uint8), str(error)


def load_squares(
    rows: Sequence[CaptionedImage], size_px: int, fit: Fit, batch_size: int, num_workers: int = 0
) -> DataLoader[tuple[Tensor, str]]:
    """Load squares in batches: pixels (b, 3, H, W) uint8, and b faults; worker processes decode, if there are any."""
    squares = SquareImages(rows, size_px, fit)
    context = "spawn" if num_workers else None
    return DataLoader(squares, batch_size, num_workers=num_workers, multiprocessing_context=context)


def read_squares(
    rows: Sequence[CaptionedImage], size_px: int, fit: Fit, batch_size: int, num_workers: int = 0
) -> Iterator[Tensor]:
    """Yield squares in batches, (b, 3, H, W) uint8.

    Raises: ImageFileError if an image cannot be read.
    """
    for pixels, faults in load_squares(rows, size_px, fit, batch_size, num_workers):
        if any(faults):
            raise ImageFileError(next(filter(None, faults)))
        yield pixels


def read_images(rows: Sequence[CaptionedImage], batch_size: int) -> Iterator[Tensor]:
    """Yield images of one size as they are, in batches (b, 3, H, W) uint8.

    Raises: ImageFileError if an image cannot be read.
    """
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        yield torch.stack([to_tensor(decode_image(row.source)) for row in part])
