"""emoji_protocol.py: which concepts are measured, and rows with all that a reader of the results needs."""

import itertools

import pytest
import torch

from palindiff.data.emoji import STYLES
from palindiff.data.images import decode_image
from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.retrieval import both_ways
from palindiff.evaluation.thumbnails import thumbnail_recall
from palindiff.experiments import emoji_protocol
from palindiff.experiments.emoji_protocol import (
    GENERATION_GUIDANCE_SCALE,
    KS,
    METRIC_STEPS,
    EmbeddedConcepts,
    as_pixels,
    concept_images,
    evenly,
    generation_rows,
    measure_generation,
    naming_rows,
)
from palindiff.inference.defaults import NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.generation import generate_images
from toys.run import write_images


@pytest.mark.parametrize("style", STYLES)
def test_a_concept_is_its_neutral_image_in_the_order_of_the_set(emoji_dir, style):
    found = concept_images(emoji_dir, "test", style)
    assert [row.source.name for row in found] == [f"{style}/{number}.png" for number in range(12)]
    assert len(open_images(DataConfig(path=str(emoji_dir), split="test"))) == 2 * (12 + 4)


def test_a_set_without_styles_is_refused(tmp_path):
    folder = write_images(tmp_path)
    with pytest.raises(ValueError, match=r"has no `style` and `is_representative`.*Expected the emoji set in"):
        concept_images(folder, "train", "flat")


@pytest.mark.parametrize(("total", "number"), [(12, 5), (12, 11), (237, 200), (1000, 237), (3, 1), (12, 2)])
def test_evenly_spread_rows_are_as_many_and_all_different(total, number):
    chosen = evenly(range(total), number)
    assert len(chosen) == len(set(chosen)) == number
    assert chosen == sorted(chosen)
    assert chosen[0] == 0
    if number > 1:
        assert chosen[-1] == total - 1
        gaps = [after - before for before, after in itertools.pairwise(chosen)]
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("number", [4, 5, 200])
def test_all_rows_are_taken_where_there_are_no_more(number):
    assert evenly("abcd", number) == list("abcd")


def test_images_and_captions_are_embedded_as_the_pipeline_does(model, emoji_dir, embedded):
    for style, each in zip(STYLES, embedded, strict=True):
        rows = concept_images(emoji_dir, "test", style)
        captions = [row.captions[0] for row in rows]
        assert (each.style, each.rows, each.captions) == (style, rows, captions)
        settings = {"num_inference_steps": NAMING_STEPS, "guidance_scale": NAMING_GUIDANCE_SCALE}
        scores = model.pipeline.rank([row.source for row in rows], captions, **settings)
        assert torch.equal(each.scores, scores.cpu())
        assert each.scores.std(dim=0).min() > 1e-4  # the images do differ


def test_naming_rows_are_recall_both_ways_with_chance(model, embedded):
    rows = naming_rows(model, embedded[1])
    expected = both_ways(embedded[1].scores, torch.eye(12, dtype=torch.bool), KS)
    labels = {"model": "bundled", "style": "outlined", "steps": 1234, "seconds": 568}
    assert rows == [row | labels for row in expected]
    assert [(row["direction"], row["k"]) for row in rows] == [
        (direction, k) for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    ]
    for row in rows:
        assert row["chance"] == pytest.approx(row["k"] / 12)
        assert row["n"] == 12


def test_equal_captions_are_all_right_when_naming(model, embedded):
    """Twelve images of two captions: any of the six is right, so one is always among the seven best."""
    e = embedded[0]
    captions = ["even", "odd"] * 6
    duplicates = EmbeddedConcepts(e.style, e.rows, captions, e.e_0_hat, model.pipeline.encode_text(captions))
    rows = [row for row in naming_rows(model, duplicates) if row["direction"] == "text_to_image"]
    assert [row["recall"] for row in rows if row["k"] == 10] == [1.0]
    assert rows[0]["chance"] == pytest.approx(0.5)


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
    expected = thumbnail_recall(as_pixels(generations), torch.tensor(places), real, KS)
    labels = {"model": "bundled", "style": "flat", "split": split, "steps": 1234, "seconds": 568}
    rows = generation_rows(model, emoji_dir, "flat", split)
    assert rows == [row | labels for row in expected]
    assert {row["n"] for row in rows} == {4}
    assert [row["chance"] for row in rows] == pytest.approx([0.1, 0.5, 1.0])


def test_generation_is_measured_in_both_styles_on_seen_and_unseen_concepts(model, emoji_dir, few):
    reported = []
    rows = measure_generation(model, emoji_dir, reported.append)
    groups = [(style, split) for style in STYLES for split in ("seen", "unseen")]
    assert [(row["style"], row["split"]) for row in rows] == [group for group in groups for _ in KS]
    assert reported == [f"generating 4 captions of {split} concepts, {style} style" for style, split in groups]


def test_the_settings_are_those_of_the_published_numbers():
    """A change here is a change of every published number."""
    assert (emoji_protocol.NUM_GENERATION_CONCEPTS, emoji_protocol.NUM_GENERATED) == (237, 200)
    assert (KS, METRIC_STEPS, GENERATION_GUIDANCE_SCALE) == ((1, 5, 10), 20, 4.0)
    assert (NAMING_STEPS, NAMING_GUIDANCE_SCALE) == (8, 1.0)
