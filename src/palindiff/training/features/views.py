"""The views of an image that training draws: the recipe section `views`, and the data set that crops and scales.

Worker processes import this module and what it imports; it needs neither diffusers nor transformers.
Not here: encoding (`latent_cache.py`), reading a view for a step (`dataset.py`, `pixels.py`).
"""

from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.utils.data import Dataset

from palindiff.data.images import Fit, ImageFileError, crop_square, decode_image, fit_image, to_tensor
from palindiff.data.sources import ImageSet
from palindiff.seeds import seeded_generator

Flip = Literal["both", "naming", "none"]


class ViewConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Data augmentation: which views of an image are drawn. Generation always trains on whole images."""

    flip: Flip = "both"  # tasks for which half of the images are mirrored
    crops: int = Field(0, ge=0)  # random square crops of each image, cached for naming; 0 turns them off
    min_crop_area: float = Field(0.7, gt=0, le=1)  # smallest share of the image that a crop covers


class Squares(Dataset[tuple[Tensor, str]]):
    """Each image as a square, its crops behind it, (1 + crops, 3, H, W) uint8; and why it cannot be read, or ""."""

    def __init__(self, rows: ImageSet, size_px: int, fit: Fit, views: ViewConfig) -> None:
        """Build the data set; nothing is decoded before a row is asked for."""
        self.rows, self.size_px, self.fit, self.views = rows, size_px, fit, views

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        try:
            whole = fit_image(decode_image(self.rows[index].source), self.size_px, self.fit)
        except ImageFileError as error:
            return torch.zeros(1 + self.views.crops, 3, self.size_px, self.size_px, dtype=torch.uint8), str(error)
        views = (whole, *(crop_square(whole, *box) for box in self._boxes(index)))
        return torch.stack([to_tensor(image) for image in views]), ""

    def view(self, index: int, number: int) -> Tensor:
        """Decode one view of an image: 0 is the whole image, the others are its crops.

        Shapes: -> (3, H, W) uint8, equal to `self[index][0][number]`.
        Raises: ImageFileError if the image cannot be read.
        """
        whole = fit_image(decode_image(self.rows[index].source), self.size_px, self.fit)
        return to_tensor(crop_square(whole, *self._boxes(index)[number - 1]) if number else whole)

    def _boxes(self, index: int) -> list[list[float]]:
        """Side, left and top of each crop of an image, as `crop_square` takes them."""
        uniform = torch.rand(self.views.crops, 3, generator=seeded_generator(0, "crops", index))
        area = self.views.min_crop_area + (1 - self.views.min_crop_area) * uniform[:, :1]
        boxes: list[list[float]] = torch.cat([area.sqrt(), uniform[:, 1:]], dim=1).tolist()
        return boxes


def draw_views(uniform: Tensor, num_views: int, flip: Flip) -> tuple[Tensor, Tensor]:
    """Choose the view of each image that naming sees: below 0.5 it is flipped; the place within the half is its crop.

    Shapes: uniform (b,) in [0, 1) -> number of the view (b,) int64, is_flipped (b,) bool.
    """
    view = ((2 * uniform) % 1 * num_views).long().clamp(max=num_views - 1)
    return view, (uniform < 0.5) & (flip != "none")
