"""text_encoder.py against stock diffusers, transformers' CLIP, and a mean by hand."""

import logging
import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BertModel, CLIPModel, CLIPTextModelWithProjection, RobertaConfig, RobertaModel
from transformers.modeling_layers import GradientCheckpointingLayer

from palindiff.models.clip_projection import ClipProjection
from palindiff.models.query_stream import QueryStream, QueryStreamConfig
from palindiff.models.text_encoder import TextEncoder, num_positions
from palindiff.pretrained.clip_projection import with_clip_projection
from palindiff.pretrained.text_encoders import load_text_encoder
from toys.models import toy_stream, toy_unet
from toys.stable_diffusion import NUM_LAYERS_2, text_encoder_of, write_clip_of
from toys.text_encoders import (
    LENGTH,
    POSITIONS,
    QUERY_WIDTH,
    WIDTH,
    encode,
    stock_c,
    stock_pipeline,
    write_sentence_encoder,
)

CAPTIONS = ["a flat emoji of a red apple", "", "fire"]


@pytest.fixture(params=["clip", "clip_2", "sentence"])
def encoder(request, encoder_folder):
    return load_text_encoder(str(encoder_folder / request.param))


def test_c_is_what_stock_stable_diffusion_computes(encoder):
    captions = [*CAPTIONS, "a red apple " * 50]
    encoded, (c, c_uncond) = encode(encoder, captions), stock_c(stock_pipeline(encoder), captions)
    assert torch.equal(encoded.c, c)
    assert c.shape == (4, LENGTH, WIDTH)
    assert torch.equal(encode(encoder, [""] * 4).c, c_uncond)


def test_c_is_stock_for_a_textual_inversion_of_two_vectors(encoder_folder):
    encoder = load_text_encoder(str(encoder_folder / "clip"))
    encoder.tokenizer.add_tokens(["<cat>", "<cat>_1"])
    encoder.model.resize_token_embeddings(len(encoder.tokenizer))
    encoded = encode(encoder, ["a <cat>"])
    assert torch.equal(encoded.c, stock_c(stock_pipeline(encoder), ["a <cat>"])[0])
    assert encoded.mask.sum() == 5  # beginning, a, two vectors, end


def test_mask_marks_real_tokens(encoder):
    apple = "a red apple" if encoder.pooling == "clip" else "a red"
    assert encode(encoder, [apple, ""]).mask.sum(dim=1).tolist() == [5 if encoder.pooling == "clip" else 4, 2]
    assert encode(encoder, [apple]).mask.dtype == torch.bool


@pytest.mark.parametrize("name", ["clip", "clip_2"])
def test_e_is_clips_own_text_embedding_at_unit_length(encoder_folder, name):
    encoder = load_text_encoder(str(encoder_folder / name))
    tokens = encoder.tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        clip = CLIPModel.from_pretrained(encoder_folder / name)
        text_embeds = clip.get_text_features(tokens.input_ids).pooler_output
        with_projection = CLIPTextModelWithProjection(encoder.model.config).eval()
        with_projection.text_model.load_state_dict(encoder.model.state_dict())
        with_projection.text_projection.weight.copy_(encoder.projection.weight)
        assert torch.equal(with_projection(tokens.input_ids).text_embeds, text_embeds)
    e = encode(encoder, CAPTIONS).e
    assert torch.equal(e, torch.nn.functional.normalize(text_embeds, dim=-1))
    assert e.shape == (3, QUERY_WIDTH)


def test_e_is_the_mean_over_real_tokens_by_hand(encoder_folder):
    encoder = load_text_encoder(str(encoder_folder / "sentence"))
    tokens = encoder.tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        features = BertModel.from_pretrained(encoder_folder / "sentence")(**tokens).last_hidden_state
    for row, e in zip(range(3), encode(encoder, CAPTIONS).e, strict=True):
        num_real = int(tokens.attention_mask[row].sum())
        mean = [sum(float(features[row, i, j]) for i in range(num_real)) / num_real for j in range(WIDTH)]
        length = math.sqrt(sum(value**2 for value in mean))
        assert e.tolist() == pytest.approx([value / length for value in mean], abs=1e-6)  # float32 sums of 12 terms


def test_encoding_ignores_order_and_company(encoder):
    together, order = encode(encoder, CAPTIONS), [2, 0, 1]
    shuffled = encode(encoder, [CAPTIONS[i] for i in order])
    for row, caption in enumerate(CAPTIONS):
        alone = encode(encoder, [caption])
        for other, place in ((alone, 0), (shuffled, order.index(row))):
            # matrix products of another size may sum in another order
            assert torch.allclose(other.c[place], together.c[row], atol=1e-5)
            assert torch.allclose(other.e[place], together.e[row], atol=1e-6)


def test_encoding_ignores_padding(encoder):
    short = encode(encoder, ["red"])
    encoder.tokenizer.model_max_length = POSITIONS
    long, num_real = encode(encoder, ["red"]), int(short.mask.sum())
    assert long.c.shape[1] == POSITIONS
    assert long.mask.sum() == num_real
    assert torch.allclose(long.e, short.e, atol=1e-6)  # attention sums over more zeros
    assert torch.allclose(long.c[:, :num_real], short.c[:, :num_real], atol=1e-5)


