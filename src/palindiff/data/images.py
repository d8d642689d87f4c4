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
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from palindiff.data.formats import HEADER_BYTES, read_formats, unread_format

MAX_PIXELS = 64_000_000  # 8,000 x 8,000; an image that decodes to more is treated as an attack

ORIENTATION = 0x0112  # the EXIF tag, and how an image with each of its values becomes upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

# A PNG may hold much text, as workflows of image generators, or a long colour profile: all of its texts together may
# have 64 MB, and so may one of them; PIL's own limit of one is 1 MB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# PIL warns about sizes, which MAX_PIXELS limits, and damaged metadata. `catch_warnings` around each image would not be
# safe in the threads that decode a training set.
warnings.filterwarnings("ignore", module=r"PIL\.")

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


ImageInput = Image.Image | np.ndarray | ImageSource | Path | str | bytes
"""One image: opened by PIL, pixels (H, W), (H, W, 3) or (H, W, 4) uint8, or a file"""


def decode_image(source: ImageInput) -> Image.Image:
    """Decode an image to 8-bit sRGB, upright, with transparent areas on white, whatever form it comes in.

    Accepts CMYK, palette, grey, 16-bit, 32-bit and animated images (the first frame). Damaged metadata are ignored.

    Raises: ImageFileError if the file is missing, empty, truncated, not an image, or decodes to over MAX_PIXELS.
    """
    with _open_image(source) as image:
        image.load()
        decoded = _plain_rgb(_upright(image))
        decoded.info.clear()  # what they say has been done, and must not be done twice
        return decoded


def check_header(source: ImageInput) -> None:
    """Refuse a file by its header alone, without decoding it.

    Raises: ImageFileError if the file is missing, empty, not an image, or larger than MAX_PIXELS.
    """
    with _open_image(source):
        pass


@contextmanager
def _open_image(source: ImageInput) -> Iterator[Image.Image]:
    """Open an image whose header is acceptable; errors while it is open become ImageFileError."""
    if isinstance(source, bytes):
        source = ImageSource("image", data=source)
    elif isinstance(source, str | Path):
        source = ImageSource(str(source), path=Path(source))
    named = source if isinstance(source, ImageSource) else ImageSource("image")
    try:
        if not isinstance(source, ImageSource):
            image = source if isinstance(source, Image.Image) else _from_pixels(source)
            _check_opened(named, image)
            yield image
            return
        with source.open() as stream:
            header = stream.read(HEADER_BYTES)
            if unread := unread_format(source.name, header):
                raise _refusal(source, f"is not read ({unread})", "an image of a format that is read")
            stream.seek(0)
            with Image.open(stream) as image:
                _check_opened(source, image)
                yield image
    except ImageFileError:
        raise
    except FileNotFoundError as error:
        raise _refusal(named, "does not exist", "an image file") from error
    except Image.DecompressionBombError as error:
        raise _refusal(named, "decodes to far too many pixels", f"at most {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        found = "is not an image that PIL can read" if header else "is empty (0 bytes)"
        raise _refusal(named, found, "PNG, JPEG, WebP or another image format") from error
    except Exception as error:  # decoders raise errors of every kind on damaged files, struct.error and TypeError too
        raise _refusal(named, f"cannot be decoded ({error})", "a whole, undamaged image") from error


def _check_opened(source: ImageSource, image: Image.Image) -> None:
    """Refuse an image by its format, if a file holds it, and by its size."""
    if image.format is not None and image.format not in read_formats():
        raise _refusal(source, f"is a file of format {image.format}", f"one of {', '.join(read_formats())}")
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        raise _refusal(source, f"is {size}", f"at most {MAX_PIXELS:,} pixels")


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    """Shapes: (H, W), (H, W, 3) or (H, W, 4) uint8 -> grey, RGB or RGBA image."""
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not is_image or not pixels.size:
        raise _refusal(
            ImageSource("image"),
            f"is an array of shape {pixels.shape} and type {pixels.dtype}",
            "pixels (H, W), (H, W, 3) or (H, W, 4) of type uint8",
        )
    return Image.fromarray(pixels)


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


def read_pixels(source: ImageInput, size_px: int, fit: Fit = "crop") -> Tensor:
    """Decode one image and fit it: everything before the VAE.

    Shapes: one image -> x (3, size_px, size_px) float32 in [-1, 1].
    Raises: ImageFileError if it cannot be read.
    """
    return to_pixels(to_tensor(fit_image(decode_image(source), size_px, fit)))


def to_image(x: Tensor) -> Image.Image:
    """Shapes: x (3, H, W) in [-1, 1], clamped -> RGB image."""
    pixels = ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())  # (3, H, W) -> (H, W, 3)


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF data say; those of damaged metadata say nothing."""
    try:
        method = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # PIL's parser raises errors of every kind on damaged metadata
        return image
    return image if method is None else image.transpose(method)


def _plain_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled_grey(image)
    profile = image.info.get("icc_profile")
    if not image.has_transparency_data:
        return _to_srgb(image, profile)
    with_alpha = image.convert("RGBA")
    colours = _to_srgb(with_alpha.convert("RGB"), profile)
    colours.putalpha(with_alpha.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")


def _scaled_grey(image: Image.Image) -> Image.Image:
    """Scale grey of 16 or 32 bits to 8: 16 bits by their range, others by that of the three that holds all values."""
    grey = np.nan_to_num(np.asarray(image).astype(np.float32))
    most = 65_535.0 if image.mode.startswith("I;16") else float(grey.max(initial=0))
    white = next((limit for limit in (1.0, 255.0, 65_535.0) if most <= limit), most)
    if image.mode == "I":
        white = max(white, 255.0)  # whole numbers
    return Image.fromarray((grey * (255 / white)).clip(0, 255).round().astype(np.uint8)).convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to RGB by the image's colour profile; one that is damaged or of other channels is ignored."""
    if profile:
        plain = image.convert("RGB") if image.mode in ("P", "1", "LA", "PA", "RGBA") else image
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" in ImageCms.getProfileDescription(source).lower():
                return image.convert("RGB")
            found = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except Exception:  # as metadata
            found = None
        if found is not None:
            return found
    return image.convert("RGB")


def _refusal(source: ImageSource, found: str, expected: str) -> ImageFileError:
    return ImageFileError(f"`{source.place}` {found}. Expected {expected}. Replace the file or leave it out.")
