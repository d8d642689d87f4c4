"""Naming emoji: images and captions of a style embedded once, recall among them, and the error of probabilities.

Here: rows of `results/demo.json` that need no generation. Not here: which images (`emoji_subsets.py`), the images of
an unseen vendor (`vendor_protocol.py`), the metrics (`evaluation/`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from palindiff.data.rows import CaptionedImage
from palindiff.evaluation.calibration import NUM_BINS, expected_calibration_error
from palindiff.evaluation.naming_tasks import RETRIEVAL_KS
from palindiff.evaluation.results import Row
from palindiff.evaluation.retrieval import IMAGE_TO_TEXT, both_ways
from palindiff.experiments.emoji_protocol import EvaluatedModel
from palindiff.experiments.emoji_subsets import COMPOSITION, concept_images
from palindiff.inference.defaults import NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.pipeline import PalindiffPipeline

CALIBRATION_ERROR = "expected_calibration_error"


@dataclass(frozen=True)
class EmbeddedConcepts:
    """Concepts of a style, embedded once: images by text diffusion, captions by the text encoder."""

    style: str
    rows: list[CaptionedImage]
    captions: list[str]
    e_0_hat: Tensor  # (n, d_e), of the images
    e: Tensor  # (n, d_e), of the captions

    @property
    def scores(self) -> Tensor:
        """Cosine of every image with every caption, (n, n)."""
        return self.e_0_hat @ self.e.T

    @property
    def positives(self) -> Tensor:
        """Which captions are right for each image: all that equal its own, (n, n) bool."""
        return torch.tensor([[caption == other for other in self.captions] for caption in self.captions])


def embed_images(pipeline: PalindiffPipeline, rows: Sequence[CaptionedImage]) -> Tensor:
    """Embed images with the settings of all published numbers. Shapes: n rows -> (n, d_e) float32, on the CPU."""
    return pipeline.encode_image([row.source for row in rows], NAMING_STEPS, NAMING_GUIDANCE_SCALE).cpu()


def embed_concepts(pipeline: PalindiffPipeline, rows: Sequence[CaptionedImage], style: str) -> EmbeddedConcepts:
    """Embed images, each with its first caption."""
    captions = [row.captions[0] for row in rows]
    e = pipeline.encode_text(captions).cpu()
    return EmbeddedConcepts(style, list(rows), captions, embed_images(pipeline, rows), e)


def embed_unseen(pipeline: PalindiffPipeline, data_dir: Path, style: str) -> EmbeddedConcepts:
    """Embed every unseen concept of a style."""
    return embed_concepts(pipeline, concept_images(data_dir, "test", style), style)


def embed_compositions(pipeline: PalindiffPipeline, data_dir: Path, style: str) -> EmbeddedConcepts:
    """Embed every concept that training sees in other styles only."""
    return embed_concepts(pipeline, concept_images(data_dir, COMPOSITION, style), style)


def naming_rows(model: EvaluatedModel, concepts: EmbeddedConcepts, split: str = "unseen", **labels: str) -> list[Row]:
    """Measure recall in both directions among all given concepts, at each k that there are enough concepts for."""
    ks = [k for k in RETRIEVAL_KS if k <= len(concepts.rows)]
    found = both_ways(concepts.scores, concepts.positives, ks)
    return [model.label(row, concepts.style, split=split, **labels) for row in found]


def image_to_text_rows(model: EvaluatedModel, concepts: EmbeddedConcepts, split: str, **labels: str) -> list[Row]:
    """Measure recall from images to captions alone."""
    rows = naming_rows(model, concepts, split, **labels)
    return [row for row in rows if row["direction"] == IMAGE_TO_TEXT]


def calibration_row(model: EvaluatedModel, concepts: EmbeddedConcepts) -> Row:
    """Measure how far the probabilities of unseen concepts' captions are from the share of right answers.

    Source: `expected_calibration_error`, with the temperature that the checkpoint has.
    Units:  a share in [0, 1].
    """
    choices, pipeline = list(dict.fromkeys(concepts.captions)), model.pipeline
    columns = [concepts.captions.index(choice) for choice in choices]
    device = pipeline.query_stream.device
    probabilities = pipeline.probabilities(concepts.e_0_hat.to(device), concepts.e[columns].to(device)).cpu()
    truth = torch.tensor([choices.index(caption) for caption in concepts.captions])
    error = expected_calibration_error(probabilities, truth)
    measured: Row = {"metric": CALIBRATION_ERROR, "value": error, "bins": NUM_BINS, "n": len(truth)}
    return model.label(measured, concepts.style, split="unseen")
