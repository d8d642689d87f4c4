"""Reading one image: decode, convert to RGB, resize, crop. Deterministic, with PIL; broken files are refused.

Here: a single image. Not here: where images come from (`sources.py`).
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 64_000_000  # 8,000 x 8,000; an image that decodes to more is treated as an attack
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")  # none runs a program

Fit = Literal["crop", "pad"]


class ImageFileError(ValueError):
    """An image that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class ImageSource:
    """Where one image's bytes are: a file, a part of a file (of a tar), or bytes with a name for messages."""

    name: str
    path: Path | None = None
    data: bytes | None = None
    offset: int | None = None  # where the image begins in the file; None: the file is the image
    size: int = 0  # bytes of the image from `offset` on

    @property
    def place(self) -> str:
        """How messages refer to this image: the file's path, or the name where a file holds many images."""
        return str(self.path) if self.path is not None and self.offset is None else self.name

    def open(self) -> BinaryIO:
        """Open the bytes for reading."""
        if self.data is not None:
            return io.BytesIO(self.data)
        stream = Path(self.path or self.name).open("rb")  # noqa: SIM115  # the caller closes it
        if self.offset is None:
            return stream
        with stream:
            stream.seek(self.offset)
            return io.BytesIO(stream.read(self.size))


def decode_image(source: ImageSource | Path | str | bytes | Image.Image) -> Image.Image:
    """Decode an image to 8-bit RGB, upright, with transparent areas on white.

    Accepts CMYK, palette, grey, 16-bit and animated images (the first frame).

    Raises: ImageFileError if the file is missing, empty, truncated, not an image, or decodes to over MAX_PIXELS.
    """
    if isinstance(source, Image.Image):
        return _plain_rgb(source)
    with _open_image(source) as image:
        image.load()
        return _plain_rgb(ImageOps.exif_transpose(image))


def check_header(source: ImageSource | Path | str | bytes) -> None:
    """Refuse a file by its header alone, which is much faster than decoding it.

    Raises: ImageFileError if the file is missing, empty, not an image, or larger than MAX_PIXELS.
    """
    with _open_image(source):
        pass


@contextmanager
def _open_image(source: ImageSource | Path | str | bytes) -> Iterator[Image.Image]:
    """Open an image whose header is acceptable; errors while it is open become ImageFileError."""
    if isinstance(source, bytes):
        source = ImageSource("image", data=source)
    elif not isinstance(source, ImageSource):
        source = ImageSource(str(source), path=Path(source))
    try:
        with warnings.catch_warnings(), source.open() as stream:
            warnings.simplefilter("ignore")  # PIL warns about sizes (MAX_PIXELS is the limit) and damaged metadata
            is_empty = not stream.read(1)
            stream.seek(0)
            with Image.open(stream) as image:
                if image.format not in FORMATS:
                    raise _refusal(source, f"is a file of format {image.format}", f"one of {', '.join(FORMATS)}")
                if image.width * image.height > MAX_PIXELS:
                    size = f"{image.width} x {image.height} pixels"
                    raise _refusal(source, f"is {size}", f"at most {MAX_PIXELS:,} pixels")
                yield image
    except ImageFileError:
        raise
    except FileNotFoundError as error:
        raise _refusal(source, "does not exist", "an image file") from error
    except Image.DecompressionBombError as error:
        raise _refusal(source, "decodes to far too many pixels", f"at most {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        found = "is empty (0 bytes)" if is_empty else "is not an image that PIL can read"
        raise _refusal(source, found, "PNG, JPEG, WebP or another image format") from error
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError) as error:
        raise _refusal(source, f"cannot be decoded ({error})", "a whole, undamaged image") from error


def fit_image(image: Image.Image, size_px: int, fit: Fit = "crop") -> Image.Image:
    """Fit an image into a square of `size_px`: "crop" keeps the middle square, "pad" the whole image on white."""
    if image.size == (size_px, size_px):
        return image
    if fit == "crop":
        return ImageOps.fit(image, (size_px, size_px), Image.Resampling.LANCZOS)
    scale = size_px / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)  # a thin line keeps one pixel
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size_px, size_px), "white")
    square.paste(resized, ((size_px - width) // 2, (size_px - height) // 2))
    return square


def crop_square(image: Image.Image, side: float, left: float, top: float) -> Image.Image:
    """Crop a square from a square image and resize it to the image's size.

    Units: side is a share of the image's side, in (0, 1]; left and top are shares of the remaining space, in [0, 1].
    """
    size_px = image.width
    x, y = (share * (1 - side) * size_px for share in (left, top))
    box = (x, y, min(x + side * size_px, size_px), min(y + side * size_px, size_px))
    return image.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box)


def to_tensor(image: Image.Image) -> Tensor:
    """Shapes: RGB image -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)


def to_pixels(images: Tensor) -> Tensor:
    """Shapes: (..., 3, H, W) uint8 -> x, the same shape, float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def read_pixels(source: ImageSource | Path | str | bytes | Image.Image, size_px: int, fit: Fit = "crop") -> Tensor:
    """Decode one image and fit it: everything before the VAE.

    Shapes: one image -> x (3, size_px, size_px) float32 in [-1, 1].
    Raises: ImageFileError if it cannot be read.
    """
    return to_pixels(to_tensor(fit_image(decode_image(source), size_px, fit)))


def to_image(x: Tensor) -> Image.Image:
    """Shapes: x (3, H, W) in [-1, 1], clamped -> RGB image."""
    pixels = ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())  # (3, H, W) -> (H, W, 3)


def _plain_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):  # PIL clips 16 bits (I) at 255 instead of scaling
        grey = np.asarray(image).astype(np.float32) / (1 if image.mode == "F" else 257)
        return Image.fromarray(grey.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), with_alpha).convert("RGB")
    return image.convert("RGB")


def _refusal(source: ImageSource, found: str, expected: str) -> ImageFileError:
    return ImageFileError(f"`{source.place}` {found}. Expected {expected}. Replace the file or leave it out.")
