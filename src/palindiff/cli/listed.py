"""What a user lists on the command line: texts, as options or lines of a file, and pictures, by file or folder."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

PicturesArgument = Annotated[
    list[Path], typer.Argument(metavar="PICTURE", help="Picture files; of a folder, all pictures below it.")
]


def read_lines(path: Path | None) -> list[str]:
    """Read a UTF-8 file's lines that are not blank, stripped; none of no file.

    Raises: FileNotFoundError if there is no such file; ValueError if it is no text or holds no line.
    """
    if path is None:
        return []
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` is no file. Expected a text file with one text on each line.")
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


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """List the pictures that were named, and those below the folders that were named, sorted within each folder.

    Raises: FileNotFoundError if a path does not exist; ValueError if a folder holds no picture.
    """
    from palindiff.data.folder import list_pictures

    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = list_pictures(path)
            if not below:
                raise ValueError(
                    f"The folder `{path}` holds no picture. Expected PNG, JPEG, WebP or the like below it."
                )
            found += [path / name for name in below]
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"`{path}` does not exist. Expected a picture file or a folder of pictures.")
    return found
