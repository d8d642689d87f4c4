"""scripts/migrate_names.py: keys and labels get their current names; numbers and commands stay as they are."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from toys.by_path import load_by_path


@pytest.fixture
def script():
    return load_by_path("scripts/migrate_names.py")


def old_results():
    old_key = "pictures_per_s"
    return {
        "command": "palindiff watch painting 3.0",
        "settings": {"codec": "emoji", "lr": 1e-05},
        "rows": [
            {"model": "shipped", "direction": "picture_to_text", "k": 10, "recall": 0.4250, old_key: 1.5e3},
            {"model": "trained", "direction": "caption_to_painting", "k": 1, "recall": -0.0, "label": "a painting"},
        ],
    }


def test_keys_and_labels_of_json_are_renamed_and_commands_kept(script, tmp_path):
    path = tmp_path / "naming.json"
    path.write_text(json.dumps(old_results(), indent=1))
    script.migrate(path)
    assert json.loads(path.read_text()) == {
        "command": "palindiff watch painting 3.0",
        "settings": {"vae": "emoji", "lr": 1e-05},
        "rows": [
            {"model": "bundled", "direction": "image_to_text", "k": 10, "recall": 0.4250, "images_per_s": 1.5e3},
            {"model": "trained", "direction": "caption_to_generated", "k": 1, "recall": -0.0, "label": "a painting"},
        ],
    }


def test_numbers_stay_as_written(script, tmp_path):
    path = tmp_path / "log.jsonl"
    line = '{"step": 10, "picture_to_text_recall_10": 0.50, "lr": 1.0e-05, "painting": 1E3}\n'
    path.write_text(line * 2)
    before = script.numbers(path.read_text())
    script.migrate(path)
    assert path.read_text() == '{"step": 10, "image_to_text_recall_10": 0.50, "lr": 1.0e-05, "generation": 1E3}\n' * 2
    assert script.numbers(path.read_text()) == before == ["10", "0.50", "1.0e-05", "1E3"] * 2


def test_keys_and_values_of_yaml_are_renamed(script, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("watch:\n  num_pictures: 16  # pictures\ncodec: shipped\nname: my painting\n")
    script.migrate(path)
    assert path.read_text() == "evaluation:\n  num_images: 16  # pictures\nvae: bundled\nname: my painting\n"


def test_migrating_twice_changes_nothing(script, tmp_path):
    path = tmp_path / "naming.json"
    path.write_text(json.dumps(old_results(), indent=1))
    script.migrate(path)
    once = path.read_bytes()
    script.migrate(path)
    assert path.read_bytes() == once


def test_changed_number_is_refused_and_the_file_kept(script, tmp_path, monkeypatch):
    monkeypatch.setitem(script.NAMES, "shipped", "7")
    path = tmp_path / "naming.json"
    path.write_text(json.dumps(old_results(), indent=1))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"would change a number of .*naming\.json"):
        script.migrate(path)
    assert path.read_bytes() == before


def test_tensors_are_renamed_and_their_values_kept(script, tmp_path):
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"blocks.0.picture_into_head.weight": torch.randn(2, 3), "gamma": torch.ones(1)}
    save_file(old, path)
    script.migrate(tmp_path)
    new = load_file(path)
    assert sorted(new) == ["blocks.0.image_into_head.weight", "gamma"]
    assert torch.equal(new["blocks.0.image_into_head.weight"], old["blocks.0.picture_into_head.weight"])


def test_tensors_that_would_share_a_name_are_refused(script, tmp_path):
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({"picture_into_head": torch.zeros(1), "image_into_head": torch.ones(1)}, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="would change a tensor"):
        script.migrate(tmp_path)
    assert path.read_bytes() == before
