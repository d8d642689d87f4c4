"""A model under evaluation, and how its generated emoji are measured: whether a caption's own image is recognised.

Here: rows of `results/demo.json` that need generation. Not here: which concepts (`emoji_subsets.py`), naming
(`naming_protocol.py`), the metrics (`evaluation/`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from palindiff.data.emoji import STYLES
from palindiff.data.images import decode_image, to_pixels, to_tensor
from palindiff.evaluation.naming_tasks import RETRIEVAL_KS
from palindiff.evaluation.results import Row
from palindiff.evaluation.thumbnails import thumbnail_recall
from palindiff.experiments.emoji_subsets import SPLITS, concept_images, evenly, has_split
from palindiff.inference.defaults import GENERATION_GUIDANCE_SCALE
from palindiff.inference.generation import generate_images
from palindiff.inference.pipeline import PalindiffPipeline

NUM_GENERATION_CONCEPTS = 237  # candidates of the generation metric, in each style and split
NUM_GENERATED = 200  # captions generated of them
METRIC_STEPS = 20  # DDIM steps of the generation metric

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


def generation_rows(model: EvaluatedModel, data_dir: Path, style: str, split: str) -> list[Row]:
    """Generate captions of a split; measure how often the concept's real image is recognised."""
    rows = evenly(concept_images(data_dir, SPLITS[split], style), NUM_GENERATION_CONCEPTS)
    chosen = evenly(range(len(rows)), NUM_GENERATED)
    captions, seeds = [rows[i].captions[0] for i in chosen], list(range(len(chosen)))
    generated = generate_images(model.pipeline, captions, seeds, GENERATION_GUIDANCE_SCALE, METRIC_STEPS)
    real = as_pixels([decode_image(row.source) for row in rows])
    ks = [k for k in RETRIEVAL_KS if k <= len(rows)]
    found = thumbnail_recall(as_pixels(generated), torch.tensor(chosen), real, ks)
    return [model.label(row, style, split=split) for row in found]


def measure_generation(model: EvaluatedModel, data_dir: Path, report: Report) -> list[Row]:
    """Measure generation in both styles: seen concepts, compositions if the set has them, and unseen concepts."""
    found: list[Row] = []
    for style in STYLES:
        for split in (label for label, folder in SPLITS.items() if has_split(data_dir, folder)):
            report(f"generating captions of the split {split}, {style} style: {NUM_GENERATED} if it has as many")
            found += generation_rows(model, data_dir, style, split)
    return found


def as_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Shapes: n RGB images of one size -> x (n, 3, H, W) in [-1, 1]."""
    return to_pixels(torch.stack([to_tensor(image) for image in images]))
