"""single_file.py: one .safetensors file gives what its folder gives, offline, and is refused in a clear sentence."""

import json
import shutil

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.query_stream import QueryStreamConfig
from palindiff.pretrained import single_file
from palindiff.pretrained.hub import STABLE_DIFFUSION_1
from palindiff.pretrained.stable_diffusion import load_base
from palindiff.pretrained.text_encoders import load_text_encoder
from toys.hub_folders import read_json, write_configs_of, write_json
from toys.other_pipelines import write_changed_clip, write_other_clip, write_sdxl_file
from toys.single_file import ldm_unet_name, ldm_vae_name, write_single_file
from toys.stable_diffusion import toy_scheduler
from toys.stock_generation import differing, dtypes_of, stock_generation
from toys.text_encoders import write_sentence_encoder

SMALL = QueryStreamConfig(num_head_layers=1, head_width=16, head_dim=8)
FULL, HALF = torch.float32, torch.float16
TEXT_ENCODER, TEXT_ENCODER_2 = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."


@pytest.fixture(scope="module")
def made(stable_diffusion, tmp_path_factory):
    """`sd1.safetensors`, `sd2.safetensors`, and folders of configs `sd1` and `sd2`."""
    root = tmp_path_factory.mktemp("made")
    for name in ("sd1", "sd2"):
        write_configs_of(stable_diffusion / name, root / name)
        write_single_file(stable_diffusion / name, root / f"{name}.safetensors")
    return root


@pytest.fixture(scope="module")
def clips(stable_diffusion):
    return {f"sd{version}": load_text_encoder(str(stable_diffusion / f"clip_{version}")) for version in (1, 2)}


def init(stable_diffusion, path, config, version, **options):
    clip = stable_diffusion / f"clip_{version}"
    return PalindiffPipeline.from_stable_diffusion(path, clip, SMALL, config=config, **options)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_a_file_gives_what_its_folder_gives(stable_diffusion, made, tmp_path, name):
    ours = init(stable_diffusion, made / f"{name}.safetensors", made / name, int(name[-1]))
    stock = StableDiffusionPipeline.from_pretrained(stable_diffusion / name)
    assert differing(ours, stock) == []
    assert dict(ours.scheduler.config) == dict(stock.scheduler.config)
    assert ours.tokenizer.pad_token == stock.tokenizer.pad_token
    generation = stock_generation(stock)
    assert np.array_equal(stock_generation(ours), generation)
    folder = PalindiffPipeline.from_stable_diffusion(
        stable_diffusion / name, stable_diffusion / f"clip_{name[-1]}", SMALL
    )
    assert torch.equal(ours.encode_text(["a red apple", ""]), folder.encode_text(["a red apple", ""]))
    assert ours.query_stream.config.clip_projection_settings == folder.query_stream.config.clip_projection_settings
    ours.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert differing(again, stock) == []
    assert np.array_equal(stock_generation(again), generation)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_a_half_file_is_read_in_full_precision_unless_a_type_is_given(stable_diffusion, made, tmp_path, name):
    path = write_single_file(stable_diffusion / name, tmp_path / "half.safetensors", half=True)
    halves = StableDiffusionPipeline.from_pretrained(stable_diffusion / name, dtype=HALF)
    full, half = (init(stable_diffusion, path, made / name, int(name[-1]), dtype=dtype) for dtype in (FULL, HALF))
    assert set(dtypes_of(full).values()) == {FULL}
    assert set(dtypes_of(half).values()) == {HALF}
    assert differing(half, halves) == []
    parts = ("unet", "vae")  # the encoder is CLIP's, whose numbers the file holds rounded
    for part in parts:
        ours, theirs = getattr(full, part).state_dict(), getattr(halves, part).state_dict()
        assert all(torch.equal(ours[key], theirs[key].float()) for key in theirs)
    whole = StableDiffusionPipeline.from_pretrained(stable_diffusion / name).text_encoder.state_dict()
    assert all(torch.equal(weight, whole[key]) for key, weight in full.text_encoder.state_dict().items())


