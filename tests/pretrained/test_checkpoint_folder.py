"""Checkpoint folders that are damaged, incomplete or hostile: refused in one sentence, through `from_pretrained`."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from palindiff.inference.pipeline import PalindiffPipeline
from toys.models import toy_checkpoint

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return toy_checkpoint(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def change_weights(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def change_json(path, **changes):
    told = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in told.items() if value is not ...}))


def refusal(folder, error=ValueError, **options):
    """What `from_pretrained` says: one line."""
    with pytest.raises(error) as refused:
        PalindiffPipeline.from_pretrained(folder, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def cut_predictor(weights):
    weights["predictor.bias"] = weights["predictor.bias"][:5].clone()


def drop_predictor(weights):
    del weights["predictor.bias"], weights["predictor.weight"]


@pytest.mark.parametrize(
    ("change", "found", "low_cpu_mem_usage"),
    [
        (lambda weights: weights.pop("predictor.bias"), "lacks `predictor.bias`. Expected exactly", True),
        (lambda weights: weights.pop("predictor.bias"), "lacks `predictor.bias`. Expected exactly", False),
        (lambda weights: weights.update(lost=torch.ones(2)), "has `lost`, which the model does not use", True),
        (cut_predictor, "has `predictor.bias` of shape (5,) where (32,) belongs. Expected exactly", True),
        (cut_predictor, "has `predictor.bias` of shape (5,) where (32,) belongs. Expected exactly", False),
        (drop_predictor, "lacks `predictor.bias`, and 1 more weights do not fit. Expected exactly", True),
    ],
)
def test_query_stream_weights_that_do_not_fit_are_refused(folder, change, found, low_cpu_mem_usage):
    change_weights(folder / "query_stream" / WEIGHTS, change)
    sentence = refusal(folder, low_cpu_mem_usage=low_cpu_mem_usage)
    assert f"query_stream` {found}" in sentence
    assert "Copy both from the same checkpoint" in sentence


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"gamma": 0.0}, "`gamma` is 0.0 (input should be greater than 0)"),
        ({"gamma": 1.5}, "`gamma` is 1.5 (input should be less than or equal to 1)"),
        ({"gamma": float("nan")}, "`gamma` is nan"),
        ({"gamma": "0.5"}, "`gamma` is '0.5' (input should be a valid number)"),
        ({"gamma": -1, "fusion": "both"}, "`fusion` is 'both'"),
        ({"gama": 0.5}, "has a setting `gama` that QueryStream does not know; the nearest is `gamma`"),
        ({"d_e": ...}, "builds no QueryStream"),
        ({"fusion": ...}, "lacks the setting `fusion`. Expected every setting of QueryStream"),
    ],
)
def test_query_stream_settings_that_cannot_be_are_refused(folder, settings, found):
    change_json(folder / "query_stream" / "config.json", **settings)
    assert found in refusal(folder)


def test_a_checkpoint_from_before_a_setting_was_added_is_read_with_its_default(folder):
    change_json(folder / "query_stream" / "config.json", query_input=...)
    assert PalindiffPipeline.from_pretrained(folder).query_stream.config.query_input == "raw"


class CreatesFile:
    """A pickle that creates a file when it is opened."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    ("part", "use_safetensors"),
    [("query_stream", None), ("query_stream", False), ("unet", False), ("vae", None), ("text_encoder", None)],
)
def test_a_pickle_is_never_opened(folder, tmp_path, part, use_safetensors):
    marker = tmp_path / "was opened"
    weights = next((folder / part).glob("*.safetensors"))
    pickled = weights.with_name("pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin")
    pickled.write_bytes(pickle.dumps(CreatesFile(marker)))
    weights.unlink()
    error = ValueError if part == "text_encoder" else OSError
    sentence = refusal(folder, error, use_safetensors=use_safetensors)
    if part in ("query_stream", "text_encoder"):
        assert f"holds these weights: {pickled.name}. Expected" in sentence
        assert "pickles run code when opened and are never read" in sentence
    else:
        assert f"no file named {WEIGHTS} found" in sentence
    assert not marker.exists()
    pickle.loads(pickled.read_bytes())
    assert marker.exists()  # so it would have shown


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_weights_that_stock_parts_lack_are_refused(folder, part):
    name = next(name for name in load_file(folder / part / WEIGHTS) if "conv_in.weight" in name)
    change_weights(folder / part / WEIGHTS, lambda weights: weights.pop(name))
    assert f"The part `{part}` lacks `{name}`. Expected exactly the weights" in refusal(folder)


def test_weights_that_the_text_encoder_lacks_are_refused(folder):
    change_weights(
        folder / "text_encoder" / "model.safetensors", lambda weights: weights.pop("embeddings.LayerNorm.bias")
    )
    sentence = refusal(folder)
    assert "text_encoder` lacks `embeddings.LayerNorm.bias`" in sentence
    assert "Expected exactly the weights that its config asks for" in sentence


@pytest.mark.parametrize(
    ("name", "text"), [("config.json", "{"), (WEIGHTS, "version https://git-lfs.github.com/spec/v1"), (WEIGHTS, "no")]
)
def test_a_damaged_query_stream_is_refused(folder, name, text):
    (folder / "query_stream" / name).write_text(text)
    assert "query_stream` cannot be read (" in refusal(folder, FileNotFoundError)


def test_a_query_stream_without_config_is_refused(folder):
    (folder / "query_stream" / "config.json").unlink()
    assert "query_stream` has no config.json." in refusal(folder, FileNotFoundError)


def test_a_folder_that_is_no_checkpoint_is_refused(folder, whole, tmp_path):
    assert "unet` has no model_index.json. Expected a checkpoint folder" in refusal(folder / "unet", FileNotFoundError)
    stock = StableDiffusionPipeline.from_pretrained(whole)
    stock.save_pretrained(tmp_path / "stock")
    sentence = refusal(tmp_path / "stock")
    assert "holds a StableDiffusionPipeline without `query_stream` and `query_scheduler`" in sentence
    assert sentence.endswith("Pass the missing parts, or use another folder.")
    (folder / "model_index.json").write_text("{")
    assert "model_index.json` is not valid JSON" in refusal(folder)


def test_missing_parts_may_be_passed(whole, tmp_path):
    """A Stable Diffusion folder becomes a palindiff pipeline with a query stream of its own."""
    StableDiffusionPipeline.from_pretrained(whole).save_pretrained(tmp_path)
    loaded = PalindiffPipeline.from_pretrained(whole)
    parts = {"query_stream": loaded.query_stream, "query_scheduler": loaded.query_scheduler}
    assert PalindiffPipeline.from_pretrained(tmp_path, **parts).query_stream is loaded.query_stream
