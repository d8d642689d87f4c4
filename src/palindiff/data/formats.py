"""Which files are images: by their suffix or, for another suffix or none, by their first bytes.

Here: formats that are read, those that an installed package adds to PIL, and the names of others. Not here: decoding
(`images.py`).
"""

import importlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")  # none runs a program
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}
)
PLUGINS = {  # a format of PIL -> the package that adds it, and its module
    "HEIF": ("pillow-heif", "pillow_heif"),
    "JXL": ("pillow-jxl-plugin", "pillow_jxl"),
}
HEADER_BYTES = 32  # of a file, by which PIL recognises every format above
TEXT_SUFFIXES = frozenset({".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".parquet"})  # may be captions
_NO_IMAGES = TEXT_SUFFIXES | {".tar", ".md"}  # not opened, since there may be many
_RAW = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"})  # many of them begin like a TIFF
_CONVERTED = frozenset({".dds", ".eps", ".exr", ".hdr", ".icns", ".ico", ".psd", ".svg", ".tga"})
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_JXL_SIGNATURES = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")


def read_formats() -> tuple[str, ...]:
    """List the formats of PIL that are read, those of installed plugins included."""
    return (*FORMATS, *(name for name in PLUGINS if _has_plugin(name)))


def find_format(header: bytes) -> str | None:
    """Recognise a format that is read, or that a plugin would read, by a file's first HEADER_BYTES."""
    if header[4:8] == b"ftyp" and header[8:12] in _HEIF_BRANDS and b"avif" not in header:
        return "HEIF"
    if header.startswith(_JXL_SIGNATURES):
        return "JXL"
    Image.init()  # PIL knows five formats only until it is asked for others
    accepts = {name: Image.OPEN[name][1] for name in FORMATS if name in Image.OPEN}
    return next((name for name, accept in accepts.items() if accept is not None and accept(header)), None)


def is_image_file(path: Path) -> bool:
    """Return whether a file is an image, also of a format that is not read; hidden files are not."""
    suffix = path.suffix.lower()
    if path.name.startswith(".") or suffix in _NO_IMAGES:
        return False
    if suffix in IMAGE_SUFFIXES | _RAW | _CONVERTED:
        return True
    try:
        with path.open("rb") as stream:
            return find_format(stream.read(HEADER_BYTES)) is not None
    except (OSError, ValueError):  # ValueError: a name that is not valid text
        return False


def unread_format(name: str, header: bytes) -> str | None:
    """Say what an image that is not read is, and how it could be; None for all others, damaged ones included."""
    suffix = Path(name).suffix.lower()
    if suffix in _RAW:
        return f"raw camera data, {suffix}; convert it to PNG or JPEG, for example with the package rawpy"
    found = find_format(header)
    if found in PLUGINS and not _has_plugin(found):
        return f"format {found}; install the package {PLUGINS[found][0]}, or convert it to PNG or JPEG"
    if found is None and suffix in _CONVERTED:
        return f"format {suffix}; convert it to PNG or JPEG"
    return None


@cache
def _has_plugin(name: str) -> bool:
    """Return whether the plugin of a format is installed, and register it with PIL."""
    module = PLUGINS[name][1]
    if find_spec(module) is None:
        return False
    plugin = importlib.import_module(module)  # the import of pillow_jxl registers it
    if hasattr(plugin, "register_heif_opener"):
        plugin.register_heif_opener()
    return True
