"""layout.py: every folder that cannot be a base is refused in a sentence that tells what it is and what works."""

import json
import re
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.pretrained.layout import check_configs, is_palindiff, weights_variant
from palindiff.pretrained.text_encoders import load_text_encoder
from toys.hub_folders import as_lfs_pointers, as_pickles, read_json, with_hole, write_half_of, write_json
from toys.other_pipelines import write_changed_clip, write_other_clip
from toys.stable_diffusion import write_sd1
from toys.text_encoders import write_sentence_encoder

WORKS = "Expected Stable Diffusion 1.x or 2.x for text to image. Start from such a base model"


@pytest.fixture(scope="module")
def clip(stable_diffusion):
    return load_text_encoder(str(stable_diffusion / "clip_1"))


@pytest.fixture(scope="module")
def half(stable_diffusion, tmp_path_factory):
    root = tmp_path_factory.mktemp("half")
    write_half_of(stable_diffusion / "sd1", root / "whole")
    write_half_of(stable_diffusion / "sd1", root / "shards", max_shard_size="100KB")
    return root


@pytest.fixture
def copy(stable_diffusion, tmp_path):
    return shutil.copytree(stable_diffusion / "sd1", tmp_path / "sd1")


# ---- other kinds of models


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sdxl", ["is a `StableDiffusionXLPipeline`, which has more than one text encoder"]),
        ("inpainting", ["takes 9 channels where the VAE makes 4: it is made for inpainting", "by masking"]),
        ("depth", ["takes 5 channels where the VAE makes 4: it is made for depth to image"]),
        ("pix2pix", ["takes 8 channels where the VAE makes 4: it is made for instruct-pix2pix"]),
        ("upscaler", ["has class embeddings, as upscalers have (`num_class_embeds` = 1000)", "does not support"]),
        ("unclip", ["has class embeddings, as upscalers and unCLIP have (`class_embed_type` = 'projection')"]),
    ],
)
def test_other_kinds_of_pipelines_are_named(refused, other_pipelines, clip, name, told):
    refused(ValueError, *told, WORKS, f"`{other_pipelines / name}`", source=other_pipelines / name, clip=clip)


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("addition_embed_type", "text_time", "added embeddings, as Stable Diffusion XL and unCLIP have"),
        ("encoder_hid_dim_type", "image_proj", "conditions besides the text"),
        ("time_cond_proj_dim", 256, "a guidance scale among its inputs, as latent consistency models have"),
    ],
)
def test_a_unet_that_asks_for_more_is_refused(refused, setting, value, told):
    with pytest.raises(ValueError, match=re.escape(f"`base` has {told} (`{setting}` = {value!r})")):
        check_configs({"cross_attention_dim": 768, setting: value}, {}, 768, "base")


def test_a_unet_of_another_width_than_its_text_encoder_is_refused(refused, stable_diffusion, clip, tmp_path):
    shutil.copytree(stable_diffusion / "clip_1", tmp_path / "clip_1")
    folder = write_sd1(tmp_path, unet={"cross_attention_dim": 16})
    refused(
        ValueError, "reads text of width 16, its text encoder has width 32. Expected one width. Copy both parts",
        source=folder, clip=clip,
    )  # fmt: skip


def test_a_palindiff_checkpoint_is_told_what_it_is(refused, stable_diffusion, clip, tmp_path):
    PalindiffPipeline.from_stable_diffusion(stable_diffusion / "sd1", stable_diffusion / "clip_1").save_pretrained(
        tmp_path
    )
    assert is_palindiff(tmp_path)
    assert not is_palindiff(stable_diffusion / "sd1")
    refused(
        ValueError, "is a palindiff checkpoint already", "PalindiffPipeline.from_pretrained", "palindiff export",
        source=tmp_path, clip=clip,
    )  # fmt: skip


