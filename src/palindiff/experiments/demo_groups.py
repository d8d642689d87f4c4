"""What the demo page shows first: generated and named images, from what works to what does not.

Here: five groups, seen concepts, compositions, an unseen vendor, unseen concepts and free wording, each with what to
expect. Not here: retrieval, denoising and curves (`demo_sections.py`), HTML (`demo_page.html`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from palindiff.data.images import decode_image
from palindiff.data.rows import CaptionedImage
from palindiff.evaluation.results import Row
from palindiff.experiments import demo_rates as rates
from palindiff.experiments.bundled_vendor import bundled_vendor_images
from palindiff.experiments.demo_page import Figure, RankedName
from palindiff.experiments.emoji_protocol import METRIC_STEPS
from palindiff.experiments.emoji_subsets import COMPOSITION, SEEN, UNSEEN, evenly
from palindiff.experiments.known_names import NUM_CHOICES, NamedImages, name_among_all, seen_images
from palindiff.experiments.naming_protocol import EmbeddedConcepts
from palindiff.experiments.nearest_training import nearest_images
from palindiff.experiments.shown_captions import FREE, shown_captions, style_of, without_style
from palindiff.inference.defaults import GENERATION_GUIDANCE_SCALE
from palindiff.inference.generation import generate_images
from palindiff.inference.pipeline import PalindiffPipeline

NUM_GENERATED = 12  # captions of each group
NUM_NAMED = 6  # images of each style
NUM_NAMES = 3  # best names of each


class GeneratedImage(NamedTuple):
    """A generated image, and the training image that is most similar to it."""

    figure: Figure
    nearest: Figure


class NamedImage(NamedTuple):
    """An image with its right name, and the names that the model gives it, best first."""

    figure: Figure
    names: list[RankedName]


class Group(NamedTuple):
    """A section of the page: what to expect of generation and of naming, and the images; any part may be empty."""

    title: str
    note: str
    generated: list[GeneratedImage]
    on_generated: str
    named: list[NamedImage]
    on_named: str


def page_groups(
    pipeline: PalindiffPipeline,
    data_dir: Path,
    seed: int,
    unseen: Sequence[EmbeddedConcepts],
    compositions: Sequence[EmbeddedConcepts],
    rows: Sequence[Row],
) -> list[Group]:
    """Generate and name what the page opens with; `rows` are all that was measured of the model."""
    generated = generated_images(pipeline, data_dir, seed)
    seen, vendor = name_among_all(pipeline, data_dir, [seen_images(data_dir), bundled_vendor_images()])
    return [
        Group(
            "Emoji from its training",
            "These captions and images are part of the training.",
            generated[SEEN],
            rates.generation_sentence(rows, SEEN),
            _named_among_all(seen, evenly(range(len(seen.rows)), 2 * NUM_NAMED)),
            rates.seen_sentence(int(seen.is_first.sum()), len(seen.rows), len(seen.names)),
        ),
        Group(
            "Known things in a new style",
            "The training has these things, but never in the style that is asked for or shown here.",
            generated[COMPOSITION],
            rates.generation_sentence(rows, COMPOSITION),
            [each for concepts in compositions for each in _named_in_style(concepts)],
            rates.naming_sentence(rows, COMPOSITION),
        ),
        Group(
            "Known things by another artist",
            "The training has these things, but no image by this artist.",
            [],
            "",
            _named_among_all(vendor, range(len(vendor.rows))),
            f"{_vendor_sentence(vendor)} {rates.vendor_measured(rows)}",
        ),
        Group(
            "Things it has never seen",
            "Neither an image nor a name of these things is part of the training.",
            generated[UNSEEN],
            rates.generation_sentence(rows, UNSEEN),
            [each for concepts in unseen for each in _named_in_style(concepts)],
            rates.naming_sentence(rows, UNSEEN),
        ),
        Group(
            "Free wording",
            "Descriptions that are not the name of an emoji.",
            generated[FREE],
            "Expect little: there is no right image to compare with, so nothing is measured here.",
            [],
            "",
        ),
    ]


def generated_images(pipeline: PalindiffPipeline, data_dir: Path, seed: int) -> dict[str, list[GeneratedImage]]:
    """Generate the captions of each group, and find the training image most similar to each.

    Settings are those of the measured rates, except for the seed.
    """
    groups = shown_captions(data_dir, NUM_GENERATED)
    captions = [caption for group in groups.values() for caption in group]
    seeds = range(seed, seed + len(captions))
    images = generate_images(pipeline, captions, seeds, GENERATION_GUIDANCE_SCALE, METRIC_STEPS)
    nearest = nearest_images(images, [style_of(caption) for caption in captions], data_dir)
    shown = iter(
        GeneratedImage(
            Figure(image, caption),
            Figure(decode_image(row.source), row.captions[0], f"in training: {row.captions[0]}"),
        )
        for image, caption, row in zip(images, captions, nearest, strict=True)
    )
    return {title: [next(shown) for _ in group] for title, group in groups.items()}


def _named_in_style(concepts: EmbeddedConcepts) -> list[NamedImage]:
    """Name evenly spread images among the captions of their style."""
    names, scores = [without_style(caption) for caption in concepts.captions], concepts.scores
    chosen = evenly(range(len(concepts.rows)), NUM_NAMED)
    return [_named(concepts.rows[i], names, scores[i], concepts.positives[i]) for i in chosen]


def _named_among_all(images: NamedImages, chosen: Sequence[int]) -> list[NamedImage]:
    """Name some images among all names."""
    positives = images.positives
    return [_named(images.rows[i], images.names, images.scores[i], positives[i]) for i in chosen]


def _named(row: CaptionedImage, names: Sequence[str], scores: Tensor, is_right: Tensor) -> NamedImage:
    """Shapes: scores (k,), is_right (k,) bool, of the names."""
    best = scores.topk(min(NUM_NAMES, len(names))).indices.tolist()
    figure = Figure(decode_image(row.source), without_style(row.captions[0]), row.captions[0])
    return NamedImage(figure, [RankedName(names[j], float(scores[j]), bool(is_right[j])) for j in best])


def _vendor_sentence(vendor: NamedImages) -> str:
    few, every, num_images = vendor.is_first_of_few, vendor.is_first, len(vendor.rows)
    choices = min(NUM_CHOICES, num_images)
    return rates.vendor_sentence(int(few.sum()), int(every.sum()), num_images, choices, len(vendor.names))
