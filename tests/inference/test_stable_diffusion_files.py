"""Toy single files in the original layout: stock diffusers finds each tensor, and says what it does not find."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError, infer_diffusers_model_type
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from toys.hub_folders import write_configs_of
from toys.other_pipelines import write_sdxl_file
from toys.single_file import write_ckpt, write_single_file
from toys.stock_generation import differing, stock_generation

TEXT_ENCODER = "cond_stage_model.transformer.text_model."


@pytest.fixture(scope="module")
def stock(stable_diffusion):
    return {name: StableDiffusionPipeline.from_pretrained(stable_diffusion / name) for name in ("sd1", "sd2")}


@pytest.fixture(scope="module")
def configs(stable_diffusion, tmp_path_factory):
    """The folders without weights, as strings: diffusers takes no path here."""
    root = tmp_path_factory.mktemp("configs")
    return {name: str(write_configs_of(stable_diffusion / name, root / name)) for name in ("sd1", "sd2")}


@pytest.fixture(scope="module")
def files(stable_diffusion, tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    names = ("sd1", "sd2")
    return {name: write_single_file(stable_diffusion / name, root / f"{name}.safetensors") for name in names}


def from_file(path, config, pipeline_class=StableDiffusionPipeline, **how):
    return pipeline_class.from_single_file(path, config=config, local_files_only=True, **how)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_a_file_holds_the_folder(stock, files, configs, name):
    pipeline = from_file(files[name], configs[name])
    assert differing(pipeline, stock[name]) == []
    assert dict(pipeline.scheduler.config) == dict(stock[name].scheduler.config)
    assert np.array_equal(stock_generation(pipeline), stock_generation(stock[name]))


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_a_half_file_is_read_in_full_precision_unless_a_type_is_given(
    stock, stable_diffusion, configs, tmp_path, name
):
    path = write_single_file(stable_diffusion / name, tmp_path / "half.safetensors", half=True)
    halves = StableDiffusionPipeline.from_pretrained(stable_diffusion / name, dtype=torch.float16)
    assert differing(from_file(path, configs[name]), halves, dtype=torch.float32) == []
    assert differing(from_file(path, configs[name], dtype=torch.float16), halves) == []


def test_a_file_has_the_tensors_of_the_published_ones(files):
    """Of the 1,131 in a published 1.x file 197 are the text encoder's, at twelve layers."""
    names = list(load_file(files["sd1"]))
    assert sum(name.startswith("model.diffusion_model.") for name in names) == 686
    assert sum(name.startswith("first_stage_model.") for name in names) == 248
    known = {
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight",
        "model.diffusion_model.input_blocks.11.0.in_layers.2.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.middle_block.2.out_layers.3.weight",
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight",
        "first_stage_model.encoder.mid.attn_1.q.weight",
        "first_stage_model.decoder.up.3.upsample.conv.weight",
        f"{TEXT_ENCODER}embeddings.position_ids",
    }
    assert known <= set(names)
    assert {f"cond_stage_model.model.transformer.resblocks.{i}.attn.in_proj_weight" for i in (0, 22, 23)} <= set(
        load_file(files["sd2"])
    )


@pytest.mark.parametrize("text", ["flat", None])
def test_a_text_encoder_of_other_names_or_none_must_be_passed(stock, stable_diffusion, configs, tmp_path, text):
    """Even where the config's folder holds the encoder's weights."""
    folder = stable_diffusion / "sd1"
    path = write_single_file(folder, tmp_path / "no_text_encoder.safetensors", text=text)
    for config in (str(folder), configs["sd1"]):
        with pytest.raises(SingleFileComponentError, match="Failed to load CLIPTextModel"):
            from_file(path, config)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    assert differing(from_file(path, configs["sd1"], text_encoder=encoder), stock["sd1"]) == []


def test_a_hole_in_the_text_encoder_is_left_empty_without_a_word_and_one_elsewhere_is_not(files, configs, tmp_path):
    def without(name):
        weights = load_file(files["sd1"])
        del weights[name]
        save_file(weights, tmp_path / "hole.safetensors")
        return from_file(tmp_path / "hole.safetensors", configs["sd1"])

    assert without(f"{TEXT_ENCODER}final_layer_norm.weight").text_encoder.final_layer_norm.weight.is_meta
    for name in ("model.diffusion_model.out.2.weight", "first_stage_model.quant_conv.weight"):
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            without(name)


def test_averaged_weights_in_a_file_are_read_only_when_asked_for(stock, stable_diffusion, configs, tmp_path):
    path = write_single_file(stable_diffusion / "sd1", tmp_path / "ema.safetensors", with_ema=True)
    assert differing(from_file(path, configs["sd1"]), stock["sd1"]) == []
    averaged = from_file(path, configs["sd1"], extract_ema=True).unet
    assert not any(weight.any() for weight in averaged.parameters())  # zero in this file


@pytest.mark.parametrize(("name", "config"), [("sd1", "sd2"), ("sd2", "sd1")])
def test_a_file_with_the_configs_of_the_other_version_does_not_fit(files, configs, name, config):
    with pytest.raises(ValueError, match="expected shape"):
        from_file(files[name], configs[config])


def test_a_pickle_is_opened_as_gladly(stock, files, configs, tmp_path):
    path = write_ckpt(files["sd1"], tmp_path / "sd1.ckpt")
    assert differing(from_file(path, configs["sd1"]), stock["sd1"]) == []


@pytest.mark.parametrize(("name", "kind"), [("inpainting", "inpainting"), ("pix2pix", "instruct-pix2pix")])
def test_files_of_other_kinds_are_known_by_their_first_convolution(other_pipelines, configs, tmp_path, name, kind):
    path = write_single_file(other_pipelines / name, tmp_path / "other.safetensors")
    assert infer_diffusers_model_type(load_file(path)) == kind
    with pytest.raises(ValueError, match=r"conv_in\.weight expected shape"):
        from_file(path, configs["sd1"])


def test_a_file_of_sdxl_holds_its_folder_and_no_stable_diffusion(other_pipelines, configs, tmp_path):
    folder = other_pipelines / "sdxl"
    path = write_sdxl_file(folder, tmp_path / "sdxl.safetensors")
    assert infer_diffusers_model_type(load_file(path)) == "xl_base"
    pipeline = from_file(path, str(folder), StableDiffusionXLPipeline)
    folders = StableDiffusionXLPipeline.from_pretrained(folder)
    assert differing(pipeline, folders) == []
    ours, theirs = (each.text_encoder_2.state_dict() for each in (pipeline, folders))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises((ValueError, SingleFileComponentError)):
        from_file(path, configs["sd1"])
