"""captions.py against stock diffusers, transformers' CLIP, and a mean by hand."""

import logging
import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import BertModel, CLIPModel, CLIPTextModelWithProjection, RobertaConfig, RobertaModel

from palindiff.models.text_encoder import TextEncoder, encode_captions, load_text_tower
from palindiff.pretrained.text_encoders import num_positions
from toys.text_encoders import LENGTH, POSITIONS, QUERY_WIDTH, WIDTH, encode, stock_c, stock_pipeline, write_towers

CAPTIONS = ["a flat emoji of a red apple", "", "fire"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_towers(tmp_path_factory.mktemp("towers"))


@pytest.fixture(params=["clip", "clip_2", "sentence"])
def tower(request, folders):
    return load_text_tower(str(folders[request.param]))


def test_c_is_what_stock_stable_diffusion_computes(tower):
    captions = [*CAPTIONS, "a red apple " * 50]
    encoded, (c, c_uncond) = encode(tower, captions), stock_c(stock_pipeline(tower), captions)
    assert torch.equal(encoded.c, c)
    assert c.shape == (4, LENGTH, WIDTH)
    assert torch.equal(encode(tower, [""] * 4).c, c_uncond)


def test_c_is_stock_for_a_textual_inversion_of_two_vectors(folders):
    tower = load_text_tower(str(folders["clip"]))
    tower.tokenizer.add_tokens(["<cat>", "<cat>_1"])
    tower.text_encoder.resize_token_embeddings(len(tower.tokenizer))
    encoded = encode(tower, ["a <cat>"])
    assert torch.equal(encoded.c, stock_c(stock_pipeline(tower), ["a <cat>"])[0])
    assert encoded.mask.sum() == 5  # beginning, a, two vectors, end


def test_mask_marks_real_tokens(tower):
    apple = "a red apple" if tower.pooling == "clip" else "a red"
    assert encode(tower, [apple, ""]).mask.sum(dim=1).tolist() == [5 if tower.pooling == "clip" else 4, 2]
    assert encode(tower, [apple]).mask.dtype == torch.bool


@pytest.mark.parametrize("name", ["clip", "clip_2"])
def test_e_is_clips_own_text_embedding_at_unit_length(folders, name):
    tower = load_text_tower(str(folders[name]))
    tokens = tower.tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        clip = CLIPModel.from_pretrained(folders[name])
        text_embeds = clip.get_text_features(tokens.input_ids).pooler_output
        with_projection = CLIPTextModelWithProjection(tower.text_encoder.config).eval()
        with_projection.text_model.load_state_dict(tower.text_encoder.state_dict())
        with_projection.text_projection.weight.copy_(tower.projection)
        assert torch.equal(with_projection(tokens.input_ids).text_embeds, text_embeds)
    e = encode(tower, CAPTIONS).e
    assert torch.equal(e, torch.nn.functional.normalize(text_embeds, dim=-1))
    assert e.shape == (3, QUERY_WIDTH)


def test_e_is_the_mean_over_real_tokens_by_hand(folders):
    tower = load_text_tower(str(folders["sentence"]))
    tokens = tower.tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        features = BertModel.from_pretrained(folders["sentence"])(**tokens).last_hidden_state
    for row, e in zip(range(3), encode(tower, CAPTIONS).e, strict=True):
        num_real = int(tokens.attention_mask[row].sum())
        mean = [sum(float(features[row, i, j]) for i in range(num_real)) / num_real for j in range(WIDTH)]
        length = math.sqrt(sum(value**2 for value in mean))
        assert e.tolist() == pytest.approx([value / length for value in mean], abs=1e-6)  # float32 sums of 12 terms


def test_encoding_ignores_order_and_company(tower):
    together, order = encode(tower, CAPTIONS), [2, 0, 1]
    shuffled = encode(tower, [CAPTIONS[i] for i in order])
    for row, caption in enumerate(CAPTIONS):
        alone = encode(tower, [caption])
        for other, place in ((alone, 0), (shuffled, order.index(row))):
            # matrix products of another size may sum in another order
            assert torch.allclose(other.c[place], together.c[row], atol=1e-5)
            assert torch.allclose(other.e[place], together.e[row], atol=1e-6)


def test_encoding_ignores_padding(tower):
    short = encode(tower, ["red"])
    tower.tokenizer.model_max_length = POSITIONS
    long, num_real = encode(tower, ["red"]), int(short.mask.sum())
    assert long.c.shape[1] == POSITIONS
    assert long.mask.sum() == num_real
    assert torch.allclose(long.e, short.e, atol=1e-6)  # attention sums over more zeros
    assert torch.allclose(long.c[:, :num_real], short.c[:, :num_real], atol=1e-5)


def test_a_long_caption_is_cut_with_one_warning(tower, caplog):
    endless, fitting = "b " * 5_000, " ".join("b" * (LENGTH - 2))
    assert len(endless) == 10_000
    with caplog.at_level(logging.WARNING):
        cut = encode(tower, [endless, "b", endless])
    num_cut = 2 * (5_000 + 2 - LENGTH)
    sentence = f"2 of 3 captions are longer than the text encoder's {LENGTH} tokens; {num_cut} tokens were cut."
    assert [record.getMessage() for record in caplog.records] == [sentence]
    caplog.clear()
    fits = encode(tower, [fitting, "b", fitting])
    assert not caplog.records
    assert all(torch.equal(getattr(cut, part), getattr(fits, part)) for part in ("c", "mask", "e"))


def test_a_trained_tower_gets_gradients_and_a_loaded_one_none(tower):
    def encode_with_grad():
        return encode_captions(CAPTIONS, tower)

    assert not tower.text_encoder.training
    assert not encode_with_grad().e.requires_grad
    tower.text_encoder.requires_grad_(True)
    encode_with_grad().e[0, 0].backward()
    assert all(p.grad is not None for n, p in tower.text_encoder.named_parameters() if "layer_norm" in n.lower())


def test_e_is_float32_and_unit_for_a_tower_in_bf16(tower):
    tower.text_encoder.to(torch.bfloat16)
    encoded = encode(tower, CAPTIONS)
    assert (encoded.c.dtype, encoded.e.dtype) == (torch.bfloat16, torch.float32)
    assert encoded.e.norm(dim=-1).tolist() == pytest.approx([1.0] * 3, abs=1e-6)  # float32 rounding


@pytest.mark.parametrize(
    ("captions", "error", "sentence"),
    [
        ("apple", TypeError, r"`captions` is a `str`.*Pass `\[caption\]`"),
        ([], ValueError, r"`captions` is empty.*Pass `\[''\]`"),
        (["apple", None], TypeError, r"`captions\[1\]` is a `NoneType`.*Expected a str"),
    ],
)
def test_encode_refuses_what_are_no_captions(folders, captions, error, sentence):
    with pytest.raises(error, match=sentence):
        encode(load_text_tower(str(folders["clip"])), captions)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("clip", {"projection": None}, r"`projection` is None.*Stable Diffusion folder has none, and the CLIP folder"),
        ("clip", {"projection": torch.ones(4, 5)}, r"shape \(4, 5\).*Expected \(d_e, 32\)"),
        ("clip", {"pooling": "mean", "projection": None}, r"use_attention_mask` is not set"),
        ("clip", {"pooling": "cls"}, r"`pooling` is 'cls'.*Expected 'clip' or 'mean'"),
        ("sentence", {"pooling": "clip"}, r"`bert` tower and `pooling` is 'clip'.*Expected a `CLIPTextModel`"),
        ("sentence", {"projection": torch.ones(4, 32)}, r"`pooling` is 'mean'.*Expected None"),
    ],
)
def test_encode_refuses_parts_that_do_not_fit(folders, name, change, sentence):
    tower = load_text_tower(str(folders[name]))
    with pytest.raises(ValueError, match=sentence):
        encode(TextEncoder(**{**vars(tower), **change}), CAPTIONS)


