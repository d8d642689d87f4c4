"""One picture in: decode, make it plain RGB, resize, crop, flip. Deterministic, with PIL, and refusing what is broken.

Here: a single picture. Not here: where pictures come from (`sources.py`).
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 64_000_000  # 8,000 x 8,000; a picture that unpacks to more is taken for an attack

Fit = Literal["crop", "pad"]


class PictureError(ValueError):
    """A picture that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class PictureSource:
    """Where one picture's bytes are: a file, or bytes with a name to call them by in a message."""

    name: str
    path: Path | None = None
    data: bytes | None = None

    def open(self) -> BinaryIO:
        """Open the bytes for reading."""
        return io.BytesIO(self.data) if self.data is not None else Path(self.path or self.name).open("rb")


def read_picture(source: PictureSource | Path | str | bytes | Image.Image) -> Image.Image:
    """Decode a picture into plain 8-bit RGB, upright, what is transparent laid on white.

    Takes CMYK, palette, grey, 16-bit and animated pictures (the first frame).

    Raises: PictureError if the file is missing, empty, cut short, not a picture, or unpacks to over MAX_PIXELS.
    """
    if isinstance(source, Image.Image):
        return _plain_rgb(source)
    if isinstance(source, bytes):
        source = PictureSource("picture", data=source)
    elif not isinstance(source, PictureSource):
        source = PictureSource(str(source), path=Path(source))
    try:
        with warnings.catch_warnings(), source.open() as stream:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS below is the limit
            with Image.open(stream) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise _refusal(source, f"is {picture.width} x {picture.height} pixels", f"at most {MAX_PIXELS:,} pixels")
                picture.load()
                return _plain_rgb(ImageOps.exif_transpose(picture))
    except FileNotFoundError as error:
        raise _refusal(source, "does not exist", "a picture file") from error
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        found = "is empty (0 bytes)" if _is_empty(source) else "is not a picture that PIL can read"
        raise _refusal(source, found, "PNG, JPEG, WebP or another picture format") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, PictureError):
            raise
        raise _refusal(source, f"cannot be decoded ({error})", "a whole, undamaged picture") from error


def fit_picture(picture: Image.Image, size_px: int, fit: Fit = "crop") -> Image.Image:
    """Make a picture a square of `size_px`: the shorter side to size and the middle kept, or the whole padded white."""
    if picture.size == (size_px, size_px):
        return picture
    if fit == "crop":
        return ImageOps.fit(picture, (size_px, size_px), Image.Resampling.LANCZOS)
    return ImageOps.pad(picture, (size_px, size_px), Image.Resampling.LANCZOS, color="white")


def to_tensor(picture: Image.Image) -> Tensor:
    """Shapes: RGB picture -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)


def to_pixels(pictures: Tensor) -> Tensor:
    """Shapes: (..., 3, H, W) uint8 -> x, the same shape, float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def to_picture(x: Tensor) -> Image.Image:
    """Shapes: x (3, H, W) in [-1, 1], clamped -> RGB picture."""
    pixels = ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())  # (3, H, W) -> (H, W, 3)


def _plain_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):  # PIL cuts 16 bits off at 255 instead of scaling
        grey = np.asarray(picture).astype(np.float32) / 257
        return Image.fromarray(grey.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        return Image.fromarray(np.asarray(picture).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        with_alpha = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), with_alpha).convert("RGB")
    return picture.convert("RGB")


def _is_empty(source: PictureSource) -> bool:
    with source.open() as stream:
        return not stream.read(1)


def _refusal(source: PictureSource, found: str, expected: str) -> PictureError:
    return PictureError(f"`{source.name}` {found}. Expected {expected}. Replace the file or leave it out.")
