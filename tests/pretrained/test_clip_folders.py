"""clip_folders.py: a stock CLIP in and out, a contrastive model with another text encoder, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from palindiff.pretrained.clip_folders import CONTRASTIVE_FILE, ClipParts, load_clip, save_clip
from palindiff.pretrained.text_encoders import load_text_encoder
from toys.contrastive import toy_image_encoder
from toys.text_encoders import QUERY_WIDTH, WIDTH, encode

CAPTIONS = ["a red apple", "", "z"]


@pytest.fixture
def clip(encoder_folder, tmp_path):
    """A CLIP's folder that a test may change."""
    return shutil.copytree(encoder_folder / "clip", tmp_path / "clip")


@pytest.fixture
def sentence_parts(encoder_folder):
    text = load_text_encoder(str(encoder_folder / "sentence"))
    return ClipParts(toy_image_encoder(WIDTH), text, torch.tensor(1.25))


@pytest.fixture
def written(sentence_parts, tmp_path):
    save_clip(sentence_parts, tmp_path / "model")
    return tmp_path / "model"


def change_weights(file, change):
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def stock_embeddings(folder, x):
    """By transformers' own class, from pixels in [-1, 1]."""
    model = CLIPModel.from_pretrained(folder).eval()
    parts = load_clip(folder)
    pixels = ((x + 1) / 2 - parts.image_encoder.mean) / parts.image_encoder.deviation
    ids, mask = parts.text_encoder.tokenize(CAPTIONS)
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask.long(), pixel_values=pixels)
    return output.image_embeds, output.text_embeds, output.logits_per_image


def test_a_stock_clip_embeds_as_transformers_does(clip):
    parts, x = load_clip(clip), torch.rand(2, 3, 16, 16) * 2 - 1
    images, texts, logits = stock_embeddings(clip, x)
    with torch.no_grad():
        v, e = parts.image_encoder(x), encode(parts.text_encoder, CAPTIONS).e
    torch.testing.assert_close(v, images, rtol=0, atol=1e-6)  # float32 in another order
    torch.testing.assert_close(e, texts, rtol=0, atol=1e-6)
    torch.testing.assert_close(parts.log_logit_scale.exp() * v @ e.T, logits, rtol=1e-5, atol=1e-5)
    assert not any(
        weight.requires_grad for part in (parts.image_encoder, parts.text_encoder) for weight in part.parameters()
    )


def test_what_is_saved_with_a_clip_text_encoder_is_a_stock_clip(clip, tmp_path):
    text = load_text_encoder(str(clip))
    parts = ClipParts(toy_image_encoder(QUERY_WIDTH), text, torch.tensor(3.0))
    save_clip(parts, tmp_path / "new")
    again, (_, loading) = (
        load_clip(tmp_path / "new"),
        CLIPModel.from_pretrained(tmp_path / "new", output_loading_info=True),
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert again.log_logit_scale.item() == 3.0
    assert again.image_encoder.fingerprint == parts.image_encoder.fingerprint
    assert again.text_encoder.fingerprint == text.fingerprint
    images, _, _ = stock_embeddings(tmp_path / "new", x := torch.rand(2, 3, 16, 16) * 2 - 1)
    with torch.no_grad():
        torch.testing.assert_close(parts.image_encoder(x), images, rtol=0, atol=1e-6)  # float32 in another order
    assert str(tmp_path) not in "".join(file.read_text() for file in (tmp_path / "new").glob("*.json"))


def test_another_text_encoder_makes_a_folder_of_parts_that_comes_back(sentence_parts, written):
    assert {path.name for path in written.iterdir()} == {
        "image_encoder",
        "text_encoder",
        "tokenizer",
        CONTRASTIVE_FILE,
    }
    again = load_clip(written)
    assert again.log_logit_scale.item() == 1.25
    assert again.image_encoder.fingerprint == sentence_parts.image_encoder.fingerprint
    assert again.text_encoder.fingerprint == sentence_parts.text_encoder.fingerprint
    assert torch.equal(encode(again.text_encoder, CAPTIONS).e, encode(sentence_parts.text_encoder, CAPTIONS).e)


def test_the_normalisation_of_the_image_processor_is_taken(clip):
    (clip / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 4]}))
    encoder = load_clip(clip).image_encoder
    assert encoder.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert encoder.deviation.flatten().tolist() == [1, 2, 4]