# ---- the CLIP


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (
            lambda root, tmp: write_other_clip(tmp),
            ["`hidden_size` is 32 there and 16 in CLIP", "Expected the CLIP", "Name that CLIP's", "of width 768"],
        ),
        (
            lambda root, tmp: write_changed_clip(root / "clip_1", tmp / "changed"),
            ["`encoder.layers.1.mlp.fc1.weight` differs by up to 0.5.", "Expected the CLIP that", "trained further"],
        ),
        (
            lambda root, tmp: write_sentence_encoder(tmp / "sentence"),
            ["is a sentence encoder. Expected the CLIP that", "Name that CLIP's folder"],
        ),
        (
            lambda root, tmp: root / "sd1" / "text_encoder",
            ["has no text projection, which makes captions' embeddings", "Expected a whole CLIP"],
        ),
        (lambda root, tmp: root / "clip_2", ["`intermediate_size` is 48 there and 32 in CLIP, and 1 more"]),
    ],
    ids=["width", "changed", "sentence", "no projection", "of 2.x"],
)
def test_another_text_encoder_is_refused(refused, stable_diffusion, tmp_path, write, told):
    other = load_text_encoder(str(write(stable_diffusion, tmp_path)))
    refused(ValueError, *told, source=stable_diffusion / "sd1", clip=other)


def test_a_clip_of_pointers_or_without_weights_is_refused(refused, stable_diffusion, tmp_path):
    pointers = as_lfs_pointers(shutil.copytree(stable_diffusion / "clip_1", tmp_path / "pointers"))
    with pytest.raises(ValueError, match=r"pointers/model.safetensors` cannot be read.*Expected the weights.*Git LFS"):
        load_text_encoder(str(pointers))


# ---- files


def test_pickles_are_not_opened(refused, copy, clip, tmp_path):
    refused(
        ValueError, "holds these weights: diffusion_pytorch_model.bin", "pickles run code", "Save the model again",
        source=as_pickles(copy), clip=clip,
    )  # fmt: skip
    (tmp_path / "model.ckpt").write_bytes(b"")
    for name in ("model.ckpt", "absent.bin"):
        refused(
            ValueError, "is a pickle, which runs code when opened", "Expected a .safetensors file",
            source=tmp_path / name, clip=clip,
        )  # fmt: skip
    (folder := copy.rename(copy.with_name("model.pt"))).is_dir()
    refused(ValueError, "holds these weights", source=folder, clip=clip)


def test_git_lfs_pointers_and_half_files_are_told_apart_from_weights(refused, copy, clip):
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(ValueError, f"`{path}` cannot be read as safetensors", "a broken download", source=copy, clip=clip)
    as_lfs_pointers(copy)
    refused(ValueError, "cannot be read as safetensors", "Git LFS", "Get the file again", source=copy, clip=clip)


@pytest.mark.parametrize("name", ["whole", "shards"])
@pytest.mark.parametrize("variant", [None, "bf16"])
def test_a_variant_must_be_chosen_where_there_is_no_other(refused, half, clip, name, variant):
    refused(
        ValueError, "holds its weights as variant fp16 only", "--variant fp16", "`variant='fp16'`",
        source=half / name, clip=clip, variant=variant,
    )  # fmt: skip


def test_a_variant_is_read_where_it_is_and_the_plain_weights_elsewhere(half, stable_diffusion):
    for folder in (half / "whole", half / "shards"):
        assert weights_variant(folder / "unet", "diffusion_pytorch_model", "fp16") == "fp16"
    assert weights_variant(stable_diffusion / "sd1" / "unet", "diffusion_pytorch_model", "fp16") is None


def test_an_index_of_shards_that_names_none_is_refused(refused, half, clip, tmp_path):
    folder = shutil.copytree(half / "shards", tmp_path / "shards")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index.write_text('{"metadata": {}}')
    told = f"`{index}` names no weights. Expected a `weight_map`"
    refused(ValueError, told, source=folder, clip=clip, variant="fp16")