def test_a_long_caption_is_cut_with_one_warning(encoder, caplog):
    endless, fitting = "b " * 5_000, " ".join("b" * (LENGTH - 2))
    assert len(endless) == 10_000
    with caplog.at_level(logging.WARNING):
        cut = encode(encoder, [endless, "b", endless])
    num_cut = 2 * (5_000 + 2 - LENGTH)
    sentence = f"2 of 3 captions are longer than the text encoder's {LENGTH} tokens; {num_cut:,} tokens were cut."
    assert [record.getMessage() for record in caplog.records] == [sentence]
    caplog.clear()
    fits = encode(encoder, [fitting, "b", fitting])
    assert not caplog.records
    assert all(torch.equal(getattr(cut, part), getattr(fits, part)) for part in ("c", "mask", "e"))


def test_a_trained_text_encoder_gets_gradients_and_a_loaded_one_none(encoder):
    def encode_with_grad():
        return encoder.encode(CAPTIONS)

    assert not encoder.model.training
    assert not encode_with_grad().e.requires_grad
    encoder.model.requires_grad_(True)
    encode_with_grad().e[0, 0].backward()
    assert all(p.grad is not None for n, p in encoder.model.named_parameters() if "layer_norm" in n.lower())


def test_e_is_float32_and_unit_for_a_text_encoder_in_bf16(encoder):
    encoder.model.to(torch.bfloat16)
    encoded = encode(encoder, CAPTIONS)
    assert (encoded.c.dtype, encoded.e.dtype) == (torch.bfloat16, torch.float32)
    assert encoded.e.norm(dim=-1).tolist() == pytest.approx([1.0] * 3, abs=1e-6)  # float32 rounding


def projection_of(width):
    sizes = {"hidden_size": width, "intermediate_size": 8, "num_attention_heads": 1}
    return ClipProjection({"d_e": 4, "num_layers": 0, "hidden_act": "gelu", "layer_norm_eps": 1e-5, **sizes})


def parts_of(encoder):
    return {name: getattr(encoder, name) for name in ("model", "tokenizer", "pooling", "projection", "name")}


@pytest.mark.parametrize(
    ("captions", "error", "sentence"),
    [
        ("apple", TypeError, r"`captions` is a `str`.*Pass `\[caption\]`"),
        ([], ValueError, r"`captions` is empty.*Pass `\[''\]`"),
        (["apple", None], TypeError, r"`captions\[1\]` is a `NoneType`.*Expected a str"),
    ],
)
def test_encode_refuses_what_are_no_captions(encoder_folder, captions, error, sentence):
    with pytest.raises(error, match=sentence):
        encode(load_text_encoder(str(encoder_folder / "clip")), captions)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("clip", {"projection": None}, r"`projection` is None.*Stable Diffusion folder has none, and the CLIP folder"),
        ("clip", {"projection": projection_of(width=5)}, r"shape \(4, 5\).*Expected \(d_e, 32\)"),
        ("clip", {"pooling": "mean", "projection": None}, r"use_attention_mask` is not set"),
        ("clip", {"pooling": "cls"}, r"`pooling` is 'cls'.*Expected 'clip' or 'mean'"),
        ("sentence", {"pooling": "clip"}, r"`BertModel` and `pooling` is 'clip'.*Expected a `CLIPTextModel`"),
        ("sentence", {"projection": projection_of(width=32)}, r"`pooling` is 'mean'.*Expected None"),
    ],
)
def test_encode_refuses_parts_that_do_not_fit(encoder_folder, name, change, sentence):
    encoder = load_text_encoder(str(encoder_folder / name))
    with pytest.raises(ValueError, match=sentence):
        encode(TextEncoder(**parts_of(encoder) | change), CAPTIONS)


def test_encode_refuses_a_clip_with_its_projection_as_the_model(encoder_folder):
    encoder = load_text_encoder(str(encoder_folder / "clip"))
    whole = CLIPTextModelWithProjection(encoder.model.config).eval()
    with pytest.raises(ValueError, match=r"`CLIPTextModelWithProjection`.*Expected a `CLIPTextModel`.*`text_model`"):
        encode(TextEncoder(**parts_of(encoder) | {"model": whole}), CAPTIONS)


def test_encode_refuses_a_length_over_the_positions(encoder):
    encoder.tokenizer.model_max_length = POSITIONS + 1
    with pytest.raises(ValueError, match=r"`tokenizer.model_max_length` is 17.*Expected at most 16"):
        encode(encoder, CAPTIONS)


