"""Inputs of verbs: texts from options or lines of a file, and images from files or folders."""

from collections.abc import Callable, Iterator, Sequence
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palindiff.cli.output_option import print_count
from palindiff.data.on_bad import OnBad
from palindiff.inference.defaults import IMAGES_PER_COUNT

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from palindiff.data.images import ImageFileError
    from palindiff.inference.embedder import Embedder

EMBEDDINGS_FILE = "embeddings.json"  # marks a folder that `palindiff embed` writes
ImagesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGE", help="Image files; of a folder, all images below it; or one folder written by `embed`."
    ),
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
            f"`{path}` is not a file. Expected a text file with one text on each line. "
            f"Pass a text itself with {single}."
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


def open_inputs(paths: Sequence[Path], on_bad: OnBad) -> "ImageFiles | KeptEmbeddings":
    """Open image files, or a folder of embeddings.

    Raises: as `find_images` and `ImageFiles`; ValueError if a folder of embeddings is not the only path.
    """
    embedded = [path for path in paths if (path / EMBEDDINGS_FILE).is_file()]
    if not embedded:
        return ImageFiles(find_images(paths), on_bad)
    if len(paths) > 1:
        raise ValueError(
            f"`{embedded[0]}` holds embeddings, and {len(paths) - 1} more paths were given. Expected it alone. Remove "
            "the others, or embed them into a folder of their own."
        )
    return KeptEmbeddings(embedded[0])


def find_images(paths: Sequence[Path]) -> list[Path]:
    """List the given image files and all images below the given folders, sorted within each folder.

    Raises: FileNotFoundError if a path does not exist; ValueError if a folder has no image.
    """
    from palindiff.data.folder import list_images

    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"`{path}` does not exist. Expected an image file or a folder. Fix the path.")
        images = [path / name for name in list_images(path)] if path.is_dir() else [path]
        if not images:
            raise ValueError(
                f"The folder `{path}` holds no image. Expected PNG, JPEG, WebP or the like. Pass another folder."
            )
        found += images
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

        self.files, self.on_bad = list(files), on_bad
        errors = _read_errors(files, check_header)
        if errors and on_bad == "refuse":  # nothing will be encoded: find the other bad files too
            errors = _read_errors(files, decode_image)
        self._leave_out(errors)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def names(self) -> list[str]:
        """The files that can be used; after `embed`, those that could be decoded."""
        return [str(file) for file in self.files]

    def embed(self, model: "Embedder", options: dict[str, Any]) -> "Tensor":
        """Embed the images, with the options of `encode_image`."""
        return model.encode_image(self, **options, batch_size=IMAGES_PER_COUNT, progress=print_count)

    def __iter__(self) -> "Iterator[Image.Image]":
        """Decode the files; after the last one, `files` are those that could be decoded."""
        from palindiff.data.images import ImageFileError, decode_image

        errors = {}
        for number, file in enumerate(self.files, start=1):
            try:
                yield decode_image(file)
            except ImageFileError as error:
                errors[file] = error
                if self.on_bad == "refuse":
                    errors |= _read_errors(self.files[number:], decode_image)
                    break
        self._leave_out(errors)

    def _leave_out(self, errors: "dict[Path, ImageFileError]") -> None:
        """Refuse bad files, or go on without them and say so."""
        if not errors:
            return
        good = [file for file in self.files if file not in errors]
        found = f"{len(self.files) - len(good):,} of {len(self.files):,} images cannot be used"
        listed = "".join(f"\n  {str(error).partition('. Expected ')[0]}" for error in errors.values())
        if self.on_bad == "refuse":
            raise ValueError(
                f"{found}. Expected whole PNG, JPEG, WebP or the like. Fix them, or use --on-bad skip.{listed}"
            )
        if not good:
            raise ValueError(f"{found}, and none is left. Expected one or more. Fix them or pass others.{listed}")
        typer.echo(f"{found} and were left out:{listed}", err=True)
        self.files = good


class KeptEmbeddings:
    """Embeddings that `palindiff embed` wrote, in place of images."""

    def __init__(self, folder: Path) -> None:
        """Read all of them.

        Raises: ValueError if the folder is damaged, or its run was stopped.
        """
        from palindiff.inference.embeddings import read_all

        self.folder = folder
        self._e_0_hat, columns = read_all(folder)
        self.names: list[str] = columns["image_path"]

    def embed(self, model: "Embedder", options: dict[str, Any]) -> "Tensor":
        """Return the embeddings if this model made them with these options.

        Raises: ValueError.
        """
        from palindiff.inference.embeddings import check_made_by

        check_made_by(self.folder, model, options)
        return self._e_0_hat.to(model.device)


def _read_errors(files: Sequence[Path], read: Callable[[Path], object]) -> "dict[Path, ImageFileError]":
    """Try to read all files -> the errors of the bad ones."""
    from palindiff.data.images import ImageFileError

    errors = {}
    for done, file in enumerate(files, start=1):
        try:
            read(file)
        except ImageFileError as error:
            errors[file] = error
        if len(files) > IMAGES_PER_COUNT and (done == len(files) or done % IMAGES_PER_COUNT == 0):
            print_count("images checked", done, len(files))
    return errors
