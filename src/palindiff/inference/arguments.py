"""What a caller may ask of naming: the walk's options, how images are fitted, and images or latents themselves.

Here: one sentence for each request that cannot be met. Not here: labels (`labels.py`), images that cannot be read
(`data/images.py`), parts that do not fit one another (`checkpoint_folder.py`).
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args

from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor

from palindiff.data.images import Fit, ImageSource
from palindiff.models.image_reading import ImageReading

ImageInput = Image.Image | ImageSource | Path | str | bytes


def as_many(images: Any, unet: UNet2DConditionModel) -> Any:
    """Take a single image as a list of one; latents and readings stay what they are.

    Raises: ValueError if there are none, or latents are not this U-Net's.
    """
    if isinstance(images, ImageInput):
        return [images]
    if isinstance(images, Tensor):
        check_latents(images, unet)
    if len(images) == 0:
        raise ValueError("No images were given. Expected at least one. Name an image file, or pass a list of them.")
    return images


def as_readable(images: Any, unet: UNet2DConditionModel) -> Any:
    """Take images that can be decoded, neither latents nor arrays of pixels.

    Raises: ValueError if there are none; TypeError if they are something else.
    """
    images = as_many(images, unet)
    is_read = isinstance(images, Tensor | ImageReading)
    strange = [images] if is_read else [each for each in images if not isinstance(each, ImageInput)]
    if strange:
        raise TypeError(
            f"A `{type(strange[0]).__name__}` was given to be encoded. Expected PIL images, files, or bytes of "
            "files. For pixels pass `Image.fromarray(...)`; latents need no encoding."
        )
    return images


def check_guidance(guidance_scale: float, seed: int) -> None:
    """Refuse a guidance scale below 1 and a seed that is no whole number.

    Raises: TypeError, ValueError.
    """
    if not _is_finite(guidance_scale) or guidance_scale < 1:
        raise ValueError(
            f"`guidance_scale` is {guidance_scale!r}. Expected a finite number from 1 on: it is 1 + w of the paper, "
            "and 1 turns guidance off."
        )
    if not _is_whole(seed):
        raise TypeError(f"`seed` is {seed!r}. Expected a whole number, from which the walk's first noise is drawn.")


def check_steps(num_inference_steps: int, num_train_timesteps: int) -> None:
    """Refuse a number of steps that the text diffusion does not have.

    Raises: TypeError, ValueError.
    """
    if not _is_whole(num_inference_steps):
        raise TypeError(
            f"`num_inference_steps` is {num_inference_steps!r}. Expected a whole number; the paper takes 8."
        )
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"`num_inference_steps` is {num_inference_steps}. Expected 1 to {num_train_timesteps}, the steps of the "
            "text diffusion. A handful does: the paper takes 8."
        )


def check_batch_size(batch_size: int) -> None:
    """Refuse to take no images at a time.

    Raises: ValueError.
    """
    if not _is_whole(batch_size) or batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size!r}. Expected a whole number from 1 on: images at a time.")


def check_fit_name(fit: str) -> None:
    """Refuse a way to fit images that there is not.

    Raises: ValueError.
    """
    if fit not in get_args(Fit):
        raise ValueError(f"`fit` is {fit!r}. Expected 'crop' (the image's middle) or 'pad' (all of it, on white).")


def check_latents(z: Tensor, unet: UNet2DConditionModel) -> None:
    """Refuse a tensor that cannot be latents of this U-Net.

    Raises: ValueError.
    """
    ch = unet.config.in_channels
    if z.ndim != 4 or z.shape[1] != ch or not z.is_floating_point():
        raise ValueError(
            f"A tensor of shape {tuple(z.shape)} and type {z.dtype} was given to be named. Expected latents (b, {ch}, "
            "h, w) of a floating-point type. For one latent pass `z[None]`; for pixels pass PIL images or files, or "
            "what `encode_latents` makes of them."
        )


def square_side(sample_size: int | Sequence[int]) -> int:
    """Read the side of the latents that a U-Net was made for.

    Raises: ValueError if they are no squares, which is all that images are fitted to.
    """
    sides = {sample_size} if isinstance(sample_size, int) else set(sample_size)
    if len(sides) != 1:
        raise ValueError(
            f"The U-Net's `sample_size` is {tuple(sample_size)}. Expected one side: images are fitted to squares. "  # type: ignore[arg-type]  # an int has one side
            "Encode them with the VAE and pass their latents."
        )
    return sides.pop()


def _is_finite(number: object) -> bool:
    return isinstance(number, Real) and math.isfinite(number)


def _is_whole(number: object) -> bool:
    """A bool is no number here, a NumPy integer is."""
    return isinstance(number, Integral) and not isinstance(number, bool)