def test_averaged_weights_beside_are_left_alone(stable_diffusion, made, tmp_path):
    path = write_single_file(stable_diffusion / "sd1", tmp_path / "ema.safetensors", with_ema=True)
    ours = init(stable_diffusion, path, made / "sd1", 1)
    assert differing(ours, StableDiffusionPipeline.from_pretrained(stable_diffusion / "sd1")) == []


# ---- Stable Diffusion 1.x, which needs no configs


def test_the_own_configs_are_those_of_stable_diffusion_1():
    """859,520,964 and 83,653,863 weights, under 686 and 248 names: so the published files."""
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(STABLE_DIFFUSION_1 / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(STABLE_DIFFUSION_1 / "vae"))
    assert sum(weight.numel() for weight in unet.parameters()) == 859_520_964
    assert sum(weight.numel() for weight in vae.parameters()) == 83_653_863
    weights = unet.state_dict()
    names = {ldm_unet_name(name, weights): weight.shape for name, weight in weights.items()}
    assert len(names) == 686
    assert len({ldm_vae_name(name) for name in vae.state_dict()}) == 248
    assert names["input_blocks.0.0.weight"] == (320, 4, 3, 3)
    assert names["time_embed.0.weight"] == (1280, 320)
    assert names["input_blocks.1.1.proj_in.weight"] == (320, 320, 1, 1)
    assert names["middle_block.1.transformer_blocks.0.attn2.to_k.weight"] == (1280, 768)
    assert {block.attn1.heads for each in unet.mid_block.attentions for block in each.transformer_blocks} == {8}
    assert (unet.config.sample_size, vae.config.sample_size, vae.config.scaling_factor) == (64, 512, 0.18215)


def test_the_own_scheduler_is_that_of_stable_diffusion_1():
    ours, theirs = single_file.scheduler_of(STABLE_DIFFUSION_1), toy_scheduler("PNDMScheduler")
    assert ours.config.num_train_timesteps == 1000
    assert {name: theirs.config[name] for name in ours.config if not name.startswith("_")} == {
        name: value for name, value in ours.config.items() if not name.startswith("_")
    }


def test_a_file_of_stable_diffusion_1_needs_no_configs(stable_diffusion, made, monkeypatch):
    """Its width is all that tells it: here the toys'."""
    monkeypatch.setattr(single_file, "STABLE_DIFFUSION_1", made / "sd1")
    ours = init(stable_diffusion, made / "sd1.safetensors", None, 1)
    stock = StableDiffusionPipeline.from_pretrained(stable_diffusion / "sd1")
    assert differing(ours, stock) == []
    assert np.array_equal(stock_generation(ours), stock_generation(stock))


def test_another_file_without_configs_is_told_what_it_lacks(refused, made, clips):
    refused(
        ValueError, "reads text of width 32, as Stable Diffusion 2.x does", "whether it predicts noise or velocity",
        "--config DIR", source=made / "sd2.safetensors", clip=clips["sd2"],
    )  # fmt: skip


