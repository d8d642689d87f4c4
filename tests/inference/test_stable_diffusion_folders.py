"""Toy Stable Diffusion folders: built as 1.x and 2.x are, and read by stock diffusers, with what it must be told."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from safetensors import SafetensorError
from transformers import CLIPModel, CLIPTokenizer

from toys.hub_folders import (
    as_lfs_pointers,
    as_old_hub,
    as_pickles,
    read_json,
    with_hole,
    with_old_configs,
    with_scheduler,
    write_half_of,
)
from toys.stable_diffusion import NUM_LAYERS_2, UNET_WIDTHS, write_sd1, write_sd2
from toys.stock_generation import differing, dtypes_of, is_image, stock_generation

FULL, HALF = torch.float32, torch.float16
MIXED_TYPES = "must have the same dtype"


def loaded(folder, **how):
    return StableDiffusionPipeline.from_pretrained(folder, **how)


@pytest.fixture(scope="module")
def stock(stable_diffusion):
    """Stock pipelines of both versions and what they generate."""
    pipelines = {name: loaded(stable_diffusion / name) for name in ("sd1", "sd2")}
    return {name: (pipeline, stock_generation(pipeline)) for name, pipeline in pipelines.items()}


def others_than_scheduler(stock):
    """Parts that need not be loaded again."""
    return {name: part for name, part in stock["sd1"][0].components.items() if name != "scheduler"}


@pytest.fixture
def copy_of(stable_diffusion, tmp_path):
    """Copy one of the folders, so that it may be rewritten."""
    return lambda name: shutil.copytree(stable_diffusion / name, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "kind", "heads", "head_widths"),
    [("sd1", torch.nn.Conv2d, [2] * 7, [2, 4, 8]), ("sd2", torch.nn.Linear, [1, 1, 2, 2, 4, 4, 4], [4])],
)
def test_attention_is_built_as_in_its_version(stock, name, kind, heads, head_widths):
    unet = stock[name][0].unet
    sites = [module for module in unet.modules() if isinstance(module, Transformer2DModel)]
    encoder = [*sites[:6], unet.mid_block.attentions[0]]
    assert [type(site.proj_in) for site in sites] == [kind] * 16  # 6 down, 9 up, 1 mid
    attentions = [site.transformer_blocks[0].attn1 for site in encoder]
    assert [attention.heads for attention in attentions] == heads
    widths = {attention.inner_dim // attention.heads for attention in attentions}
    assert sorted(widths) == head_widths
    assert tuple(unet.config.block_out_channels) == UNET_WIDTHS


@pytest.mark.parametrize(
    ("name", "prediction_type", "pad_token"), [("sd1", "epsilon", "<|endoftext|>"), ("sd2", "v_prediction", "!")]
)
def test_the_rest_is_that_of_its_version(stock, stable_diffusion, name, prediction_type, pad_token):
    pipeline = stock[name][0]
    assert pipeline.scheduler.config.prediction_type == prediction_type
    assert pipeline.tokenizer.pad_token == pad_token
    assert pipeline.vae_scale_factor == 8
    assert (pipeline.vae.config.latent_channels, pipeline.vae.config.scaling_factor) == (4, 0.18215)
    assert sum(path.stat().st_size for path in (stable_diffusion / name).rglob("*") if path.is_file()) < 2e6


@pytest.mark.parametrize(("version", "num_left_out"), [(1, 0), (2, 1)])
def test_the_text_encoder_is_its_clips_without_the_projection(stock, stable_diffusion, version, num_left_out):
    encoder = stock[f"sd{version}"][0].text_encoder
    clip = CLIPModel.from_pretrained(stable_diffusion / f"clip_{version}")
    whole = clip.text_model.state_dict()
    assert all(torch.equal(weight, whole[name]) for name, weight in encoder.state_dict().items())
    missing = {name.split(".")[2] for name in whole.keys() - encoder.state_dict().keys()}
    assert missing == ({str(NUM_LAYERS_2 - 1)} if num_left_out else set())
    assert clip.text_projection.weight.shape[1] == encoder.config.hidden_size
    assert CLIPTokenizer.from_pretrained(stable_diffusion / f"clip_{version}").pad_token == "<|endoftext|>"


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_stock_diffusers_generates_and_listens_to_the_caption(stock, stable_diffusion, name):
    generation = stock[name][1]
    assert is_image(generation)
    assert np.abs(generation[0] - generation[1]).max() > 1e-3  # one noise, two captions
    generic = DiffusionPipeline.from_pretrained(stable_diffusion / name)
    assert type(generic) is StableDiffusionPipeline
    assert np.array_equal(stock_generation(generic), generation)


def test_what_a_version_2_predicts_is_the_schedulers_to_say(stock, stable_diffusion, tmp_path):
    shutil.copytree(stable_diffusion / "clip_2", tmp_path / "clip_2")
    base = loaded(write_sd2(tmp_path, "epsilon", scheduler="PNDMScheduler"))
    assert base.scheduler.config.prediction_type == "epsilon"
    assert differing(base, stock["sd2"][0]) == []
    assert np.abs(stock_generation(base) - stock["sd2"][1]).max() > 1e-2


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_what_is_old_about_a_folder_needs_no_word(stock, copy_of, name):
    old = loaded(as_old_hub(copy_of(name)))
    assert differing(old, stock[name][0]) == []
    assert np.array_equal(stock_generation(old), stock[name][1])
    assert old.tokenizer.pad_token == stock[name][0].tokenizer.pad_token


def test_an_old_safety_checker_is_filled_and_may_be_left_out(stock, copy_of):
    folder = as_old_hub(copy_of("sd1"))
    old, today = (pipeline.safety_checker.state_dict() for pipeline in (loaded(folder), stock["sd1"][0]))
    assert old.keys() == today.keys()
    assert all(torch.equal(old[name], today[name]) for name in old)
    without = loaded(folder, safety_checker=None, requires_safety_checker=False)
    assert without.safety_checker is None
    assert np.array_equal(stock_generation(without), stock["sd1"][1])


@pytest.mark.parametrize("saving", [{}, {"max_shard_size": "100KB"}], ids=["whole", "shards"])
def test_a_half_folder_needs_its_variant_and_a_type(stock, stable_diffusion, tmp_path, saving):
    half = write_half_of(stable_diffusion / "sd1", tmp_path / "half", **saving)
    assert all(".fp16" in path.name for path in half.rglob("*.safetensors"))
    assert len(list(half.glob("unet/*.safetensors"))) == (1 if not saving else 4)
    with pytest.raises(OSError, match="no file named"):
        loaded(half)
    mixed = loaded(half, variant="fp16")
    assert dtypes_of(mixed) == {"unet": FULL, "vae": FULL, "text_encoder": HALF, "safety_checker": HALF}
    with pytest.raises(RuntimeError, match=MIXED_TYPES):
        stock_generation(mixed)
    rounded = loaded(half, variant="fp16", dtype=FULL)
    assert differing(rounded, loaded(stable_diffusion / "sd1", dtype=HALF), dtype=FULL) == []
    assert is_image(stock_generation(rounded))


def test_beside_its_half_the_full_one_needs_a_type(stock, copy_of):
    """The half is written last here, so the text encoder's one config says half."""
    folder = copy_of("sd1")
    both = write_half_of(folder, folder)
    assert len(list(both.glob("unet/*.safetensors"))) == 2
    assert dtypes_of(loaded(both))["text_encoder"] == HALF
    assert differing(loaded(both, dtype=FULL), stock["sd1"][0]) == []
    assert differing(loaded(both, variant="fp16", dtype=HALF), stock["sd1"][0], dtype=HALF) == []


