"""Writing that leaves a whole result or none: a folder or file is built beside its place and renamed into it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """Yield an empty folder beside `output` that takes its name on success and is removed on any error.

    Raises: FileExistsError if `output` exists and holds anything.
    """
    check_is_free(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    folder.chmod(0o755)
    try:
        yield folder
        folder.rename(output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_is_free(output: Path) -> None:
    """Refuse a place where something is already.

    Raises: FileExistsError if `output` exists and holds anything.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(
            f"`{output}` exists and is not empty. Expected a new or empty folder. Remove it or name another."
        )


@contextmanager
def replacing_folder(output: Path) -> Iterator[Path]:
    """Yield an empty folder beside `output` that takes its place on success; on any error the old one stays."""
    fresh = output.with_name(f".{output.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    with atomic_folder(fresh) as folder:
        yield folder
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    fresh.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def atomic_text(path: Path, text: str) -> None:
    """Replace a file by `text` in one step: readers see the old text or the new, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
