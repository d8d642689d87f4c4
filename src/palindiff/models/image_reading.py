"""What the query stream keeps of an image: keys and values of every site and head layer. The unit of caching."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ImageReading:
    """Keys and values (b, heads, n, d) of b images: one pair a transformer block of each site, one a head layer."""

    site_blocks: tuple[KeysValues, ...]
    head_layers: tuple[KeysValues, ...]
    latent_shape: tuple[int, ...]  # (ch, h, w) of the latents that were read

    def __len__(self) -> int:
        return len(self.head_layers[0][0])

    def __getitem__(self, index: slice | Tensor) -> "ImageReading":
        """Take some images, by a slice or by row numbers (m,) int64."""
        return self._map(lambda tensor: tensor[index])

    def repeat(self, times: int) -> "ImageReading":
        """Repeat each image, neighbours first: (b, ...) -> (b * times, ...)."""
        return self._map(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "ImageReading":
        """Move to a device or another floating-point type."""
        return self._map(lambda tensor: tensor.to(device=device, dtype=dtype))

    @staticmethod
    def cat(readings: Sequence["ImageReading"]) -> "ImageReading":
        """Join readings of one query stream along the images.

        Raises: ValueError if there are none, or they were read from latents of different shapes.
        """
        if not readings:
            raise ValueError("`ImageReading.cat` got no readings. Expected at least one. Read an image first.")
        shapes = sorted({reading.latent_shape for reading in readings})
        if len(shapes) > 1:
            raise ValueError(
                f"`ImageReading.cat` got readings of latents of shapes {' and '.join(map(str, shapes))}. Expected one "
                "shape. Join those of each shape apart."
            )

        def join(pairs: Sequence[tuple[KeysValues, ...]]) -> tuple[KeysValues, ...]:
            return tuple(
                (torch.cat([k for k, _ in p]), torch.cat([v for _, v in p])) for p in zip(*pairs, strict=True)
            )

        return ImageReading(
            join([r.site_blocks for r in readings]), join([r.head_layers for r in readings]), shapes[0]
        )

    def _map(self, change) -> "ImageReading":  # type: ignore[no-untyped-def]
        return ImageReading(
            tuple((change(keys), change(values)) for keys, values in self.site_blocks),
            tuple((change(keys), change(values)) for keys, values in self.head_layers),
            self.latent_shape,
        )
