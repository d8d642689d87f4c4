"""Atomic writing: a folder or file is built beside its destination and renamed; readers see all of it or nothing."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile


@contextmanager
def atomic_folder(output: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `output` on success; if the block raises, `output` stays as it was.

    `replace` allows `output` to exist: its old contents are deleted once the new folder is in its place.

    Raises: FileExistsError if `output` exists, is not an empty folder, and `replace` is False.
    """
    if not replace:
        check_is_free(output)
    output = output.resolve()  # a link stays, and its target is replaced
    output.parent.mkdir(parents=True, exist_ok=True)
    old = output.with_name(f".{output.name}.old")
    with TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent, ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / output.name
        folder.mkdir()
        folder.chmod(0o755)
        yield folder
        if replace and output.exists():
            shutil.rmtree(old, ignore_errors=True)
            output.rename(old)
        folder.rename(output)
        if replace:
            shutil.rmtree(old, ignore_errors=True)


def check_is_free(output: Path) -> None:
    """Check that nothing would be overwritten.

    Raises: FileExistsError if `output` exists and is not an empty folder.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(
            f"`{output}` exists and is not empty. Expected a new or empty folder. Remove it or name another."
        )


def check_writable(folder: Path, what: str, remedy: str) -> None:
    """Check, before anything is computed for it, that files can be made in a folder.

    Raises: OSError that says what would be written, and the remedy, such as the setting of another folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"{what} cannot be written to `{folder}` ({error.strerror or error}). Expected a folder that can be "
            f"written. {remedy}"
        ) from error


def claim_folder(folder: Path, index_name: str, index: str, what: str) -> None:
    """Write an index file into a new folder, or leave that of an earlier run; several processes may do so at once.

    Hidden files, such as a killed run's temporary ones, do not count as contents.

    Raises: ValueError if the folder has other contents and no index; OSError if it cannot be written.
    """
    check_writable(folder, what, "Name another folder.")
    held = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if (folder / index_name).is_file():  # looked for after the contents, which another process may write meanwhile
        return
    if held:
        raise ValueError(
            f"`{folder}` holds other files, such as `{held[0]}`. Expected a new folder, or one with {index_name}. Use "
            "another folder."
        )
    atomic_text(folder / index_name, index)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file beside `path`, which is renamed to it on success."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_text(path: Path, text: str) -> None:
    """Replace the contents of a file in one step: readers see the old text or the new, never a part."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