def test_a_missing_shard_is_named(refused, half, clip, tmp_path):
    folder = shutil.copytree(half / "shards", tmp_path / "shards")
    shard = next((folder / "unet").glob("*-00002-*"))
    shard.unlink()
    refused(
        FileNotFoundError, f"has no {shard.name}, which its diffusion_pytorch_model.safetensors.index.fp16.json names",
        source=folder, clip=clip, variant="fp16",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("part", "tensor", "told"),
    [
        ("unet", "conv_in.bias", "The part `unet` lacks `conv_in.bias`"),
        ("vae", "quant_conv.bias", "The part `vae` lacks `quant_conv.bias`"),
        ("text_encoder", "final_layer_norm.weight", "lacks `text_model.final_layer_norm.weight`. Expected"),
    ],
)
def test_a_hole_is_named(refused, copy, clip, part, tensor, told):
    refused(ValueError, told, tensor, "again", source=with_hole(copy, part, tensor), clip=clip)


# ---- folders that lack something


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(refused, copy, clip, part):
    shutil.rmtree(copy / part)
    refused(
        FileNotFoundError, f"is a `StableDiffusionPipeline` without `{part}`", "Name a folder that holds unet, vae",
        source=copy, clip=clip,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
        "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json",
    ],
)  # fmt: skip
def test_a_small_file_that_is_broken_or_missing_is_named(refused, copy, clip, name):
    for broken, told in (("{", "is not valid JSON"), ("[]", "holds a JSON list. Expected an object")):
        (copy / name).write_text(broken)
        refused(ValueError, f"`{copy / name}` {told}", "Copy it again", source=copy, clip=clip)
    (copy / name).unlink()
    refused(FileNotFoundError, f"`{copy}` has no {name}. Expected a Stable Diffusion folder", source=copy, clip=clip)


def test_a_tokenizer_without_words_is_refused(refused, copy, clip):
    """Transformers would make one of no words, without a word."""
    (copy / "tokenizer" / "tokenizer.json").unlink()
    refused(FileNotFoundError, "has no vocabulary in its tokenizer folder", source=copy, clip=clip)


def test_a_tokenizer_longer_than_the_text_encoder_is_refused(refused, copy, clip):
    path = copy / "tokenizer" / "tokenizer_config.json"
    write_json(path, {name: value for name, value in read_json(path).items() if name != "model_max_length"})
    refused(ValueError, "`tokenizer.model_max_length` is 1", "Expected at most 16", source=copy, clip=clip)


@pytest.mark.parametrize("name", ["someone/generator", "/no/such/folder", "no-such-folder"])
def test_an_unknown_name_is_told_what_names_work(refused, clip, monkeypatch, tmp_path, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = f"No Stable Diffusion `{name}`: it is not a folder, and neither the Hub nor its cache"
    remedies = ("--variant fp16", "Fix the cause, the name or the connection")
    refused(FileNotFoundError, told, *remedies, source=name, clip=clip, cache_dir=tmp_path)


def test_options_that_say_nothing_here_are_refused(refused, stable_diffusion, clip, tmp_path):
    refused(
        ValueError, "A config folder is given with", "Leave --config", source=stable_diffusion / "sd1", clip=clip,
        config=tmp_path,
    )  # fmt: skip


def test_a_text_encoder_of_another_kind_is_refused(refused, copy, clip):
    path = copy / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "t5"}))
    refused(ValueError, "holds a `t5` text encoder", "Use one of these", source=copy, clip=clip)


def test_a_number_that_changed_in_the_base_is_named_too(refused, copy, clip):
    path = copy / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("final_layer_norm.bias"))
    weights[name][3] += 0.25
    save_file(weights, path, metadata={"format": "pt"})
    refused(ValueError, "`final_layer_norm.bias` differs by up to 0.25. Expected", source=copy, clip=clip)
    assert torch.equal(StableDiffusionPipeline.from_pretrained(copy).text_encoder.final_layer_norm.bias, weights[name])
