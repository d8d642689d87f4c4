"""Fuzz the readers of images, captioned images and icons with damaged files: only documented errors may come out.

Run: python scripts/fuzz_readers.py [--minutes 10]    (with the package hypothesis)

Each example is a valid file with some bytes replaced, removed, inserted or repeated by hypothesis, which keeps the
examples that fail in `.hypothesis` of the working folder and runs them first the next time.
"""

import argparse
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, disable_progress_bars
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from palindiff.data.formats import FORMATS
from palindiff.data.icon_folder import build_icon_folder
from palindiff.data.icon_sets import find_icon_sets
from palindiff.data.images import ImageFileError, decode_image
from palindiff.data.sources import DataConfig, open_images

EXAMPLES_A_ROUND = 50
Edit = tuple[str, float, bytes, int]


def edits() -> st.SearchStrategy[list[Edit]]:
    """Kind, place as a share of the file, bytes, and length of each change."""
    kinds = st.sampled_from(["replace", "remove", "insert", "repeat", "cut"])
    return st.lists(st.tuples(kinds, st.floats(0, 1), st.binary(max_size=8), st.integers(1, 64)), max_size=6)


def damaged(data: bytes, changes: list[Edit]) -> bytes:
    """Apply the changes to a file."""
    for kind, share, inserted, length in changes:
        at = int(share * len(data))
        before, after = data[:at], data[at:]
        data = {
            "replace": before + inserted + after[len(inserted) :], "remove": before + after[length:],
            "insert": before + inserted + after, "repeat": before + after[:length] * 3 + after, "cut": before,
        }[kind]  # fmt: skip
    return data


def images() -> list[bytes]:
    """A small image of each format, and PNG and JPEG with the metadata that tools write."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8))
    found = []
    for name in FORMATS:
        stream = io.BytesIO()
        noise.save(stream, name)
        found.append(stream.getvalue())
    text, exif = PngImagePlugin.PngInfo(), Image.Exif()
    text.add_itxt("workflow", "x" * 300, zip=True)
    exif[0x0112], exif[0x011A] = 6, 72.0
    for name, options in (
        ("PNG", {"pnginfo": text, "exif": exif}),
        ("JPEG", {"exif": exif}),
        ("TIFF", {"exif": exif}),
    ):
        stream = io.BytesIO()
        noise.save(stream, name, **options)
        found.append(stream.getvalue())
    return found


def as_files(data: bytes) -> dict[str, dict[str, bytes]]:
    """For each layout a valid set of two images: the name of the damaged file first."""
    rows = [{"file_name": f"{key}.png", "text": f"caption {key}", "label": "x"} for key in "ab"]
    pictures = {f"{key}.png": data for key in "ab"}
    parquet, tar = io.BytesIO(), io.BytesIO()
    Dataset.from_list(rows).to_parquet(parquet)
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, content in {**pictures, "a.txt": b"a", "b.json": b'{"caption": "b"}'}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    table = io.BytesIO()
    Dataset.from_dict({"image": [data] * 2, "text": ["a", "b"]}).to_parquet(table)
    coco = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "a"}]}
    return {
        "metadata.jsonl": {"metadata.jsonl": "\n".join(map(json.dumps, rows)).encode(), **pictures},
        "metadata.csv": {"metadata.csv": b'file_name,text\na.png,"a, b"\nb.png,b\n', **pictures},
        "metadata.parquet": {"metadata.parquet": parquet.getvalue(), **pictures},
        "COCO": {"coco.json": json.dumps(coco).encode(), "a.png": data},
        "sidecar text": {"a.txt": b"a\nb", "a.png": data},
        "sidecar JSON": {"a.json": b'{"caption": "a", "url": "u"}', "a.png": data},
        "tar": {"0.tar": tar.getvalue()},
        "parquet": {"0.parquet": table.getvalue()},
    }


def read_set(files: dict[str, bytes], changes: list[Edit]) -> None:
    """Damage the first file of a set and open the set, as a strict and as a tolerant recipe do."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, content) in enumerate(files.items()):
            Path(folder, name).write_bytes(content if number else damaged(content, changes))
        for on_bad in ("refuse", "skip"):
            captions_file = "coco.json" if "coco.json" in files else None
            try:
                rows = open_images(
                    DataConfig.model_validate({"path": folder, "captions_file": captions_file, "on_bad": on_bad})
                )
                for row in rows:
                    decode_image(row.source)
            except (ValueError, FileNotFoundError) as error:  # ImageFileError is a ValueError
                check_sentence(error)


def icon_package() -> dict[str, bytes]:
    """The files of a small icon package."""
    circle = (
        '<circle cx="8" cy="8" r="5" fill="url(#a)"/><linearGradient id="a"><stop stop-color="red"/></linearGradient>'
    )
    files = {
        "icons.json": {"prefix": "a", "icons": {"b": {"body": circle, "width": 20}},
                       "aliases": {"c": {"parent": "b", "rotate": 1}}},
        "info.json": {"prefix": "a", "name": "A", "author": {"name": "B"}, "license": {"title": "MIT", "spdx": "MIT"}},
        "metadata.json": {"suffixes": {"": "Regular", "bold": "Bold"}},
        "chars.json": {"1f600": "b"},
    }  # fmt: skip
    return {name: json.dumps(content).encode() for name, content in files.items()}


def read_icons(damaged_name: str, changes: list[Edit]) -> None:
    """Damage one file of an icon package and draw it."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in icon_package().items():
            Path(folder, name).write_bytes(damaged(content, changes) if name == damaged_name else content)
        try:
            build_icon_folder(Path(folder, "out"), find_icon_sets(Path(folder)), 16)
        except (ValueError, FileNotFoundError) as error:
            check_sentence(error)


def read_image(data: bytes, changes: list[Edit]) -> None:
    """Decode a damaged image."""
    try:
        decode_image(damaged(data, changes))
    except ImageFileError as error:
        check_sentence(error)


def check_sentence(error: Exception) -> None:
    """A documented error says what was found and what was expected; any other is a bug that came through."""
    assert ". Expected " in str(error), repr(error)


def fuzz(read: Callable[[list[Edit]], None], examples: int = EXAMPLES_A_ROUND, **options: Any) -> None:
    """Run one round of examples; the options are those of hypothesis.

    Raises: what is not documented.
    """

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), **options)
    @given(edits())
    def example(changes: list[Edit]) -> None:
        read(changes)

    example()


def main() -> None:
    """Fuzz every reader in turns until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long to go on (default: 10)")
    args = parser.parse_args()
    disable_progress_bars()
    seeds = images()
    readers: dict[str, Callable[[list[Edit]], None]] = {
        f"image {number}": partial(read_image, data) for number, data in enumerate(seeds)
    }
    readers |= {f"icons, {name}": partial(read_icons, name) for name in icon_package()}
    readers |= {name: partial(read_set, files) for name, files in as_files(seeds[0]).items()}
    rounds, failed, until = dict.fromkeys(readers, 0), {}, time.monotonic() + 60 * args.minutes
    while time.monotonic() < until:
        for name, read in readers.items():
            if name not in failed and time.monotonic() < until:
                try:
                    fuzz(read)
                    rounds[name] += 1
                except Exception as error:  # whatever a reader raises is the result
                    failed[name] = repr(error)[:300]
                    print(f"{name}: {failed[name]}", flush=True)
    print(
        json.dumps(
            {"examples": {name: number * EXAMPLES_A_ROUND for name, number in rounds.items()}, "failed": failed}
        )
    )


if __name__ == "__main__":
    main()
