"""emoji_protocol.py: which captions are generated, and rows with all that a reader of the results needs."""

import pytest
import torch

from palindiff.data.emoji import STYLES
from palindiff.data.images import decode_image
from palindiff.evaluation.thumbnails import thumbnail_recall
from palindiff.experiments import emoji_protocol
from palindiff.experiments.emoji_protocol import (
    GENERATION_GUIDANCE_SCALE,
    METRIC_STEPS,
    RETRIEVAL_KS,
    as_pixels,
    generation_rows,
    measure_generation,
)
from palindiff.experiments.emoji_subsets import concept_images, evenly
from palindiff.inference.defaults import NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.generation import generate_images


@pytest.fixture
def few(monkeypatch):
    """Ten candidates of which four are generated, in two steps; with random weights more would show no more."""
    for name, number in (("NUM_GENERATION_CONCEPTS", 10), ("NUM_GENERATED", 4), ("METRIC_STEPS", 2)):
        monkeypatch.setattr(emoji_protocol, name, number)


@pytest.mark.parametrize(("split", "folder"), [("seen", "train"), ("unseen", "test")])
def test_generation_rows_are_the_recall_of_the_concept_s_own_image(model, emoji_dir, few, split, folder):
    concepts = evenly(concept_images(emoji_dir, folder, "flat"), 10)
    places = [0, 3, 6, 9]
    captions = [concepts[place].captions[0] for place in places]
    generations = generate_images(model.pipeline, captions, [0, 1, 2, 3], GENERATION_GUIDANCE_SCALE, 2)
    real = as_pixels([decode_image(row.source) for row in concepts])
    expected = thumbnail_recall(as_pixels(generations), torch.tensor(places), real, RETRIEVAL_KS)
    labels = {"model": "bundled", "style": "flat", "split": split, "steps": 1234, "seconds": 568}
    rows = generation_rows(model, emoji_dir, "flat", split)
    assert rows == [row | labels for row in expected]
    assert {row["n"] for row in rows} == {4}
    assert [row["chance"] for row in rows] == pytest.approx([0.1, 0.5, 1.0])


def test_generation_is_measured_in_both_styles_on_every_split_that_the_set_has(model, emoji_dir, few, monkeypatch):
    reported = []
    rows = measure_generation(model, emoji_dir, reported.append)
    groups = [(style, split) for style in STYLES for split in ("seen", "composition", "unseen")]
    assert [(row["style"], row["split"]) for row in rows] == [
        group
        for group in groups
        for _ in (RETRIEVAL_KS if group[1] != "composition" else (1,))  # of three candidates
    ]
    assert reported == [
        f"generating captions of the split {split}, {style} style: 4 if it has as many" for style, split in groups
    ]
    monkeypatch.setattr(emoji_protocol, "has_split", lambda data_dir, split: split != "composition")
    rows = measure_generation(model, emoji_dir, reported.append)
    assert {row["split"] for row in rows} == {"seen", "unseen"}


def test_the_settings_are_those_of_the_published_numbers():
    """A change here is a change of every published number."""
    assert (emoji_protocol.NUM_GENERATION_CONCEPTS, emoji_protocol.NUM_GENERATED) == (237, 200)
    assert (RETRIEVAL_KS, METRIC_STEPS, GENERATION_GUIDANCE_SCALE) == ((1, 5, 10), 20, 4.0)
    assert (NAMING_STEPS, NAMING_GUIDANCE_SCALE) == (8, 1.0)
