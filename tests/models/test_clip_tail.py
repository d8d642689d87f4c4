"""clip_tail.py: tower and tail are the whole CLIP, and the tail never learns."""

import pytest
import torch

from palindiff.models.clip_tail import TAIL_SETTINGS, ClipTail
from palindiff.models.query_stream import QueryStream, QueryStreamConfig
from palindiff.pretrained.text_encoders import load_text_tower
from toys.models import toy_unet
from toys.stable_diffusion import NUM_LAYERS_2, text_encoder_of, write_clip_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip_of(tmp_path_factory.mktemp("tail"), 2)


@pytest.fixture(scope="module")
def whole(folder):
    return load_text_tower(str(folder))


@pytest.mark.parametrize("num_kept", [1, NUM_LAYERS_2 - 1])
def test_behind_a_shortened_tower_it_gives_what_the_whole_one_gives(folder, whole, num_kept):
    kept = text_encoder_of(folder, num_hidden_layers=num_kept)
    tail = ClipTail.of(whole.text_encoder, num_kept)
    ids = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = tail(kept(ids, output_hidden_states=True).hidden_states[-1])
        expected = whole.text_encoder(ids).last_hidden_state
    assert torch.equal(kept.final_layer_norm(hidden), expected)


def test_no_token_sees_those_behind_it(whole):
    tail = ClipTail.of(whole.text_encoder, NUM_LAYERS_2 - 2)
    hidden = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    changed = hidden.clone()
    changed[:, 4:] += 1
    before, after = tail(hidden), tail(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_its_settings_build_another_of_its_shape(whole):
    tail = ClipTail.of(whole.text_encoder, NUM_LAYERS_2 - 2)
    settings = tail.settings
    assert settings == {"num_layers": 2, **{name: getattr(whole.text_encoder.config, name) for name in TAIL_SETTINGS}}
    ClipTail(settings).load_state_dict(tail.state_dict())


def test_it_is_frozen_alone_in_a_stream_and_after_loading(whole, tmp_path):
    tail = ClipTail.of(whole.text_encoder, NUM_LAYERS_2 - 1)
    unet, d_e = toy_unet(d_c=32), len(whole.projection)
    config = QueryStreamConfig(num_head_layers=1, head_width=16, head_dim=8)
    stream = QueryStream.for_unet(unet, d_e, config, "clip", whole.projection, tail)
    stream.save_pretrained(tmp_path)
    for each in (stream, QueryStream.from_pretrained(tmp_path)):
        each.train()
        frozen = {name for name, weight in each.named_parameters() if not weight.requires_grad}
        assert frozen == {f"clip_tail.{name}" for name in tail.state_dict()}
        assert all(
            torch.equal(weight, tail.state_dict()[name]) for name, weight in each.clip_tail.state_dict().items()
        )
        assert not each.text_projection.requires_grad


def test_gradients_pass_through_it_to_the_tower(whole):
    tail = ClipTail.of(whole.text_encoder, NUM_LAYERS_2 - 1)
    hidden = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tail(hidden).sum().backward()
    assert hidden.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in tail.parameters())
