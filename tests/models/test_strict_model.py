"""whole_model.py on the query stream alone; as part of a pipeline: tests/pretrained/test_checkpoint_folder.py."""

import json
import logging

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file

from palindiff.models.query_stream import QueryStream
from toys.models import toy_stream, toy_unet

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def stream(tmp_path):
    stream = toy_stream(toy_unet())
    stream.save_pretrained(tmp_path / "query_stream")
    return stream


def test_a_subfolder_a_type_and_the_loading_info_can_be_asked_for(stream, tmp_path):
    loaded, info = QueryStream.from_pretrained(
        tmp_path, subfolder="query_stream", torch_dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(info.values())
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.predictor.bias, stream.predictor.bias.bfloat16())
    assert not loaded.training


def test_a_refusal_names_the_subfolder_and_lets_diffusers_warn_again(stream, tmp_path):
    path = tmp_path / "query_stream" / WEIGHTS
    weights = load_file(path)
    del weights["predictor.bias"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"query_stream` lacks `predictor.bias`"):
        QueryStream.from_pretrained(tmp_path, subfolder="query_stream")
    assert diffusers_logging.get_verbosity() == logging.WARNING


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["gamma"], "setting `gamma`"),
        (["clip_projection_settings", "pooling"], "settings `clip_projection_settings`, `pooling`"),
    ],
)
def test_a_setting_that_is_missing_is_refused_though_it_has_a_default(stream, tmp_path, names, told):
    path = tmp_path / "query_stream" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in names}))
    with pytest.raises(ValueError, match=rf"query_stream` lacks the {told}\. Expected every setting of QueryStream"):
        QueryStream.from_pretrained(tmp_path / "query_stream")


@pytest.mark.parametrize("use_safetensors", [None, False])
def test_even_a_harmless_pickle_is_refused(stream, tmp_path, use_safetensors):
    """One that torch would load, so that nothing but the rule refuses it."""
    (tmp_path / "query_stream" / WEIGHTS).unlink()
    torch.save(stream.state_dict(), tmp_path / "query_stream" / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"holds these weights: diffusion_pytorch_model\.bin\. Expected"):
        QueryStream.from_pretrained(tmp_path / "query_stream", use_safetensors=use_safetensors)


def test_a_folder_without_weights_or_none_at_all_is_refused(stream, tmp_path):
    (tmp_path / "query_stream" / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=rf"holds these weights: none. Expected {WEIGHTS}"):
        QueryStream.from_pretrained(tmp_path / "query_stream")
    with pytest.raises(FileNotFoundError, match="nowhere` is not a folder"):
        QueryStream.from_pretrained(tmp_path / "nowhere")