# ---- other files


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "inpainting",
            ["takes 9 channels where the VAE makes 4: it is made for inpainting", "inpainting by masking works"],
        ),
        ("pix2pix", ["takes 8 channels where the VAE makes 4: it is made for instruct-pix2pix"]),
        ("depth", ["takes 5 channels where the VAE makes 4: it is made for depth to image"]),
        ("upscaler", ["has added or class embeddings, as Stable Diffusion XL, unCLIP and upscalers have"]),
        ("unclip", ["has added or class embeddings, as Stable", "unCLIP", "which naming does not support"]),
        ("sdxl", ["as Stable Diffusion XL", "(`label_emb` = 'model.diffusion_model.label_emb.", "does not support"]),
    ],
)
def test_files_of_other_kinds_are_named(refused, other_pipelines, made, clips, tmp_path, name, told):
    write = write_sdxl_file if name == "sdxl" else write_single_file
    path = write(other_pipelines / name, tmp_path / "other.safetensors")
    works = "Expected Stable Diffusion 1.x or 2.x for text to image. Start from such a base model"
    refused(ValueError, *told, works, source=path, clip=clips["sd1"], config=made / "sd1")


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda root, tmp: write_other_clip(tmp), ["embedding.weight` has shape", "(16, 16) in CLIP"]),
        (
            lambda root, tmp: write_changed_clip(root / "clip_1", tmp / "changed"),
            ["`encoder.layers.1.mlp.fc1.weight` differs by up to 0.5", "trained further"],
        ),
        (lambda root, tmp: write_sentence_encoder(tmp / "sentence"), ["is a sentence encoder", "Name that CLIP"]),
        (lambda root, tmp: root / "sd1" / "text_encoder", ["has no text projection", "Name the CLIP's own folder"]),
        (lambda root, tmp: root / "clip_2", ["has shape (48,) there and (32,) in CLIP"]),
    ],
    ids=["width", "changed", "sentence", "no projection", "of 2.x"],
)
def test_another_text_encoder_is_refused(refused, stable_diffusion, made, tmp_path, write, told):
    other = load_text_encoder(str(write(stable_diffusion, tmp_path)))
    refused(ValueError, *told, source=made / "sd1.safetensors", clip=other, config=made / "sd1")


@pytest.mark.parametrize(
    ("name", "hole", "told"),
    [
        ("sd1", "model.diffusion_model.out.2.weight", "The weights of `unet` in"),
        ("sd1", "first_stage_model.quant_conv.weight", "The weights of `vae` in"),
        ("sd1", "first_stage_model.decoder.mid.attn_1.q.weight", "The weights of `vae` in"),
        ("sd1", f"{TEXT_ENCODER}final_layer_norm.weight", "lacks `final_layer_norm.weight`. Expected"),
        ("sd2", f"{TEXT_ENCODER_2}ln_final.bias", "lacks `final_layer_norm.bias`. Expected"),
        (
            "sd2",
            f"{TEXT_ENCODER_2}transformer.resblocks.2.attn.in_proj_weight",
            "lacks `encoder.layers.2.self_attn.k_proj.weight`, and 2 more",
        ),
        ("sd1", "model.diffusion_model.input_blocks.0.0.weight", "holds no U-Net of Stable Diffusion's first layout"),
    ],
)
def test_a_hole_is_refused(refused, made, clips, tmp_path, name, hole, told):
    weights = load_file(made / f"{name}.safetensors")
    del weights[hole]
    path = tmp_path / "hole.safetensors"
    save_file(weights, path)
    refused(ValueError, told, str(path), "Expected", source=path, clip=clips[name], config=made / name)


def test_what_no_text_encoder_has_is_named(refused, made, clips, tmp_path):
    weights = load_file(made / "sd2.safetensors")
    weights[f"{TEXT_ENCODER_2}transformer.resblocks.3.ls_1.weight"] = torch.ones(32)
    save_file(weights, tmp_path / "more.safetensors")
    refused(
        ValueError, "CLIP has no `encoder.layers.3.ls_1.weight`",
        source=tmp_path / "more.safetensors", clip=clips["sd2"], config=made / "sd2",
    )  # fmt: skip


@pytest.mark.parametrize("text", ["flat", None])
def test_a_file_without_a_text_encoder_of_known_names_is_refused(
    refused, stable_diffusion, made, clips, tmp_path, text
):
    path = write_single_file(stable_diffusion / "sd1", tmp_path / "no_text_encoder.safetensors", text=text)
    refused(
        ValueError, "holds no text encoder", "Name a file with the whole model",
        source=path, clip=clips["sd1"], config=made / "sd1",
    )  # fmt: skip


def test_a_part_or_a_lora_is_no_model(refused, stable_diffusion, clips, tmp_path):
    part = stable_diffusion / "sd1" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({"unet.conv_in.lora_A.weight": torch.ones(2, 2)}, lora := tmp_path / "lora.safetensors")
    for path in (part, lora):
        refused(
            ValueError, "holds no U-Net of Stable Diffusion's first layout", "name its folder", "a LoRA is not",
            source=path, clip=clips["sd1"],
        )  # fmt: skip


