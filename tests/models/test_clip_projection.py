"""clip_projection.py: a shortened text encoder and the missing layers are the whole CLIP, and are never trained."""

import pytest
import torch

from palindiff.models.clip_projection import LAYER_SETTINGS, ClipProjection
from palindiff.models.query_stream import QueryStream, QueryStreamConfig
from palindiff.pretrained.text_encoders import load_text_encoder
from toys.models import toy_unet
from toys.stable_diffusion import NUM_LAYERS_2, text_encoder_of, write_clip_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip_of(tmp_path_factory.mktemp("clip"), 2)


@pytest.fixture(scope="module")
def whole(folder):
    return load_text_encoder(str(folder))


def projection_of(whole, num_kept):
    return ClipProjection.from_clip(whole.model, whole.projection.weight, num_kept)


@pytest.mark.parametrize("num_kept", [1, NUM_LAYERS_2 - 1])
def test_after_a_shortened_text_encoder_it_gives_what_the_whole_one_gives(folder, whole, num_kept):
    kept = text_encoder_of(folder, num_hidden_layers=num_kept)
    projection = projection_of(whole, num_kept)
    ids = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = projection(kept(ids, output_hidden_states=True).hidden_states[-1])
        expected = whole.model(ids).last_hidden_state
    assert torch.equal(kept.final_layer_norm(hidden), expected)


def test_no_token_sees_those_behind_it(whole):
    projection = projection_of(whole, NUM_LAYERS_2 - 2)
    hidden = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    changed = hidden.clone()
    changed[:, 4:] += 1
    before, after = projection(hidden), projection(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_its_settings_build_another_of_its_shape(whole):
    projection = projection_of(whole, NUM_LAYERS_2 - 2)
    settings, of_clip = projection.settings, whole.model.config
    sizes = {"d_e": whole.d_e, "num_layers": 2}
    assert settings == sizes | {name: getattr(of_clip, name) for name in LAYER_SETTINGS}
    ClipProjection(settings).load_state_dict(projection.state_dict())


def test_it_is_frozen_alone_in_a_stream_and_after_loading(whole, tmp_path):
    projection = projection_of(whole, NUM_LAYERS_2 - 1)
    unet = toy_unet(d_c=32)
    config = QueryStreamConfig(num_head_layers=1, head_width=16, head_dim=8)
    stream = QueryStream.for_unet(unet, whole.d_e, config, "clip", projection)
    stream.save_pretrained(tmp_path)
    for each in (stream, QueryStream.from_pretrained(tmp_path)):
        each.train()
        frozen = {name for name, weight in each.named_parameters() if not weight.requires_grad}
        assert frozen == {f"clip_projection.{name}" for name, _ in projection.named_parameters()}
        kept = each.clip_projection.state_dict()
        assert kept.keys() == projection.state_dict().keys()
        assert all(torch.equal(weight, projection.state_dict()[name]) for name, weight in kept.items())
        assert not each.clip_projection.weight.requires_grad


def test_gradients_pass_through_it_to_the_text_encoder(whole):
    projection = projection_of(whole, NUM_LAYERS_2 - 1)
    hidden = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    projection(hidden).sum().backward()
    assert hidden.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in projection.parameters())
