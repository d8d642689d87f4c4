"""How an emoji model is evaluated: which images and captions, and the rows of `results/demo.json`.

Here: the choice of concepts, the same for every model. Not here: the metrics (`evaluation/`) and the page
(`demo_sections.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from palindiff.data.emoji import STYLES
from palindiff.data.images import decode_image, to_pixels, to_tensor
from palindiff.data.rows import CaptionedImage
from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.evaluators import KS
from palindiff.evaluation.results import Row
from palindiff.evaluation.retrieval import both_ways
from palindiff.evaluation.thumbnails import thumbnail_recall
from palindiff.inference.defaults import GENERATION_GUIDANCE_SCALE, NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.generation import generate_images
from palindiff.inference.pipeline import PalindiffPipeline

NUM_GENERATION_CONCEPTS = 237  # candidates of the generation metric, in each style and split
NUM_GENERATED = 200  # captions generated of them
METRIC_STEPS = 20  # DDIM steps of the generation metric
SPLITS = {"seen": "train", "unseen": "test"}  # result label -> split of the emoji set

T = TypeVar("T")
Report = Callable[[str], None]  # takes a line that says what happens now


@dataclass(frozen=True)
class EvaluatedModel:
    """A model under evaluation: its label in the rows, and what its training took."""

    name: str  # "bundled" or "trained"
    pipeline: PalindiffPipeline
    steps: int
    seconds: float

    def label(self, row: Row, style: str, **labels: str) -> Row:
        """Complete a row of a metric with the labels of a result file."""
        training = {"steps": self.steps, "seconds": round(self.seconds)}
        return {"model": self.name, "style": style, **row, **training, **labels}


@dataclass(frozen=True)
class EmbeddedConcepts:
    """All unseen concepts of a style, embedded once: images by text diffusion, captions by the text encoder."""

    style: str
    rows: list[CaptionedImage]
    captions: list[str]
    e_0_hat: Tensor  # (n, d_e), of the images
    e: Tensor  # (n, d_e), of the captions

    @property
    def scores(self) -> Tensor:
        """Cosine of every image with every caption, (n, n)."""
        return self.e_0_hat @ self.e.T


def concept_images(data_dir: Path, split: str, style: str) -> list[CaptionedImage]:
    """List one image of each concept, the neutral one, in the order of the set.

    Raises: ValueError if the set's rows have no style and representative, as the emoji set's do.
    """
    rows = open_images(DataConfig(path=str(data_dir), split=split))
    for row in rows:
        if not {"style", "is_representative"} <= row.fields.keys():
            raise ValueError(
                f"`{row.source.place}` has no `style` and `is_representative` in its row. Expected the emoji set in "
                f"`{data_dir}`. Use a folder that `palindiff data emoji` wrote, or one that does not exist yet."
            )
    return [row for row in rows if row.fields["style"] == style and row.fields["is_representative"] == "True"]


def evenly(rows: Sequence[T], number: int) -> list[T]:
    """Take `number` rows spread evenly over all, so that none is hand-picked; all rows if there are no more."""
    if number >= len(rows):
        return list(rows)
    return [rows[int(i)] for i in torch.linspace(0, len(rows) - 1, number).round()]


def embed_unseen(pipeline: PalindiffPipeline, data_dir: Path, style: str) -> EmbeddedConcepts:
    """Embed every unseen concept of a style, each with its first caption."""
    rows = concept_images(data_dir, "test", style)
    captions = [row.captions[0] for row in rows]
    e_0_hat = pipeline.encode_image([row.source for row in rows], NAMING_STEPS, NAMING_GUIDANCE_SCALE)
    return EmbeddedConcepts(style, rows, captions, e_0_hat.cpu(), pipeline.encode_text(captions).cpu())


def naming_rows(model: EvaluatedModel, concepts: EmbeddedConcepts) -> list[Row]:
    """Measure recall in both directions among all unseen concepts of a style."""
    captions = concepts.captions
    positives = torch.tensor([[caption == other for other in captions] for caption in captions])
    return [model.label(row, concepts.style) for row in both_ways(concepts.scores, positives, KS)]


def generation_rows(model: EvaluatedModel, data_dir: Path, style: str, split: str) -> list[Row]:
    """Generate captions of `seen` or `unseen` concepts; measure how often the concept's real image is recognised."""
    rows = evenly(concept_images(data_dir, SPLITS[split], style), NUM_GENERATION_CONCEPTS)
    chosen = evenly(range(len(rows)), NUM_GENERATED)
    captions, seeds = [rows[i].captions[0] for i in chosen], list(range(len(chosen)))
    generated = generate_images(model.pipeline, captions, seeds, GENERATION_GUIDANCE_SCALE, METRIC_STEPS)
    real = as_pixels([decode_image(row.source) for row in rows])
    found = thumbnail_recall(as_pixels(generated), torch.tensor(chosen), real, KS)
    return [model.label(row, style, split=split) for row in found]


def measure_generation(model: EvaluatedModel, data_dir: Path, report: Report) -> list[Row]:
    """Measure generation of seen and unseen concepts in both styles: 800 images are generated."""
    found: list[Row] = []
    for style in STYLES:
        for split in SPLITS:
            report(f"generating {NUM_GENERATED} captions of {split} concepts, {style} style")
            found += generation_rows(model, data_dir, style, split)
    return found


def as_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Shapes: n RGB images of one size -> x (n, 3, H, W) in [-1, 1]."""
    return to_pixels(torch.stack([to_tensor(image) for image in images]))
