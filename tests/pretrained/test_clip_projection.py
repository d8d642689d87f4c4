"""clip_projection.py: which text encoders are the same, in whatever precision, and how a difference is described."""

import pytest
import torch
from transformers import CLIPTokenizer

from palindiff.models.text_encoder import TextEncoder
from palindiff.pretrained.clip_projection import check_clip, differing_tensors, with_clip_projection
from palindiff.pretrained.text_encoders import load_text_encoder
from toys.stable_diffusion import NUM_LAYERS_2, text_encoder_of, write_clip_of
from toys.text_encoders import write_sentence_encoder

HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    for version in (1, 2):
        write_clip_of(root, version)
    return root


@pytest.fixture(scope="module")
def clip(folder):
    return load_text_encoder(str(folder / "clip_1"))


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 4, generator=generator), "b": torch.randn(5, generator=generator)}


def rounded(tensors, dtype, back=True):
    return {name: each.to(dtype).float() if back else each.to(dtype) for name, each in tensors.items()}


# ---- which tensors are equal


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("back", [True, False])
def test_half_of_a_tensor_is_that_tensor_in_both_directions(dtype, back):
    full = weights()
    assert differing_tensors(rounded(full, dtype, back), full) == []
    assert differing_tensors(full, rounded(full, dtype, back)) == []


def test_two_full_tensors_that_only_round_alike_are_two():
    full = {"a": torch.tensor([1.0001, 2.0002])}
    near = {"a": full["a"] + 1e-6}
    assert torch.equal(full["a"].half(), near["a"].half())
    assert len(differing_tensors(full, near)) == len(differing_tensors(near, full)) == 1


def test_a_half_of_another_tensor_is_another():
    assert len(differing_tensors(rounded(weights(1), torch.float16), weights(0))) == 2


def test_differences_are_named_in_order_with_their_size():
    here, there = weights(), weights()
    there["b"][2] += 0.125
    here["c"] = torch.ones(2)
    here["a"] = here["a"][:2]
    there["d"] = torch.ones(1)  # what CLIP has besides
    assert differing_tensors(here, there) == [
        "`a` has shape (2, 4) there and (3, 4) in CLIP", "CLIP has no `c`", "`b` differs by up to 0.125"
    ]  # fmt: skip


# ---- completing


@pytest.mark.parametrize("version", [1, 2])
def test_a_completed_text_encoder_embeds_as_its_clip_does(folder, version):
    whole = load_text_encoder(str(folder / f"clip_{version}"))
    kept = {} if version == 1 else {"num_hidden_layers": NUM_LAYERS_2 - 1}
    own = text_encoder_of(folder / f"clip_{version}", **kept)
    tokenizer = CLIPTokenizer.from_pretrained(folder / f"clip_{version}", pad_token="!")
    encoder = with_clip_projection(own, tokenizer, "base", whole)
    assert (encoder.name, encoder.pooling, not encoder.has_missing_layers) == ("base", "clip", version == 1)
    assert not any(weight.requires_grad for weight in own.parameters())

    def embed(encoder):
        with torch.no_grad():
            return encoder.encode(["a red apple", ""]).e

    assert torch.equal(embed(encoder), embed(whole))


def test_a_text_encoder_goes_to_a_device_with_its_missing_layers(folder):
    """Or captions of Stable Diffusion 2.x could be encoded on a CPU alone."""
    whole = load_text_encoder(str(folder / "clip_2"))
    own = text_encoder_of(folder / "clip_2", num_hidden_layers=NUM_LAYERS_2 - 1)
    encoder = with_clip_projection(own, whole.tokenizer, "base", whole)
    assert encoder.to("meta") is encoder
    assert {w.device.type for part in (encoder.model, encoder.projection) for w in part.parameters()} == {"meta"}


@pytest.mark.parametrize("dtype", HALVES)
def test_a_text_encoder_stored_in_half_is_its_clips(folder, clip, dtype):
    own = text_encoder_of(folder / "clip_1").to(dtype).float()
    assert with_clip_projection(own, clip.tokenizer, "base", clip).model is own


def test_a_changed_text_encoder_is_refused_by_its_first_difference(folder, clip):
    own = text_encoder_of(folder / "clip_1")
    own.encoder.layers[0].mlp.fc1.bias.data[0] += 0.5
    own.final_layer_norm.weight.data[0] += 0.25
    told = r"`encoder.layers.0.mlp.fc1.bias` differs by up to 0.5, and 1 more. Expected the CLIP that the text"
    with pytest.raises(ValueError, match=told):
        with_clip_projection(own, clip.tokenizer, "base", clip)


@pytest.mark.parametrize(
    ("setting", "value"), [("hidden_act", "gelu"), ("num_attention_heads", 2), ("layer_norm_eps", 1e-3)]
)
def test_equal_tensors_under_other_settings_are_another_text_encoder(folder, clip, setting, value):
    own = text_encoder_of(folder / "clip_1", **{setting: value})
    with pytest.raises(ValueError, match=rf"`{setting}` is {value!r} there and .* in CLIP. Expected"):
        with_clip_projection(own, clip.tokenizer, "base", clip)


def test_more_layers_than_clip_has_are_refused(folder, clip):
    whole, kept = load_text_encoder(str(folder / "clip_2")), text_encoder_of(folder / "clip_2", num_hidden_layers=4)
    shorter = TextEncoder(kept, whole.tokenizer, "clip", whole.projection, "shorter")
    with pytest.raises(ValueError, match=r"CLIP has no `encoder.layers.4.self_attn.k_proj.weight`, and \d+ more"):
        with_clip_projection(whole.model, whole.tokenizer, "base", shorter)


def test_what_is_no_clip_with_a_projection_is_refused(folder, clip, tmp_path):
    sentence = load_text_encoder(str(write_sentence_encoder(tmp_path / "sentence")))
    plain = TextEncoder(clip.model, clip.tokenizer, "clip", None, "plain")
    for encoder, told in ((sentence, "is a sentence encoder"), (plain, "has no text projection")):
        with pytest.raises(ValueError, match=told):
            check_clip(encoder, "base")
    with pytest.raises(ValueError, match=r"text encoder of `base` is a `bert`. Expected CLIP's"):
        with_clip_projection(sentence.model, sentence.tokenizer, "base", clip)
    other = load_text_encoder(str(folder / "clip_1"), max_length=5)
    other.tokenizer.model_max_length = 1000
    with pytest.raises(ValueError, match=r"`tokenizer.model_max_length` is 1000.*Expected at most 16"):
        with_clip_projection(text_encoder_of(folder / "clip_1"), other.tokenizer, "base", clip)
