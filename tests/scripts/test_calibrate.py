"""scripts/calibrate.py: a checkpoint from before temperatures gets one, and loads."""

import json

import pytest

from palindiff.data.sources import DataConfig, open_images
from palindiff.inference.pipeline import PalindiffPipeline
from toys.by_path import load_by_path
from toys.recipe import toy_recipe, train_toy_recipe

calibrate = load_by_path("scripts/calibrate.py")


def test_a_temperature_is_fitted_and_stored(toy_parts, tmp_path, capsys):
    train_toy_recipe(toy_recipe(toy_parts), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoint"
    path = folder / "query_stream" / "config.json"
    config = json.loads(path.read_text())
    del config["temperature"]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lacks the setting `temperature`"):
        PalindiffPipeline.from_pretrained(folder)
    results = tmp_path / "calibration.json"
    calibrate.main([str(folder), "--data", str(toy_parts / "images"), "--results", str(results)])
    report = json.loads(capsys.readouterr().out)
    assert PalindiffPipeline.from_pretrained(folder).query_stream.config.temperature == report["temperature"]
    assert (report["labels"], report["n"]) == ("3 classes", 6)
    assert json.loads(results.read_text())["rows"] == [report]


def test_a_condition_chooses_the_images(toy_parts, tmp_path, capsys):
    train_toy_recipe(toy_recipe(toy_parts), tmp_path / "run")
    folder, data = tmp_path / "run" / "checkpoint", str(toy_parts / "images")
    first = open_images(DataConfig(path=data, split="validation"))[0].captions[0]
    calibrate.main([str(folder), "--data", data, "--where", f"caption!={first}"])
    assert json.loads(capsys.readouterr().out)["n"] < 6


def test_a_fit_that_fails_costs_no_checkpoint_its_temperature(toy_parts, tmp_path):
    train_toy_recipe(toy_recipe(toy_parts), tmp_path / "run")
    path = tmp_path / "run" / "checkpoint" / "query_stream" / "config.json"
    before = json.loads(path.read_text())
    with pytest.raises(FileNotFoundError, match="does not exist"):
        calibrate.main([str(tmp_path / "run" / "checkpoint"), "--data", str(tmp_path / "nowhere")])
    assert json.loads(path.read_text()) == before
