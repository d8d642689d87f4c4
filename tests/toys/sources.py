"""Tiny sources of captioned images for the tests of this room."""

import io
import json
import tarfile

from PIL import Image

COLOURS = ("red", "green", "blue", "orange", "black", "yellow")


def encode(image, image_format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def square(colour="red", size_px=4, image_format="PNG"):
    return encode(Image.new("RGB", (size_px, size_px), colour), image_format)


def write_images(root, *names):
    for colour, name in zip(COLOURS * len(names), names, strict=False):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(square(colour))
    return root


def write_lines(root, lines, images=()):
    """A folder with a metadata.jsonl of rows (dicts) or raw lines (bytes), and images of the names given."""
    root.mkdir(parents=True, exist_ok=True)
    raw = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
    (root / "metadata.jsonl").write_bytes(b"".join(line + b"\n" for line in raw))
    return write_images(root, *images)


def write_tar(path, members):
    """An archive of members in the order given: names and bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def sample(key, caption, colour="red"):
    return {f"{key}.png": square(colour), f"{key}.txt": caption.encode()}