def test_encode_refuses_to_pool_where_no_caption_ends(encoder_folder):
    """A new token's id is the highest, and a model with `eos_token_id` 2 pools there; any other reads place 0."""
    encoder = load_text_encoder(str(encoder_folder / "clip_2"))
    encoder.tokenizer.add_tokens(["<cat>"])
    encoder.model.resize_token_embeddings(len(encoder.tokenizer))
    with pytest.raises(ValueError, match=r"is not the tokenizer's end token.*eos_token_id` of the model is 2"):
        encode(encoder, ["a <cat>"])
    encoder.model.eos_token_id = encoder.model.config.eos_token_id = encoder.tokenizer.eos_token_id
    assert encode(encoder, ["a <cat>"]).e.shape == (1, QUERY_WIDTH)


def test_encode_refuses_an_empty_caption_without_a_single_token(encoder_folder):
    encoder = load_text_encoder(str(encoder_folder / "sentence"))
    encoder.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ValueError, match=r"A caption became no token at all.*saved with the text encoder"):
        encode(encoder, CAPTIONS)


def test_positions_of_a_model_that_counts_after_its_padding_id():
    torch.manual_seed(0)
    model = RobertaModel(RobertaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                       intermediate_size=8, max_position_embeddings=18, pad_token_id=1))  # fmt: skip
    assert num_positions(model) == 16
    model(torch.full((1, 16), 5))
    with pytest.raises((IndexError, RuntimeError), match=r"out of (bounds|range)"):
        model(torch.full((1, 17), 5))


# ---- trained, or encoding live


@pytest.fixture(scope="module")
def clip_folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    for version in (1, 2):
        write_clip_of(root, version)
    write_sentence_encoder(root / "sentence")
    return root


@pytest.fixture(params=["clip_1", "clip_2", "sentence"])
def parts(clip_folders, request):
    """Text encoder and stream of Stable Diffusion 1.x, of 2.x, and of a sentence encoder, new for each test."""
    encoder, unet = load_text_encoder(str(clip_folders / request.param)), toy_unet(d_c=32)
    if request.param == "sentence":
        return encoder, toy_stream(unet, d_e=32)
    if request.param == "clip_2":
        own = text_encoder_of(clip_folders / "clip_2", num_hidden_layers=NUM_LAYERS_2 - 1)
        encoder = with_clip_projection(own, encoder.tokenizer, "base", encoder)
    config = QueryStreamConfig(num_head_layers=1, head_width=16, head_dim=8)
    return encoder, QueryStream.for_unet(unet, encoder.d_e, config, "clip", encoder.projection)


def test_a_frozen_text_encoder_has_no_gradient(parts):
    encoder, _ = parts
    encoded = encoder(*encoder.tokenize(CAPTIONS))
    assert not encoded.c.requires_grad
    assert not encoded.e.requires_grad
    assert not any(weight.requires_grad for weight in encoder.parameters())


@pytest.mark.parametrize("through", ["c", "e"])
def test_gradients_reach_a_trained_text_encoder(parts, through):
    encoder, stream = parts
    encoder.requires_grad_(True)
    found = getattr(encoder(*encoder.tokenize(CAPTIONS)), through)
    (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    gradients = {name: weight.grad for name, weight in encoder.model.named_parameters()}
    first = next(name for name in gradients if name.endswith(("mlp.fc1.weight", "intermediate.dense.weight")))
    assert gradients[first].abs().sum() > 0
    assert all(weight.grad is None for weight in stream.parameters())


def test_it_stays_in_eval_mode_and_holds_no_weight_of_the_stream(parts):
    encoder, _ = parts
    encoder.requires_grad_(True).train()
    layers = [module for module in encoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert layers
    assert [module for module in encoder.modules() if module.training] == layers, "their own flag, no dropout's"
    assert encoder.state_dict().keys() == {f"model.{name}" for name in encoder.model.state_dict()}
    assert {name.split(".")[0] for name, _ in encoder.named_parameters()} == {"model"}


def test_gradient_checkpointing_runs_every_layer_again_and_changes_no_gradient(parts):
    encoder, _ = parts
    encoder.requires_grad_(True).train()
    ids, mask = encoder.tokenize(CAPTIONS)
    (attention,) = {type(m) for m in encoder.model.modules() if type(m).__name__ in ("CLIPAttention", "BertAttention")}
    modules, gradients, calls = [m for m in encoder.model.modules() if isinstance(m, attention)], [], []
    for module in modules:
        module.register_forward_hook(lambda *_: calls.append(1))
    for num_forward_passes in (1, 2):
        if num_forward_passes == 2:
            encoder.model.activation_checkpointing_enable()
        calls.clear()
        encoder.zero_grad()
        encoder(ids, mask).e[0, 0].backward()
        assert len(calls) == num_forward_passes * len(modules)
        gradients.append([weight.grad for weight in encoder.model.parameters() if weight.grad is not None])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_encoding_reads_no_value_of_a_tensor(parts):
    """Fake tensors have none; a look at one would make a GPU wait."""
    encoder, _ = parts
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    ids, mask = (mode.from_tensor(tokens) for tokens in encoder.tokenize(CAPTIONS))
    with mode:
        encoded = encoder(ids, mask)
    assert (encoded.c.shape, encoded.e.shape) == ((3, LENGTH, encoder.d_c), (3, encoder.d_e))
