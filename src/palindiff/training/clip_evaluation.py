"""Evaluation of a CLIP in training on the validation images that its trainer holds as pixels.

Here: what the trainers of every objective with a CLIP share. Not here: the evaluators (`evaluation/evaluators.py`).
"""

from collections.abc import Iterable

import torch

from palindiff.data.images import to_pixels
from palindiff.data.sources import ImageSet
from palindiff.evaluation import evaluators
from palindiff.evaluation.results import Row
from palindiff.inference.clip_model import ClipModel
from palindiff.inference.defaults import IMAGES_AT_ONCE
from palindiff.training.base_trainer import NO_AUGMENTATION
from palindiff.training.features.pixels import PixelSet

EVALUATORS = {"retrieval": evaluators.retrieval, "classification": evaluators.classification}


def clip_rows(
    model: ClipModel, images: ImageSet, pixels: PixelSet, options: evaluators.NamingSection, names: Iterable[str]
) -> list[Row]:
    """Run some of `EVALUATORS` on images, whole and not mirrored, with their first captions.

    pixels: of the same images, in the same order.
    """
    e_hat = []
    for rows in torch.arange(len(pixels)).split(IMAGES_AT_ONCE):
        x = to_pixels(pixels.read(rows, NO_AUGMENTATION.expand(len(rows), 2))["x"])
        e_hat += model.embed_pixels(x, [{}])
    every = list(images)
    data = evaluators.EvaluationImages(
        [image.source for image in every], [image.captions[0] for image in every], [image.label for image in every],
        torch.cat(e_hat),
    )  # fmt: skip
    return [row for name in names for row in EVALUATORS[name](model, data, options)]
