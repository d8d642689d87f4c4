"""scripts/migrate_names.py: keys and labels get their current names; numbers and commands stay as they are."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from palindiff.models.query_stream import QueryStream
from toys.by_path import load_by_path
from toys.models import toy_stream, toy_unet

WEIGHTS, OLD_LAYER = "diffusion_pytorch_model.safetensors", "picture_into_head"


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


@pytest.fixture
def old_stream(tmp_path):
    """A query stream's folder with the former names."""
    stream = toy_stream(toy_unet())
    stream.save_pretrained(tmp_path / "query_stream")
    weights, config = (tmp_path / "query_stream" / name for name in (WEIGHTS, "config.json"))
    save_file({name.replace("image_into_head", OLD_LAYER): each for name, each in load_file(weights).items()}, weights)
    settings = json.loads(config.read_text())
    assert settings.pop("clip_projection_settings", None) is None
    config.write_text(json.dumps(settings | {"projection_width": None, "text_tail_settings": None}))
    return stream, tmp_path / "query_stream"


def test_a_query_stream_s_settings_and_tensors_are_renamed_and_it_loads(script, old_stream):
    stream, folder = old_stream
    with pytest.raises(ValueError, match=r"query stream|projection_width|image_into_head"):
        QueryStream.from_pretrained(folder)
    script.migrate(folder)
    migrated = QueryStream.from_pretrained(folder).state_dict()
    assert migrated.keys() == stream.state_dict().keys()
    assert all(torch.equal(migrated[name], each) for name, each in stream.state_dict().items())


@pytest.mark.parametrize("fault", ["shared name", "projection"])
def test_a_query_stream_that_cannot_be_renamed_is_refused_and_kept(script, old_stream, fault):
    _, folder = old_stream
    if fault == "projection":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"projection_width": 4}))
    else:
        save_file({OLD_LAYER: torch.zeros(1), "image_into_head": torch.ones(1)}, folder / WEIGHTS)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        ValueError, match="would share a name" if fault == "shared name" else "holds a CLIP projection"
    ):
        script.migrate(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
