"""A training set for two models at once: each image as pixels and as a latent, with one caption.

Not here: pixels (`pixels.py`), latents (`latent_cache.py`), captions (`dataset.py`).
"""

from torch import Tensor

from palindiff.training.features.dataset import ImageFeatures
from palindiff.training.features.pixels import PixelSet


class ImagePairs:
    """Rows of pixels and of cached latents, which are of the same images in the same order."""

    def __init__(self, pixels: PixelSet, latents: ImageFeatures) -> None:
        self.pixels, self.latents = pixels, latents

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, rows: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        """Read rows; latents are of whole images, and mirrored where the pixels are, if generation mirrors images.

        Shapes: as `PixelSet.read`, and z_mean, z_std (b, ch, h, w) float16.
        """
        is_flipped = (uniform[:, 0] < 0.5) & (self.pixels.views.flip == "both")
        z_mean, z_std = self.latents.read(rows, is_flipped)
        return {**self.pixels.read(rows, uniform), "z_mean": z_mean, "z_std": z_std}
