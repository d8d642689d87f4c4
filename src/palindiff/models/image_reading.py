"""What a query stream keeps of images. The unit of caching: one reading serves any number of queries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageReading:
    """Tensors of b images, as the fusion's `read_image` returns them."""

    tensors: tuple[Tensor, ...]  # (b, ...) each
    latent_shape: tuple[int, ...]  # (ch, h, w) of the latents that were read

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: slice | Tensor) -> "ImageReading":
        """Select images by a slice or by row numbers (m,) int64."""
        return self._map(lambda tensor: tensor[index])

    def repeat(self, times: int) -> "ImageReading":
        """Repeat each image, copies next to each other: (b, ...) -> (b * times, ...)."""
        return self._map(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "ImageReading":
        """Move to a device or convert to another floating-point type."""
        return self._map(lambda tensor: tensor.to(device=device, dtype=dtype))

    @staticmethod
    def cat(readings: Sequence["ImageReading"]) -> "ImageReading":
        """Concatenate readings of one query stream along the images.

        Raises: ValueError if there are none, or if the latents had different shapes.
        """
        if not readings:
            raise ValueError("`ImageReading.cat` got no readings. Expected at least one. Read an image first.")
        shapes = sorted({reading.latent_shape for reading in readings})
        if len(shapes) > 1:
            raise ValueError(
                f"`ImageReading.cat` got readings of latents of shapes {' and '.join(map(str, shapes))}. Expected one "
                "shape. Concatenate the readings of each shape separately."
            )
        columns = zip(*(reading.tensors for reading in readings), strict=True)
        return ImageReading(tuple(torch.cat(column) for column in columns), shapes[0])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ImageReading":
        return ImageReading(tuple(map(change, self.tensors)), self.latent_shape)
