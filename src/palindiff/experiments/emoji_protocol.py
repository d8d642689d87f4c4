"""How the emoji model is measured: which pictures and captions, and the rows of `results/demo.json`.

Here: the choice of concepts, the same for every model. Not here: the measures (`evaluation/`), the page (`page.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from palindiff.data.emoji import STYLES, Style
from palindiff.data.pictures import read_picture, to_pixels, to_tensor
from palindiff.data.rows import CaptionedPicture
from palindiff.data.sources import DataConfig, open_pictures
from palindiff.evaluation.paintings import painting_recall
from palindiff.evaluation.retrieval import Row, both_ways
from palindiff.inference.defaults import NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.painting import paint
from palindiff.inference.pipeline import PalindiffPipeline

KS = (1, 5, 10)
NUM_PAINTING_CONCEPTS = 237  # candidates of the painting measure, in each style and split
NUM_PAINTED = 200  # captions painted of them
PAINTING_STEPS = 20  # DDIM steps of the painting measure
PAINTING_GUIDANCE_SCALE = 4.0

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A model to be measured: what the rows call it, and what it cost."""

    name: str  # "shipped" or "trained"
    pipeline: PalindiffPipeline
    steps: int
    seconds: float


def concept_pictures(data_dir: Path, split: str, style: Style) -> list[CaptionedPicture]:
    """List one picture a concept, the neutral one, in the order of the set.

    Raises: ValueError if the set's rows do not tell style and representative, as the emoji set's do.
    """
    rows = open_pictures(DataConfig(path=str(data_dir), split=split))
    untold = next((row for row in rows if not {"style", "is_representative"} <= row.fields.keys()), None)
    if untold is not None:
        raise ValueError(
            f"`{untold.source.place}` has no `style` and `is_representative` in its row. Expected the emoji set in "
            f"`{data_dir}`. Name a folder that `palindiff data emoji` wrote, or one that does not exist yet."
        )
    return [row for row in rows if row.fields["style"] == style and row.fields["is_representative"] == "True"]


def evenly(rows: Sequence[CaptionedPicture], number: int) -> list[CaptionedPicture]:
    """Take `number` rows spread evenly over all, so that nobody chose them; all, if there are no more."""
    if number >= len(rows):
        return list(rows)
    return [rows[int(place)] for place in torch.linspace(0, len(rows) - 1, number).round()]


@dataclass(frozen=True)
class Embedded:
    """All unseen concepts of a style, embedded once: pictures by the walk, captions by the text tower."""

    style: Style
    rows: list[CaptionedPicture]
    captions: list[str]
    e_0_hat: Tensor  # (n, d_e), of the pictures
    e: Tensor  # (n, d_e), of the captions

    @property
    def scores(self) -> Tensor:
        """Cosine of every picture with every caption, (n, n)."""
        return self.e_0_hat @ self.e.T


def embed_unseen(pipeline: PalindiffPipeline, data_dir: Path, style: Style) -> Embedded:
    """Embed every unseen concept of a style, each with its first caption."""
    rows = concept_pictures(data_dir, "test", style)
    captions = [row.captions[0] for row in rows]
    e_0_hat = pipeline.encode_image([row.source for row in rows], NAMING_STEPS, NAMING_GUIDANCE_SCALE)
    return Embedded(style, rows, captions, e_0_hat.cpu(), pipeline.encode_text(captions).cpu())


def naming_rows(model: Trained, embedded: Embedded) -> list[Row]:
    """Measure recall both ways among all unseen concepts of a style."""
    captions = embedded.captions
    positives = torch.tensor([[caption == other for other in captions] for caption in captions])
    return [_told(model, embedded.style, row) for row in both_ways(embedded.scores, positives, KS)]


def painting_rows(model: Trained, data_dir: Path, style: Style, split: str) -> list[Row]:
    """Paint captions of seen or unseen concepts and measure how often the concept's real picture is recognised.

    `split` is "seen" (concepts of the training split) or "unseen" (of the test split).
    """
    rows = evenly(concept_pictures(data_dir, {"seen": "train", "unseen": "test"}[split], style), NUM_PAINTING_CONCEPTS)
    painted = evenly(rows, NUM_PAINTED)
    paintings = paint(
        model.pipeline,
        [row.captions[0] for row in painted],
        list(range(len(painted))),
        PAINTING_GUIDANCE_SCALE,
        PAINTING_STEPS,
    )
    place = {row.source.name: number for number, row in enumerate(rows)}
    found = painting_recall(
        as_pixels(paintings),
        torch.tensor([place[row.source.name] for row in painted]),
        as_pixels([read_picture(row.source) for row in rows]),
        KS,
    )
    return [_told(model, style, row) | {"split": split} for row in found]


def measure_painting(model: Trained, data_dir: Path, tell: Tell) -> list[Row]:
    """Measure painting of seen and unseen concepts in both styles: 800 pictures are painted."""
    found: list[Row] = []
    for style in STYLES:
        for split in ("seen", "unseen"):
            tell(f"painting {NUM_PAINTED} captions of {split} concepts, {style} style")
            found += painting_rows(model, data_dir, style, split)
    return found


def as_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Shapes: n RGB pictures of one size -> x (n, 3, H, W) in [-1, 1]."""
    return to_pixels(torch.stack([to_tensor(picture) for picture in pictures]))


def _told(model: Trained, style: Style, row: Row) -> Row:
    return {"model": model.name, "style": style, **row, "steps": model.steps, "seconds": round(model.seconds)}
