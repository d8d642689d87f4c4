"""The class names that a checkpoint was trained on, kept beside its weights: what it answers if no label is given.

Not here: classification (`inference/pipeline.py`).
"""

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from palindiff.atomic import atomic_text

VOCABULARY_FILE = "vocabulary.json"
MAX_LABELS = 20_000
MAX_BYTES = 16_000_000


class Vocabulary(BaseModel, frozen=True, extra="forbid"):
    """Class names, and the prompt templates that make captions of them."""

    labels: tuple[str, ...] = Field(min_length=2, max_length=MAX_LABELS)
    templates: tuple[str, ...] = Field(min_length=1)

    def write(self, folder: Path) -> None:
        """Write it into the folder of a checkpoint."""
        atomic_text(folder / VOCABULARY_FILE, self.model_dump_json(indent=1) + "\n")


def vocabulary_of(labels: Iterable[str | None], templates: tuple[str, ...]) -> Vocabulary | None:
    """Make a vocabulary of the classes of a training set; None if there are fewer than two, or too many."""
    names = sorted({label for label in labels if label})
    return Vocabulary(labels=tuple(names), templates=templates) if 2 <= len(names) <= MAX_LABELS else None


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Read the vocabulary of a checkpoint's folder; None if it has none.

    Raises: ValueError if the file cannot be read.
    """
    file = folder / VOCABULARY_FILE
    if not file.is_file():
        return None
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError("too large")
        return Vocabulary.model_validate_json(file.read_bytes())
    except ValueError as error:  # pydantic's is one
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ValueError(
            f"`{file}` cannot be read ({problem}). Expected `labels` and `templates`, as training writes them. Remove "
            "the file, and pass labels to classify."
        ) from error
