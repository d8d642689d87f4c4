"""calibration.py: the error by hand, a temperature that is known, and a trained model that keeps its own."""

import json

import pytest
import torch

from palindiff.evaluation.calibration import BOUNDS, calibrate, expected_calibration_error, fit_temperature
from palindiff.evaluation.evaluators import EvaluationImages
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.query_stream import QueryStream
from toys.models import toy_images, toy_pipeline, toy_stream, toy_unet
from toys.recipe import toy_recipe, train_toy_recipe


def test_the_error_is_that_by_hand():
    """Two bins of two answers: 0.6 and 0.7, one right; 0.8 and 0.9, both right."""
    confidence = torch.tensor([0.9, 0.6, 0.8, 0.7])
    probabilities = torch.stack([confidence, 1 - confidence], dim=1)
    truth = torch.tensor([0, 1, 0, 0])
    assert expected_calibration_error(probabilities, truth, 2) == pytest.approx((abs(0.65 - 0.5) + abs(0.85 - 1)) / 2)
    assert expected_calibration_error(probabilities, truth, 15) == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)
    assert expected_calibration_error(torch.eye(3), torch.tensor([0, 1, 2])) == 0


@pytest.mark.parametrize("factor", [0.25, 1.0, 8.0])
def test_a_known_temperature_is_found_and_lowers_the_error(factor):
    generator = torch.Generator().manual_seed(0)
    calibrated = 2 * torch.randn(20_000, 5, generator=generator)
    truth = calibrated.softmax(dim=1).multinomial(1, generator=generator)[:, 0]
    found = fit_temperature(calibrated * factor, truth)
    assert found == pytest.approx(factor, rel=0.03)
    before, after = (expected_calibration_error((calibrated * factor / t).softmax(1), truth) for t in (1.0, found))
    assert after < 0.02
    assert factor == 1 or before > 3 * after


def test_a_temperature_stays_within_its_bounds():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert fit_temperature(logits, torch.tensor([0, 1])) == pytest.approx(BOUNDS[0])  # always right
    assert fit_temperature(logits, torch.tensor([1, 0])) == pytest.approx(BOUNDS[1])  # always wrong


def test_a_model_is_calibrated_among_classes_or_else_captions(encoder_folder):
    pipeline, options = toy_pipeline(encoder_folder), toy_recipe(encoder_folder).evaluation
    images, captions = toy_images(), [f"caption {number % 3}" for number in range(len(toy_images()))]
    found = calibrate(pipeline, EvaluationImages(images, captions), options)
    assert (found["labels"], found["n"], found["num_bins"]) == ("3 captions", len(images), 15)
    labels = ["cat", "dog"] * len(images)
    found = calibrate(pipeline, EvaluationImages(images, captions, labels[: len(images)]), options)
    assert found["labels"] == "2 classes"
    assert calibrate(pipeline, EvaluationImages(images, ["same"] * len(images)), options) is None


def test_a_trained_model_keeps_its_temperature_and_ranks_as_without(toy_parts, tmp_path):
    train_toy_recipe(toy_recipe(toy_parts), tmp_path)
    report = json.loads((tmp_path / "calibration.json").read_text())
    assert (report["labels"], report["split"], report["n"]) == ("3 classes", "validation", 6)
    pipeline = PalindiffPipeline.from_pretrained(tmp_path / "checkpoint")
    assert pipeline.query_stream.config.temperature == report["temperature"]
    images = sorted((toy_parts / "images" / "validation").glob("*.png"))
    shares = pipeline.classify(images, ["a", "b", "c"], num_inference_steps=2)
    pipeline.query_stream.register_to_config(temperature=1.0)
    plain = pipeline.classify(images, ["a", "b", "c"], num_inference_steps=2)
    assert torch.equal(shares.argsort(dim=1), plain.argsort(dim=1))
    logits = plain.log() / report["temperature"]
    torch.testing.assert_close(shares, logits.softmax(dim=1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_that_cannot_be_is_refused(temperature):
    config = {k: v for k, v in toy_stream(toy_unet()).config.items() if k[0] != "_"} | {"temperature": temperature}
    with pytest.raises(ValueError, match=r"`temperature` is .* Expected a number above 0"):
        QueryStream.from_config(config)
