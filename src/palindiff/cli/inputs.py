"""What a user lists on the command line: texts, as options or lines of a file, and images, by file or folder."""

from collections import Counter
from collections.abc import Sequence
from os.path import isfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from palindiff.cli.output_option import print_count

IMAGES_AT_ONCE = 16  # checked or walked between two counts; no batch changes an answer

OnBad = Literal["refuse", "skip"]
ImagesArgument = Annotated[
    list[Path], typer.Argument(metavar="IMAGE", help="Image files; of a folder, all images below it.")
]
OnBadOption = Annotated[
    OnBad,
    typer.Option("--on-bad", help="Where images cannot be read: refuse all, naming these, or skip these and go on."),
]


def read_lines(path: Path | None, single: str) -> list[str]:
    """Read a UTF-8 file's lines that are not blank, stripped; none of no file.

    `single` says how one text is given without a file, for who gave a text in the file's place.

    Raises: FileNotFoundError if there is no such file; ValueError if it is no text or holds no line.
    """
    if path is None:
        return []
    if not isfile(path):  # unlike Path.is_file, it takes a text that is too long for a file's name
        raise FileNotFoundError(
            f"`{path}` is no file. Expected a text file with one text on each line. Give a text itself with {single}."
        )
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`{path}` is not UTF-8 ({error.reason}, byte {error.start}). Save it as UTF-8 text."
        ) from error
    if not any(lines):
        raise ValueError(f"`{path}` has no line with text. Expected one text on each line.")
    return [line for line in lines if line]


def check_texts(texts: Sequence[str], what: str, how: str, may_repeat: bool = False) -> None:
    """Refuse texts unless there are some, none is blank, and (unless they may) none is repeated.

    Raises: ValueError; `what` says what one of them is ("label"), and `how` how to give them.
    """
    found = None
    repeated = [text for text, count in Counter(texts).items() if count > 1]
    if not texts:
        found = f"No {what} was given"
    elif any(not text.strip() for text in texts):
        found = f"A {what} is empty"
    elif repeated and not may_repeat:
        found = f"The {what} '{repeated[0]}' is repeated"
    if found:
        more = "" if may_repeat else " different ones,"
        raise ValueError(f"{found}. Expected one or more,{more} none of them empty. Give them with {how}.")


def find_images(paths: Sequence[Path]) -> list[Path]:
    """List the images that were named, and those below the folders that were named, sorted within each folder.

    Raises: FileNotFoundError if a path does not exist; ValueError if a folder holds no image.
    """
    from palindiff.data.folder import list_images

    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = list_images(path)
            if not below:
                raise ValueError(f"The folder `{path}` holds no image. Expected PNG, JPEG, WebP or the like below it.")
            found += [path / name for name in below]
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"`{path}` does not exist. Expected an image file or a folder of images.")
    return found


def readable_images(files: Sequence[Path], on_bad: OnBad) -> list[Path]:
    """Decode every image once, so that bad ones are told before the work and not in its midst.

    Raises: ValueError naming all that cannot be read; where `on_bad` is "skip", only if none is left.
    """
    from palindiff.data.images import ImageFileError, decode_image

    good: list[Path] = []
    faults: list[str] = []
    for done, file in enumerate(files, start=1):
        try:
            decode_image(file)
            good.append(file)
        except ImageFileError as error:
            faults.append(str(error).partition(". Expected ")[0])
        if len(files) > IMAGES_AT_ONCE and (done == len(files) or done % IMAGES_AT_ONCE == 0):
            print_count(done, len(files), "images checked")
    if not faults:
        return good
    found, listed = f"{len(faults):,} of {len(files):,} images cannot be used", "\n  ".join(["", *faults])
    if on_bad == "refuse":
        raise ValueError(
            f"{found}. Expected whole PNG, JPEG, WebP or the like. Mend them, or leave them out with --on-bad skip."
            f"{listed}"
        )
    if not good:
        raise ValueError(f"{found}, and none is left. Expected one or more. Mend them or name others.{listed}")
    typer.echo(f"{found} and were left out:{listed}", err=True)
    return good
