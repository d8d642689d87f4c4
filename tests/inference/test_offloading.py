"""Naming while diffusers offloads the parts, as `enable_model_cpu_offload()` does with the hooks used here."""

from contextlib import nullcontext

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module

from toys.models import toy_images, toy_pipeline

PARTS = ("text_encoder", "vae", "unet", "query_stream")


def offload(pipeline, device, told):
    """Hook every part as diffusers does, and write down which hooks fire."""
    for name in PARTS:
        _, user_hook = cpu_offload_with_hook(getattr(pipeline, name), torch.device(device))
        fire = user_hook.hook.pre_forward

        def pre_forward(module, *args, name=name, fire=fire, **kwargs):
            told.append(name)
            return fire(module, *args, **kwargs)

        user_hook.hook.pre_forward = pre_forward
    return pipeline


@pytest.mark.parametrize("encoder", ["sentence", "clip"])
@pytest.mark.parametrize("fusion", ["one_way", "joint"])
def test_offloaded_parts_are_brought_before_they_are_used_and_change_no_answer(encoder_folder, fusion, encoder):
    images, labels, told = toy_images(), ["red", "apple"], []
    expected = toy_pipeline(encoder_folder, encoder, fusion=fusion).classify(images, labels, guidance_scale=4)
    pipeline = offload(toy_pipeline(encoder_folder, encoder, fusion=fusion), "cpu", told)
    assert torch.equal(pipeline.classify(images, labels, guidance_scale=4), expected)
    assert list(dict.fromkeys(told)) == ["text_encoder", "vae", "unet", "query_stream"]


def test_denoising_from_latents_brings_unet_and_stream(encoder_folder):
    for fusion in ("one_way", "joint"):
        told = []
        pipeline = offload(toy_pipeline(encoder_folder, fusion=fusion), "cpu", told)
        next(pipeline.denoise_query(torch.zeros(1, 3, 4, 4), 2))
        assert told[:2] == ["unet", "query_stream"]


def test_inputs_go_where_the_hooks_run_a_part(encoder_folder):
    """The device `meta` stands for an accelerator: weights and inputs go there, and a mixture of both would raise."""
    for fusion in ("one_way", "joint"):
        reading = offload(toy_pipeline(encoder_folder, fusion=fusion), "meta", []).read_image(toy_images())
        assert {tensor.device.type for tensor in reading.tensors} == {"meta"}
        pipeline = offload(toy_pipeline(encoder_folder, fusion=fusion, text_chain="none"), "meta", [])
        assert next(pipeline.denoise_query(toy_images(), guidance_scale=4)).e_0_hat.device.type == "meta"


def test_captions_are_encoded_where_the_text_encoder_runs(encoder_folder, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *device, **options: nullcontext())  # which knows no device `meta`
    pipeline = offload(toy_pipeline(encoder_folder, "clip"), "meta", [])
    encoded = pipeline.caption_encoder.encode(["red"])
    assert {tensor.device.type for tensor in (encoded.c, encoded.mask, encoded.e)} == {"meta"}


@pytest.mark.parametrize(
    ("part", "name_it"),
    [
        ("text_encoder", lambda pipeline: pipeline.classify(toy_images(), ["red", "apple"])),
        ("vae", lambda pipeline: pipeline.encode_latents(toy_images())),
        ("unet", lambda pipeline: pipeline.encode_image(torch.zeros(1, 3, 4, 4))),
        ("query_stream", lambda pipeline: pipeline.encode_image(torch.zeros(1, 3, 4, 4))),
    ],
)
def test_a_part_offloaded_weight_by_weight_is_refused(encoder_folder, part, name_it):
    pipeline = toy_pipeline(encoder_folder)
    expected = name_it(pipeline)
    cpu_offload(getattr(pipeline, part), torch.device("cpu"))  # as `enable_sequential_cpu_offload()` does
    with pytest.raises(
        ValueError, match=rf"`{part}` are on the device `meta`.* Use `enable_model_cpu_offload\(\)` ins"
    ):
        name_it(pipeline)
    remove_hook_from_module(getattr(pipeline, part), recurse=True)
    assert torch.equal(name_it(pipeline), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_naming_and_generation_take_turns_under_model_offload(encoder_folder):
    images, captions = toy_images(), ["red", "apple"]
    expected = toy_pipeline(encoder_folder).rank(images, captions, guidance_scale=4)
    pipeline = toy_pipeline(encoder_folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.enable_model_cpu_offload()
    for _ in range(2):
        scores = pipeline.rank(images, captions, guidance_scale=4)
        assert scores.is_cuda
        assert (scores.cpu() - expected).abs().max() <= 1e-3  # another device rounds otherwise, guidance enlarges it
        pipeline("red", num_inference_steps=1)