def test_a_text_config_that_says_half_rounds_full_weights_unless_a_type_is_given(stock, copy_of):
    folder = with_old_configs(copy_of("sd2"), text_dtype="float16")
    assert loaded(folder).text_encoder.dtype == HALF
    with pytest.raises(RuntimeError, match=MIXED_TYPES):
        stock_generation(loaded(folder))
    assert differing(loaded(folder, dtype=FULL), stock["sd2"][0]) == []


def test_shards_need_no_word(stock, stable_diffusion, tmp_path):
    stock["sd1"][0].save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("unet/diffusion_pytorch_model-*-of-*.safetensors"))) > 2
    assert read_json(tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json")["weight_map"]
    assert differing(loaded(tmp_path), stock["sd1"][0]) == []


def test_pickles_are_opened_unless_safetensors_are_asked_for(stock, copy_of):
    folder = as_pickles(copy_of("sd1"))
    assert not list(folder.rglob("*.safetensors"))
    assert differing(loaded(folder), stock["sd1"][0]) == []
    with pytest.raises(OSError, match=r"no file named \w+\.safetensors"):
        loaded(folder, use_safetensors=True)


def test_a_hole_is_filled_in_the_text_encoder_and_left_empty_in_the_unet(copy_of):
    """Neither is refused: transformers draws what is missing, diffusers leaves it on the meta device."""
    folder = with_hole(with_hole(copy_of("sd1")), "text_encoder", "final_layer_norm.weight")
    pipeline = loaded(folder)
    assert pipeline.unet.conv_in.bias.is_meta
    assert (pipeline.text_encoder.final_layer_norm.weight == 1).all()


def test_what_a_clone_without_large_files_leaves_is_refused(copy_of):
    with pytest.raises((OSError, SafetensorError), match=r"git-lfs|header"):  # whichever part comes first
        loaded(as_lfs_pointers(copy_of("sd1")))


@pytest.mark.parametrize("name", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "LMSDiscreteScheduler"])
def test_any_scheduler_of_the_folder_generates(stock, copy_of, name):
    pipeline = loaded(with_scheduler(copy_of("sd1"), name), **others_than_scheduler(stock))
    assert type(pipeline.scheduler).__name__ == name
    assert torch.equal(pipeline.scheduler.alphas_cumprod, stock["sd1"][0].scheduler.alphas_cumprod)
    assert is_image(stock_generation(pipeline))


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
@pytest.mark.parametrize(("wrong", "right"), [({"steps_offset": 0}, 1), ({"clip_sample": True}, False)])
def test_stock_corrects_what_old_schedulers_lack(stock, copy_of, wrong, right):
    pipeline = loaded(with_scheduler(copy_of("sd1"), "DDIMScheduler", **wrong), **others_than_scheduler(stock))
    assert pipeline.scheduler.config[next(iter(wrong))] == right


@pytest.mark.parametrize("name", ["inpainting", "unclip", "sdxl"])
def test_stock_opens_other_kinds_without_a_word_and_cannot_generate(other_pipelines, name):
    assert read_json(other_pipelines / name / "model_index.json")["_class_name"] != "StableDiffusionPipeline"
    pipeline = loaded(other_pipelines / name)
    assert type(pipeline) is StableDiffusionPipeline
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        stock_generation(pipeline)


@pytest.mark.parametrize("unet", [{"cross_attention_dim": 16}, {"in_channels": 9}])
def test_stock_opens_parts_that_do_not_fit_and_cannot_generate(stable_diffusion, tmp_path, unet):
    shutil.copytree(stable_diffusion / "clip_1", tmp_path / "clip_1")
    pipeline = loaded(write_sd1(tmp_path, unet=unet))
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|must match the size"):
        stock_generation(pipeline)