def test_what_is_no_safetensors_is_refused(refused, clips, tmp_path):
    (tmp_path / "text.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n" * 3)
    for name in ("text", "absent"):
        refused(
            FileNotFoundError, f"{name}.safetensors` cannot be read as safetensors", "Check the name, or copy it",
            source=tmp_path / f"{name}.safetensors", clip=clips["sd1"],
        )  # fmt: skip


def test_a_variant_of_a_file_is_refused(refused, made, clips):
    refused(
        ValueError, "loaded with `variant`. Expected", "also --variant", source=made / "sd1.safetensors",
        clip=clips["sd1"], config=made / "sd1", variant="fp16",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sample_size": 99}, "loaded with `sample_size`"),
        ({"safety_checker": "one", "requires_safety_checker": True}, "`safety_checker` and `requires_safety_checker`"),
        ({"dtype": {"unet": HALF}}, "loaded with the type {'unet': torch.float16}"),
    ],
)
def test_options_that_a_file_cannot_serve_are_refused(refused, made, clips, options, told):
    """Diffusers' converter would take some for settings of the network, and leave others without a word."""
    call = {"source": made / "sd1.safetensors", "clip": clips["sd1"], "config": made / "sd1"}
    refused(ValueError, told, "Expected one torch type as `dtype`", **call, **options)
    none = {"safety_checker": None, "requires_safety_checker": False, "torch_dtype": HALF}
    assert load_base(**call, **none)[0].dtype == HALF


# ---- configs


@pytest.mark.parametrize(
    ("name", "told"),
    [("sd1", "does not describe the text encoder of"), ("sd2", "does not describe the text encoder of")],
)
def test_configs_of_the_other_version_are_refused(refused, made, clips, name, told):
    other = {"sd1": "sd2", "sd2": "sd1"}[name]
    refused(
        ValueError, told, "Name another --config", source=made / f"{name}.safetensors", clip=clips[name],
        config=made / other,
    )  # fmt: skip


def test_configs_of_other_kinds_are_refused(refused, made, other_pipelines, clips):
    for name, told in (("sdxl", "has more than one text encoder"), ("inpainting", "takes 9 channels")):
        refused(
            ValueError, told, str(other_pipelines / name), source=made / "sd1.safetensors", clip=clips["sd1"],
            config=other_pipelines / name,
        )  # fmt: skip


def test_configs_of_another_unet_are_told_what_does_not_fit(refused, made, clips, tmp_path):
    folder = shutil.copytree(made / "sd1", tmp_path / "sd1")
    config = read_json(folder / "unet" / "config.json")
    write_json(folder / "unet" / "config.json", config | {"block_out_channels": [8, 8, 16, 16]})
    refused(
        ValueError, "The weights of `unet` in", "do not fit", "expected shape", "--config",
        source=made / "sd1.safetensors", clip=clips["sd1"], config=folder,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
        "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json",
    ],
)  # fmt: skip
def test_half_a_folder_of_configs_is_refused(refused, made, clips, tmp_path, name):
    """Without the scheduler's or the encoder's, version 2 would be generated as version 1."""
    folder = shutil.copytree(made / "sd2", tmp_path / "sd2")
    (folder / name).unlink()
    call = {"source": made / "sd2.safetensors", "clip": clips["sd2"], "config": folder}
    refused(FileNotFoundError, f"`{folder}` has no {name}. Expected a", "Name one", **call)
    (folder / name).write_text("{")
    refused(ValueError, f"`{folder / name}` is not valid JSON", "Copy it again", **call)


def test_a_scheduler_that_is_none_of_diffusers_is_refused(refused, made, clips, tmp_path):
    folder = shutil.copytree(made / "sd1", tmp_path / "sd1")
    index = read_json(folder / "model_index.json")
    for kind in ("EvilScheduler", "StableDiffusionPipeline", ["a", "b"], None):
        (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", kind]}))
        refused(
            ValueError, "names a scheduler", "Expected one of diffusers' schedulers",
            source=made / "sd1.safetensors", clip=clips["sd1"], config=folder,
        )  # fmt: skip
