"""caption_encoder.py: frozen it is `encode_captions`; trained, gradients reach the tower through c and through e."""

import pytest
import torch

from palindiff.models.caption_encoder import CaptionEncoder
from palindiff.models.query_stream import QueryStream, QueryStreamConfig
from palindiff.models.text_encoder import encode_captions, tokenize_captions
from palindiff.pretrained.clip_projection import with_clip_projection
from palindiff.pretrained.text_encoders import load_text_tower
from toys.models import toy_stream, toy_unet
from toys.stable_diffusion import NUM_LAYERS_2, text_encoder_of, write_clip_of
from toys.text_encoders import write_sentence_encoder

CAPTIONS = ["a red apple", "fire"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    for version in (1, 2):
        write_clip_of(root, version)
    write_sentence_encoder(root / "sentence")
    return root


@pytest.fixture(params=["clip_1", "clip_2", "sentence"])
def parts(folder, request):
    """Tower and stream of Stable Diffusion 1.x, of 2.x, and of a sentence encoder, none used by another test."""
    tower, unet = load_text_tower(str(folder / request.param)), toy_unet(d_c=32)
    if request.param == "sentence":
        return tower, toy_stream(unet, d_e=32)
    if request.param == "clip_2":
        own = text_encoder_of(folder / "clip_2", num_hidden_layers=NUM_LAYERS_2 - 1)
        tower = with_clip_projection(own, tower.tokenizer, "base", tower)
    config = QueryStreamConfig(num_head_layers=1, head_width=16, head_dim=8)
    return tower, QueryStream.for_unet(unet, len(tower.projection), config, "clip", tower.projection, tower.tail)


def tokens(tower):
    found = tokenize_captions(CAPTIONS, tower.tokenizer)
    return found.input_ids, found.attention_mask.bool()


@pytest.mark.parametrize("is_trained", [False, True])
def test_it_gives_what_encode_captions_gives_with_the_empty_caption_last(parts, is_trained):
    tower, _ = parts
    encoded = CaptionEncoder(tower, is_trained)(*tokens(tower))
    with torch.no_grad():
        expected = encode_captions([*CAPTIONS, ""], tower)
    assert torch.equal(encoded.c, expected.c)
    assert torch.equal(encoded.mask, expected.mask)
    assert torch.equal(encoded.e, expected.e)


def test_a_frozen_tower_has_no_gradient(parts):
    tower, _ = parts
    encoder = CaptionEncoder(tower, is_trained=False)
    encoded = encoder(*tokens(tower))
    assert not encoded.c.requires_grad
    assert not encoded.e.requires_grad
    assert not any(weight.requires_grad for weight in encoder.parameters())


@pytest.mark.parametrize("through", ["c", "e"])
def test_gradients_reach_a_trained_tower(parts, through):
    tower, stream = parts
    encoder = CaptionEncoder(tower, is_trained=True)
    told = getattr(encoder(*tokens(tower)), through)
    (told * torch.randn(told.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    gradients = {name: weight.grad for name, weight in encoder.text_encoder.named_parameters()}
    first = next(name for name in gradients if name.endswith(("mlp.fc1.weight", "intermediate.dense.weight")))
    assert gradients[first].abs().sum() > 0
    assert all(weight.grad is None for weight in stream.parameters())


def test_without_gradients_a_trained_tower_has_none(parts):
    tower, _ = parts
    with torch.no_grad():
        assert not CaptionEncoder(tower, is_trained=True)(*tokens(tower)).c.requires_grad


def test_it_stays_in_eval_mode_and_holds_no_weight_of_the_stream(parts):
    tower, _ = parts
    encoder = CaptionEncoder(tower, is_trained=True).train()
    assert not any(module.training for module in encoder.modules())
    assert encoder.state_dict().keys() == {f"text_encoder.{name}" for name in tower.text_encoder.state_dict()}
    assert {name.split(".")[0] for name, _ in encoder.named_parameters()} == {"text_encoder"}
