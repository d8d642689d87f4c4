"""A training set of whole images in memory, augmented at each reading; the VAE's.

Here: decoding and augmentation. Not here: cached latents (`dataset.py`).
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from palindiff.data.images import Fit, decode_image, fit_image, to_pixels, to_tensor
from palindiff.data.rows import CaptionedImage

MAX_SHIFT_PX = 4
COLOUR_ORDERS = tuple(itertools.permutations(range(3)))


class ImagesInMemory:
    """Images (n, 3, H, W) uint8; each is rotated, mirrored, shifted and recoloured when it is read.

    The augmentation is against overfitting.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        """Read rows as x (b, 3, H, W) in [-1, 1]; the two uniform numbers (b, 2) choose the augmentation."""
        x = [augment(to_pixels(self.images[row]), u) for row, u in zip(rows, uniform, strict=True)]
        return {"x": torch.stack(x)}


def augment(x: Tensor, uniform: Tensor) -> Tensor:
    """Rotate by a multiple of 90 degrees, mirror, shift on white by up to MAX_SHIFT_PX, and permute the colours.

    Shapes: x (3, H, H) in [-1, 1]; uniform (2,) in [0, 1) -> (3, H, H).
    """
    turn, mirror, colours = _digits(float(uniform[0]), (4, 2, 12))
    x = x.rot90(turn, (1, 2))
    if mirror:
        x = x.flip(2)
    if colours < len(COLOUR_ORDERS):  # half of the images keep their colours
        x = x[list(COLOUR_ORDERS[colours])]
    down, right = _digits(float(uniform[1]), (2 * MAX_SHIFT_PX + 1, 2 * MAX_SHIFT_PX + 1))
    padded = F.pad(x, (MAX_SHIFT_PX,) * 4, value=1.0)
    return padded[:, down : down + x.shape[1], right : right + x.shape[2]]


def decode_images(rows: Sequence[CaptionedImage], size_px: int, fit: Fit = "crop") -> Tensor:
    """Shapes: n rows -> (n, 3, size_px, size_px) uint8."""
    return torch.stack([to_tensor(fit_image(decode_image(row.source), size_px, fit)) for row in rows])


def _digits(uniform: float, bases: tuple[int, ...]) -> list[int]:
    """Cut one uniform number into independent uniform digits of the given bases."""
    digits = []
    for base in bases:
        digit = min(int(uniform * base), base - 1)
        digits.append(digit)
        uniform = uniform * base - digit
    return digits
