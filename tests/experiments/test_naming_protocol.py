"""naming_protocol.py: recall among unseen concepts and compositions, and the error of probabilities."""

import pytest
import torch

from palindiff.data.emoji import STYLES
from palindiff.evaluation.naming_tasks import RETRIEVAL_KS
from palindiff.evaluation.retrieval import both_ways
from palindiff.experiments.emoji_subsets import concept_images
from palindiff.experiments.naming_protocol import (
    EmbeddedConcepts,
    calibration_row,
    embed_compositions,
    image_to_text_rows,
    naming_rows,
)
from palindiff.inference.defaults import NAMING_GUIDANCE_SCALE, NAMING_STEPS


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
    expected = both_ways(embedded[1].scores, torch.eye(12, dtype=torch.bool), RETRIEVAL_KS)
    labels = {"model": "bundled", "style": "outlined", "steps": 1234, "seconds": 568, "split": "unseen"}
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


def by_hand(scores):
    """Concepts whose scores are given: one-hot captions, so that the images' embeddings are the scores."""
    scores = torch.tensor(scores)
    return EmbeddedConcepts("flat", [None] * len(scores), list("abcd")[: len(scores)], scores, torch.eye(len(scores)))


def test_compositions_are_ranked_among_their_own_names(model, emoji_dir):
    concepts = embed_compositions(model.pipeline, emoji_dir, "outlined")
    assert concepts.captions == [f"outlined {name}" for name in ("ca", "cb", "cc")]
    rows = image_to_text_rows(model, concepts, "composition")
    assert [(row["direction"], row["split"], row["k"], row["n"]) for row in rows] == [
        ("image_to_text", "composition", 1, 3)  # of three names, k = 5 and 10 would be certain
    ]


def test_recall_of_compositions_is_that_of_the_scores(model):
    concepts = by_hand([[0.9, 0.1, 0.0], [0.8, 0.1, 0.0], [0.0, 0.1, 0.2]])  # the second image is named "a"
    (row,) = image_to_text_rows(model, concepts, "composition")
    assert (row["recall"], row["chance"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_the_calibration_error_is_that_of_the_checkpoint_s_probabilities(model):
    concepts = by_hand([[0.9, 0.1, 0.0, 0.0], [0.8, 0.1, 0.0, 0.0], [0.0, 0.1, 0.2, 0.0], [0.0, 0.0, 0.0, 0.7]])
    probabilities = (float(model.pipeline.query_stream.confidence_scale.detach()) * concepts.scores).softmax(dim=1)
    right = torch.tensor([1.0, 0.0, 1.0, 1.0])
    confidence = probabilities.max(dim=1).values
    row = calibration_row(model, concepts)
    assert row["value"] == pytest.approx(float((confidence - right).abs().mean()), abs=1e-6)  # a bin for each image
    assert {key: row[key] for key in ("model", "style", "metric", "bins", "n", "split", "steps")} == {
        "model": "bundled", "style": "flat", "metric": "expected_calibration_error", "bins": 15, "n": 4,
        "split": "unseen", "steps": 1234,
    }  # fmt: skip


def test_equal_captions_are_one_choice_of_the_calibration(model):
    concepts = by_hand([[0.9, 0.1], [0.2, 0.3]])
    equal = EmbeddedConcepts("flat", concepts.rows, ["a", "a"], concepts.e_0_hat, concepts.e)
    assert calibration_row(model, equal)["value"] == pytest.approx(0.0)  # one choice, always right
