"""How the emoji model is measured: which images and captions, and the rows of `results/demo.json`.

Here: the choice of concepts, the same for every model. Not here: the measures (`evaluation/`), the page (`page.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from palindiff.data.emoji import STYLES, Style
from palindiff.data.images import decode_image, to_pixels, to_tensor
from palindiff.data.rows import CaptionedImage
from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.retrieval import Row, both_ways
from palindiff.evaluation.thumbnails import thumbnail_recall
from palindiff.inference.defaults import NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.generation import generate_images
from palindiff.inference.pipeline import PalindiffPipeline

KS = (1, 5, 10)
NUM_GENERATION_CONCEPTS = 237  # candidates of the generation measure, in each style and split
NUM_GENERATED = 200  # captions generated of them
GENERATION_STEPS = 20  # DDIM steps of the generation measure
GENERATION_GUIDANCE_SCALE = 4.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A model to be measured: what the rows call it, and what it cost."""

    name: str  # "bundled" or "trained"
    pipeline: PalindiffPipeline
    steps: int
    seconds: float


def concept_images(data_dir: Path, split: str, style: Style) -> list[CaptionedImage]:
    """List one image a concept, the neutral one, in the order of the set.

    Raises: ValueError if the set's rows do not tell style and representative, as the emoji set's do.
    """
    rows = open_images(DataConfig(path=str(data_dir), split=split))
    untold = next((row for row in rows if not {"style", "is_representative"} <= row.fields.keys()), None)
    if untold is not None:
        raise ValueError(
            f"`{untold.source.place}` has no `style` and `is_representative` in its row. Expected the emoji set in "
            f"`{data_dir}`. Name a folder that `palindiff data emoji` wrote, or one that does not exist yet."
        )
    return [row for row in rows if row.fields["style"] == style and row.fields["is_representative"] == "True"]


def evenly(rows: Sequence[CaptionedImage], number: int) -> list[CaptionedImage]:
    """Take `number` rows spread evenly over all, so that nobody chose them; all, if there are no more."""
    if number >= len(rows):
        return list(rows)
    return [rows[int(place)] for place in torch.linspace(0, len(rows) - 1, number).round()]


@dataclass(frozen=True)
class Embedded:
    """All unseen concepts of a style, embedded once: images by the walk, captions by the text encoder."""

    style: Style
    rows: list[CaptionedImage]
    captions: list[str]
    e_0_hat: Tensor  # (n, d_e), of the images
    e: Tensor  # (n, d_e), of the captions

    @property
    def scores(self) -> Tensor:
        """Cosine of every image with every caption, (n, n)."""
        return self.e_0_hat @ self.e.T


def embed_unseen(pipeline: PalindiffPipeline, data_dir: Path, style: Style) -> Embedded:
    """Embed every unseen concept of a style, each with its first caption."""
    rows = concept_images(data_dir, "test", style)
    captions = [row.captions[0] for row in rows]
    e_0_hat = pipeline.encode_image([row.source for row in rows], NAMING_STEPS, NAMING_GUIDANCE_SCALE)
    return Embedded(style, rows, captions, e_0_hat.cpu(), pipeline.encode_text(captions).cpu())


def naming_rows(model: Trained, embedded: Embedded) -> list[Row]:
    """Measure recall both ways among all unseen concepts of a style."""
    captions = embedded.captions
    positives = torch.tensor([[caption == other for other in captions] for caption in captions])
    return [_told(model, embedded.style, row) for row in both_ways(embedded.scores, positives, KS)]


def generation_rows(model: Trained, data_dir: Path, style: Style, split: str) -> list[Row]:
    """Generate captions of seen or unseen concepts and measure how often the concept's real image is recognised.

    `split` is "seen" (concepts of the training split) or "unseen" (of the test split).
    """
    rows = evenly(concept_images(data_dir, {"seen": "train", "unseen": "test"}[split], style), NUM_GENERATION_CONCEPTS)
    generated = evenly(rows, NUM_GENERATED)
    generations = generate_images(
        model.pipeline,
        [row.captions[0] for row in generated],
        list(range(len(generated))),
        GENERATION_GUIDANCE_SCALE,
        GENERATION_STEPS,
    )
    place = {row.source.name: number for number, row in enumerate(rows)}
    found = thumbnail_recall(
        as_pixels(generations),
        torch.tensor([place[row.source.name] for row in generated]),
        as_pixels([decode_image(row.source) for row in rows]),
        KS,
    )
    return [_told(model, style, row) | {"split": split} for row in found]


def measure_generation(model: Trained, data_dir: Path, tell: Progress) -> list[Row]:
    """Measure generation of seen and unseen concepts in both styles: 800 images are generated."""
    found: list[Row] = []
    for style in STYLES:
        for split in ("seen", "unseen"):
            tell(f"generation {NUM_GENERATED} captions of {split} concepts, {style} style")
            found += generation_rows(model, data_dir, style, split)
    return found


def as_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Shapes: n RGB images of one size -> x (n, 3, H, W) in [-1, 1]."""
    return to_pixels(torch.stack([to_tensor(image) for image in images]))


def _told(model: Trained, style: Style, row: Row) -> Row:
    return {"model": model.name, "style": style, **row, "steps": model.steps, "seconds": round(model.seconds)}
