"""A data set of an evaluation: its rows, its classes, and the name that records give it.

Here: opening it. Not here: reading a source (`data/sources.py`), class sets (`class_sets.py`).
"""

from dataclasses import dataclass, replace
from pathlib import Path

from palindiff.data.rows import ImageSet
from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.class_sets import ClassSet, class_set_of


@dataclass(frozen=True)
class NamedData:
    """A data set and the name that records give it."""

    name: str
    config: DataConfig
    class_set: ClassSet | None = None  # None: the classes are those of the images
    filters_training: bool = True  # whether the conditions on rows hold for another split too

    @property
    def path(self) -> Path:
        """Where it is, with the split in the path."""
        return Path(self.config.path.replace("{split}", self.config.split)).expanduser()

    def open(self) -> ImageSet:
        """Open the rows.

        Raises: as `open_images`.
        """
        return open_images(self.config)

    def classes(self, rows: ImageSet) -> ClassSet:
        """Its class set, or that of its images.

        Raises: as `class_set_of`.
        """
        if self.class_set is not None:
            return self.class_set
        return class_set_of(rows, self.path if self.path.is_dir() else self.path.parent)

    def of_split(self, split: str) -> "NamedData":
        """The same data set's other split."""
        where = self.config.where if self.filters_training else ()
        config = self.config.model_copy(update={"split": split, "where": where})
        return replace(self, name=f"{self.name}, {split}", config=config)


def has_classes(rows: ImageSet) -> bool:
    """Whether each image has a class, and there are two or more."""
    labels = {label for _, label in rows.texts()}
    return None not in labels and len(labels) > 1
