"""A training set of whole images in memory, augmented at each reading; the VAE's.

Here: decoding and augmentation. Not here: cached latents (`dataset.py`).
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor

from palindiff.data.images import Fit, decode_image, fit_image, to_pixels, to_tensor
from palindiff.data.rows import CaptionedImage

MAX_SHIFT_PX = 4
COLOUR_ORDERS = tuple(itertools.permutations(range(3)))


class Augmentation(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What is changed of an image at random, against overfitting, besides mirroring and shifting it."""

    rotate: bool = True  # by multiples of 90 degrees
    recolour: bool = True  # the colour channels of five in twelve images change places


class ImagesInMemory:
    """Images (n, 3, H, W) uint8; each is augmented when it is read."""

    def __init__(self, images: Tensor, augmentation: Augmentation | None = None) -> None:
        self.images, self.augmentation = images, augmentation or Augmentation()

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        """Read rows as x (b, 3, H, W) in [-1, 1]; the two uniform numbers (b, 2) choose the augmentation."""
        x = [augment(to_pixels(self.images[row]), u, self.augmentation) for row, u in zip(rows, uniform, strict=True)]
        return {"x": torch.stack(x)}


def augment(x: Tensor, uniform: Tensor, augmentation: Augmentation) -> Tensor:
    """Mirror, shift on white by up to MAX_SHIFT_PX, and, if asked to, rotate and permute the colours.

    Shapes: x (3, H, H) in [-1, 1]; uniform (2,) in [0, 1) -> (3, H, H).
    """
    num_turns, num_colours = 4 if augmentation.rotate else 1, 2 * len(COLOUR_ORDERS) if augmentation.recolour else 1
    turn, mirror, colours = _digits(float(uniform[0]), (num_turns, 2, num_colours))
    x = x.rot90(turn, (1, 2))
    if mirror:
        x = x.flip(2)
    if colours < len(COLOUR_ORDERS):  # the others keep their colours, and so do those of the first order
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
