"""Images of a set as squares of one size, decoded in worker processes of a DataLoader.

Here: squares without captions or crops. Not here: the crops that training draws (`training/features/views.py`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

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
