"""Checks of what a caller passes to name images: options, images, latents.

Not here: labels (`labels.py`), images that cannot be decoded (`data/images.py`), components that do not fit together
(`pretrained/layout.py`).
"""

import math
from collections.abc import Iterable, Sized
from numbers import Integral, Real
from typing import Any, Protocol, get_args

import numpy as np
from diffusers import UNet2DConditionModel
from torch import Tensor

from palindiff.data.images import Fit, ImageInput
from palindiff.inference.defaults import IMAGES_AT_ONCE, NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.models.image_reading import ImageReading


class ManyImages(Sized, Iterable[ImageInput], Protocol):
    """A list of images, or an object that reads them one at a time."""


Images = ManyImages | ImageInput | Tensor | ImageReading


def as_images(images: Any, unet: UNet2DConditionModel | None = None) -> Any:
    """Turn a single image into a list of one; return lists, latents and readings unchanged.

    Raises: ValueError if there are none, or if latents do not fit this U-Net; without one there are no latents.
    """
    if isinstance(images, ImageInput) and not (isinstance(images, np.ndarray) and images.ndim == 4):
        return [images]
    if isinstance(images, Tensor) and unet is not None:
        _check_latents(images, unet)
    if len(images) == 0:
        raise ValueError("No images were given. Expected at least one. Pass an image file, or a list of them.")
    return images


def check_image(image: Any) -> None:
    """Refuse an object that is not an image.

    Raises: TypeError.
    """
    if not isinstance(image, ImageInput):
        raise TypeError(
            f"A `{type(image).__name__}` was given to be encoded. Expected PIL images, arrays of uint8, files, or "
            "bytes of files. Pass one of these; latents need no encoding."
        )


def check_options(
    num_train_timesteps: int | None,
    num_inference_steps: int = NAMING_STEPS,
    guidance_scale: float = NAMING_GUIDANCE_SCALE,
    seed: int = 0,
    batch_size: int = IMAGES_AT_ONCE,
    fit: Fit = "crop",
    num_samples: int = 1,
) -> None:
    """Refuse options of naming that cannot work; without text diffusion `num_train_timesteps` is None.

    Raises: TypeError, ValueError.
    """
    if not _is_finite(guidance_scale) or guidance_scale < 1:
        expected = "a finite number from 1 on, the paper's 1 + w. Pass 1 to turn guidance off."
        raise ValueError(f"`guidance_scale` is {guidance_scale!r}. Expected {expected}")
    if not _is_integer(seed):
        raise TypeError(f"`seed` is {seed!r}. Expected a whole number. Pass one, such as 0.")
    if not _is_integer(batch_size) or batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size!r}. Expected a whole number from 1 on. Pass one, such as 16.")
    if not _is_integer(num_samples) or num_samples < 1:
        raise ValueError(f"`num_samples` is {num_samples!r}. Expected a whole number from 1 on. Pass one, such as 4.")
    if fit not in get_args(Fit):
        expected = "'crop' (the middle of an image) or 'pad' (all of it, on white)"
        raise ValueError(f"`fit` is {fit!r}. Expected {expected}. Pass one.")
    if num_train_timesteps is not None:
        check_steps(num_inference_steps, num_train_timesteps)


def check_steps(num_inference_steps: int, num_train_timesteps: int) -> None:
    """Refuse a number of steps that a scheduler does not have.

    Raises: TypeError, ValueError.
    """
    if not _is_integer(num_inference_steps):
        found = f"`num_inference_steps` is {num_inference_steps!r}"
        raise TypeError(f"{found}. Expected a whole number. Pass one, such as 8.")
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"`num_inference_steps` is {num_inference_steps}. Expected 1 to {num_train_timesteps}, the steps of the "
            "scheduler. Pass a number in this range, such as 8."
        )


def _check_latents(z: Tensor, unet: UNet2DConditionModel) -> None:
    ch = unet.config.in_channels
    if z.ndim != 4 or z.shape[1] != ch or not z.is_floating_point():
        raise ValueError(
            f"A tensor of shape {tuple(z.shape)} and type {z.dtype} was given to be named. Expected latents (b, {ch}, "
            "h, w) of a floating-point type. For one latent pass `z[None]`; for pixels pass PIL images or files, or "
            "the result of `encode_latents`."
        )


def _is_finite(number: object) -> bool:
    return isinstance(number, Real) and math.isfinite(number)


def _is_integer(number: object) -> bool:
    """Accept NumPy's integers and refuse a bool."""
    return isinstance(number, Integral) and not isinstance(number, bool)
