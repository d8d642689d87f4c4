"""tower_shape.py: the same tower as `load_text_tower` builds, from its config alone."""

import shutil

import pytest
import torch

from palindiff.models.tower_shape import PAPER_TOWER, read_tower_shape
from palindiff.pretrained.hub import PACKAGE_SOURCE
from palindiff.pretrained.text_encoders import load_text_tower
from toys.text_encoders import LENGTH, POSITIONS, write_clip, write_sentence_encoder, write_towers


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    return write_towers(tmp_path_factory.mktemp("towers"))


def shapes(module):
    return {name: tuple(weight.shape) for name, weight in module.state_dict().items()}


@pytest.mark.parametrize("kind", ["clip", "clip_2", "sentence"])
def test_shape_is_that_of_the_loaded_tower(kind, towers):
    loaded, shape = load_text_tower(str(towers[kind])), read_tower_shape(str(towers[kind]))
    assert shapes(shape.text_encoder) == shapes(loaded.text_encoder)
    assert shape.pooling == loaded.pooling
    assert shape.num_tokens == loaded.tokenizer.model_max_length == LENGTH
    assert shape.d_c == loaded.text_encoder.config.hidden_size
    if loaded.projection is None:
        assert shape.projection is None
        assert shape.d_e == shape.d_c
    else:
        assert shape.projection.shape == loaded.projection.shape
        assert shape.d_e == len(loaded.projection)


def test_shape_needs_no_weights(tmp_path):
    folder = write_clip(tmp_path / "clip")
    (folder / "model.safetensors").unlink()
    with torch.device("meta"):
        shape = read_tower_shape(str(folder))
    assert all(weight.is_meta for weight in shape.text_encoder.parameters())


def test_length_is_the_recipe_s_then_the_tower_s_then_its_positions(tmp_path):
    folder = write_sentence_encoder(tmp_path / "sentence")
    assert read_tower_shape(str(folder), max_length=5).num_tokens == 5
    assert read_tower_shape(str(folder)).num_tokens == LENGTH
    (folder / "sentence_bert_config.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert read_tower_shape(str(folder)).num_tokens == POSITIONS


def test_length_is_also_found_in_the_folder_of_the_pipeline_around_it(tmp_path):
    folder = write_clip(tmp_path / "text_encoder")
    (tmp_path / "tokenizer").mkdir()
    shutil.move(folder / "tokenizer_config.json", tmp_path / "tokenizer")
    assert read_tower_shape(str(folder)).num_tokens == LENGTH


def test_the_paper_s_tower_is_known_without_a_download():
    """123,060,480 is what Stable Diffusion 1.x holds as its text encoder."""
    with torch.device("meta"):
        shape = read_tower_shape(PAPER_TOWER)
    assert sum(weight.numel() for weight in shape.text_encoder.parameters()) == 123_060_480
    assert (shape.d_c, shape.d_e, shape.num_tokens, shape.pooling) == (768, 768, 77, "clip")


def test_the_package_s_tower_is_known_by_its_config():
    pytest.importorskip("emoji", reason="needs the extra `emoji`, which brings the text encoder's package")
    shape, loaded = read_tower_shape(PACKAGE_SOURCE), load_text_tower(PACKAGE_SOURCE)
    assert shapes(shape.text_encoder) == shapes(loaded.text_encoder)
    assert shape.num_tokens == loaded.tokenizer.model_max_length


@pytest.mark.parametrize(
    ("source", "sentence"),
    [("nobody/nothing", r"No text encoder `nobody/nothing`.*Expected a folder"), (".", r"has no config\.json")],
)
def test_what_is_no_tower_is_refused(source, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=sentence):
        read_tower_shape(source)
