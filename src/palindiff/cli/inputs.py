"""Inputs of verbs: texts from options or lines of a file, and images from files or folders."""

from collections.abc import Callable, Iterator, Sequence
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palindiff.cli.output_option import print_count
from palindiff.data.on_bad import OnBad
from palindiff.inference.defaults import IMAGES_PER_COUNT

if TYPE_CHECKING:
    from PIL import Image

ImagesArgument = Annotated[
    list[Path], typer.Argument(metavar="IMAGE", help="Image files; of a folder, all images below it.")
]
OnBadOption = Annotated[
    OnBad, typer.Option("--on-bad", help="Images that cannot be read: refuse and list all of them, or skip them.")
]


def read_lines(path: Path | None, single: str) -> list[str]:
    """Read the lines of a UTF-8 file, stripped and without blank ones; no file has no lines.

    `single` is the option for one text, named if a text was passed in place of a file.

    Raises: FileNotFoundError if there is no such file; ValueError if it is not text or has no line.
    """
    if path is None:
        return []
    if not isfile(path):  # unlike Path.is_file, it accepts a text that is too long for a file name
        raise FileNotFoundError(
            f"`{path}` is no file. Expected a text file with one text on each line. Pass a text itself with {single}."
        )
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`{path}` is not UTF-8 ({error.reason}, byte {error.start}). Expected text. Save the file as UTF-8."
        ) from error
    if not any(lines):
        raise ValueError(f"`{path}` has no line with text. Expected one text on each line. Pass another file.")
    return [line for line in lines if line]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """List the given image files and all images below the given folders, sorted within each folder.

    Raises: FileNotFoundError if a path does not exist; ValueError if a folder has no image.
    """
    from palindiff.data.folder import list_images

    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"`{path}` does not exist. Expected an image file or a folder. Fix the path.")
        below = list_images(path) if path.is_dir() else []
        if path.is_dir() and not below:
            raise ValueError(
                f"The folder `{path}` holds no image. Expected PNG, JPEG, WebP or the like. Pass another folder."
            )
        found += [path / name for name in below] or [path]
    return found


class ImageFiles:
    """Image files for a pipeline, which decodes each of them once, when its turn comes.

    Most bad files are found by their headers, before a model is loaded; others when they are decoded.
    """

    def __init__(self, files: Sequence[Path], on_bad: OnBad) -> None:
        """Check all headers.

        Raises: ValueError that lists all bad files; if `on_bad` is "skip", only if no good one is left.
        """
        from palindiff.data.images import check_header, decode_image

        self.on_bad = on_bad
        self.files, faults = _separate(files, check_header)  # after iteration without those that could not be decoded
        if faults and on_bad == "refuse":  # nothing will be encoded: find the other bad files too
            self.files, faults = _separate(files, decode_image)
        self._report(faults, len(files))

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> "Iterator[Image.Image]":
        from palindiff.data.images import ImageFileError, decode_image

        files, good, faults = self.files, [], []
        for number, file in enumerate(files, start=1):
            try:
                image = decode_image(file)
            except ImageFileError as error:
                faults.append(_fault(error))
                if self.on_bad == "refuse":
                    faults += _separate(files[number:], decode_image)[1]
                    break
            else:
                good.append(file)
                yield image
        self.files = good
        self._report(faults, len(files))

    def _report(self, faults: list[str], num_files: int) -> None:
        if not faults:
            return
        found, listed = f"{len(faults):,} of {num_files:,} images cannot be used", "\n  ".join(["", *faults])
        if self.on_bad == "refuse":
            raise ValueError(
                f"{found}. Expected whole PNG, JPEG, WebP or the like. Fix them, or use --on-bad skip.{listed}"
            )
        if not self.files:
            raise ValueError(f"{found}, and none is left. Expected one or more. Fix them or pass others.{listed}")
        typer.echo(f"{found} and were left out:{listed}", err=True)


def _separate(files: Sequence[Path], read: Callable[[Path], object]) -> tuple[list[Path], list[str]]:
    """Try to read all files -> the good ones, and what is wrong with the others."""
    from palindiff.data.images import ImageFileError

    good, faults = [], []
    for done, file in enumerate(files, start=1):
        try:
            read(file)
            good.append(file)
        except ImageFileError as error:
            faults.append(_fault(error))
        if len(files) > IMAGES_PER_COUNT and (done == len(files) or done % IMAGES_PER_COUNT == 0):
            print_count(done, len(files), "images checked")
    return good, faults


def _fault(error: ValueError) -> str:
    return str(error).partition(". Expected ")[0]
