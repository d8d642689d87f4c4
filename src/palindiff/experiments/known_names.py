"""Naming among all concepts of training: their names embedded once, and where the right one comes.

Here: names without a style, for images of any style. Not here: recall among one style's captions
(`naming_protocol.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from palindiff.data.emoji import STYLES
from palindiff.data.rows import CaptionedImage
from palindiff.evaluation.retrieval import best_ranks
from palindiff.experiments.emoji_subsets import concept_images, evenly, is_flag
from palindiff.experiments.naming_protocol import embed_images
from palindiff.experiments.shown_captions import without_style
from palindiff.inference.pipeline import PalindiffPipeline

CAPTION = "an emoji of {}"
NUM_SEEN = 50  # training images named in each style
NUM_CHOICES = 10  # names to choose from in `choices`


@dataclass(frozen=True)
class NamedImages:
    """Images, and their scores with the names of all concepts of training."""

    rows: list[CaptionedImage]
    names: list[str]
    scores: Tensor  # (n, k), cosine of every image with every name
    right: Tensor  # (n,) int64, the column of each image's own name

    @property
    def positives(self) -> Tensor:
        """Which name is right for each image, (n, k) bool."""
        return torch.arange(len(self.names)) == self.right[:, None]  # (k,) == (n, 1) -> (n, k)

    @property
    def is_first(self) -> Tensor:
        """Whether the right name comes first among all names, (n,) bool."""
        return best_ranks(self.scores, self.positives) == 0

    @property
    def is_first_of_few(self) -> Tensor:
        """Whether the right name comes first among NUM_CHOICES, its own and those of the next images, (n,) bool."""
        n = len(self.rows)
        columns = (torch.arange(n)[:, None] + torch.arange(min(NUM_CHOICES, n))) % n  # (n, choices): rows
        few = self.scores.gather(1, self.right[columns])  # (n, choices): scores of these rows' names
        right = self.right[columns] == self.right[:, None]
        return best_ranks(few, right) == 0


def seen_images(data_dir: Path) -> list[CaptionedImage]:
    """List evenly spread training images of each style, one a concept, without flags."""
    return [row for style in STYLES for row in evenly(_without_flags(data_dir, style), NUM_SEEN)]


def name_among_all(
    pipeline: PalindiffPipeline, data_dir: Path, groups: Sequence[Sequence[CaptionedImage]]
) -> list[NamedImages]:
    """Name groups of images among all concepts of training, flags left out, and the images' own.

    Raises: ValueError if an image has no label.
    """
    training = [row for style in STYLES for row in _without_flags(data_dir, style)]
    images = [row for group in groups for row in group]
    if missing := [row.source.place for row in (*training, *images) if row.label is None]:
        raise ValueError(f"`{missing[0]}` has no label in `name_among_all`. Expected its concept. Add `label`.")
    names: dict[str | None, str] = {}
    for row in (*training, *images):
        names.setdefault(row.label, without_style(row.captions[0]))
    e = pipeline.encode_text([CAPTION.format(name) for name in names.values()]).cpu()
    columns = {label: column for column, label in enumerate(names)}
    return [
        NamedImages(
            list(group),
            list(names.values()),
            embed_images(pipeline, group) @ e.T,
            torch.tensor([columns[row.label] for row in group]),
        )
        for group in groups
    ]


def _without_flags(data_dir: Path, style: str) -> list[CaptionedImage]:
    return [row for row in concept_images(data_dir, "train", style) if not is_flag(row)]