def test_shards_and_half_precision_of_older_make_are_read(clip, encoder_folder):
    def make_older(weights):
        weights.update({name: weight.half() for name, weight in weights.items()})
        weights["vision_model.embeddings.position_ids"] = torch.arange(5)[None]

    change_weights(clip / "model.safetensors", make_older)
    CLIPModel.from_pretrained(encoder_folder / "clip").save_pretrained(clip / "sharded", max_shard_size="20kB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(clip / name, clip / "sharded" / name)
    older, sharded, whole = (load_clip(folder) for folder in (clip, clip / "sharded", encoder_folder / "clip"))
    assert not (clip / "sharded" / "model.safetensors").exists()
    assert sharded.image_encoder.fingerprint == whole.image_encoder.fingerprint
    assert sharded.log_logit_scale == whole.log_logit_scale
    assert older.log_logit_scale.dtype == torch.float32
    assert older.log_logit_scale.item() == pytest.approx(whole.log_logit_scale.item(), rel=1e-3)  # half precision


def without_scale(clip):
    change_weights(clip / "model.safetensors", lambda weights: weights.pop("logit_scale"))


def without_a_layer(clip):
    change_weights(clip / "model.safetensors", lambda weights: weights.pop("visual_projection.weight"))


def as_pickle(clip):
    torch.save(load_file(clip / "model.safetensors"), clip / "pytorch_model.bin")
    (clip / "model.safetensors").unlink()


def as_other_model(clip):
    (clip / "config.json").write_text(json.dumps({"model_type": "siglip"}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (without_scale, "have no `logit_scale`. Expected a CLIP"),
        (without_a_layer, "The image encoder `.*` lacks `visual_projection.weight`"),
        (as_pickle, r"pytorch_model\.bin.*Expected model\.safetensors: pickles run code"),
        (as_other_model, "holds a `siglip`. Expected a CLIP as transformers saves it.*Use a folder"),
        (lambda clip: (clip / "config.json").unlink(), r"has no config\.json. Expected a CLIP"),
    ],
)
def test_a_damaged_clip_is_refused_in_one_sentence(clip, damage, sentence):
    damage(clip)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        load_clip(clip)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not valid JSON"),
        ('{"pooling": "first", "log_logit_scale": 1}', "has a problem at `pooling`.*Copy the folder again"),
        ('{"pooling": "mean", "log_logit_scale": NaN}', "has a problem at `log_logit_scale`"),
    ],
)
def test_damaged_settings_are_refused(written, text, sentence):
    (written / CONTRASTIVE_FILE).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load_clip(written)


@pytest.mark.parametrize("part", ["image_encoder", "text_encoder", "tokenizer"])
def test_a_missing_part_is_refused(written, part):
    shutil.rmtree(written / part)
    with pytest.raises(FileNotFoundError, match=f"has no {part}/. Expected a CLIP"):
        load_clip(written)


def test_encoders_of_different_width_are_refused(written):
    toy_image_encoder(WIDTH + 1).model.save_pretrained(written / "image_encoder")
    with pytest.raises(
        ValueError, match=f"width {WIDTH + 1}, the text encoder .* of width {WIDTH}. Expected one width"
    ):
        load_clip(written)


def test_weights_that_are_not_finite_are_not_saved(sentence_parts, tmp_path):
    with torch.no_grad():
        sentence_parts.image_encoder.model.visual_projection.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"of the part `image encoder` holds 1 numbers that are infinite or NaN"):
        save_clip(sentence_parts, tmp_path / "model")
    assert not (tmp_path / "model").exists()