def test_encode_refuses_a_tower_whose_first_output_is_pooled(folders):
    tower = load_text_tower(str(folders["clip"]))
    whole = CLIPTextModelWithProjection(tower.text_encoder.config).eval()
    with pytest.raises(ValueError, match=r"`CLIPTextModelWithProjection` whose first output.*its `text_model`"):
        encode(TextEncoder(**{**vars(tower), "text_encoder": whole}), CAPTIONS)


def test_encode_refuses_a_length_over_the_positions(tower):
    tower.tokenizer.model_max_length = POSITIONS + 1
    with pytest.raises(ValueError, match=r"`tokenizer.model_max_length` is 17.*Expected at most 16"):
        encode(tower, CAPTIONS)


def test_encode_refuses_to_pool_where_no_caption_ends(folders):
    """A new token's id is the highest, and a tower with `eos_token_id` 2 pools there; any other reads place 0."""
    tower = load_text_tower(str(folders["clip_2"]))
    tower.tokenizer.add_tokens(["<cat>"])
    tower.text_encoder.resize_token_embeddings(len(tower.tokenizer))
    with pytest.raises(ValueError, match=r"does not hold the tokenizer's end token.*eos_token_id` is 2"):
        encode(tower, ["a <cat>"])
    tower.text_encoder.eos_token_id = tower.text_encoder.config.eos_token_id = tower.tokenizer.eos_token_id
    assert encode(tower, ["a <cat>"]).e.shape == (1, QUERY_WIDTH)


def test_encode_refuses_an_empty_caption_without_a_single_token(folders):
    tower = load_text_tower(str(folders["sentence"]))
    tower.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ValueError, match=r"A caption became no token at all.*saved beside the tower"):
        encode(tower, CAPTIONS)


def test_positions_of_a_tower_that_counts_after_its_padding_id():
    torch.manual_seed(0)
    model = RobertaModel(RobertaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                       intermediate_size=8, max_position_embeddings=18, pad_token_id=1))  # fmt: skip
    assert num_positions(model) == 16
    model(torch.full((1, 16), 5))
    with pytest.raises((IndexError, RuntimeError), match=r"out of (bounds|range)"):
        model(torch.full((1, 17), 5))
