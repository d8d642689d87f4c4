"""adapters.py: a LoRA changes generation as in stock diffusers, and naming not at all."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.pretrained.saving import export_stable_diffusion
from toys.models import toy_images, toy_stream
from toys.saving import add_adapters, generated, lora_layers, write_lora, write_stable_diffusion

pytest.importorskip("peft", reason="needs the extra `lora`")
LABELS = ["red", "apple", "b"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("lora")
    write_stable_diffusion(root)
    write_lora(root / "base", root / "lora")
    write_lora(root / "base", root / "other", seed=1, with_text=False)
    return root


@pytest.fixture
def ours(root):
    return PalindiffPipeline.from_pretrained(root / "checkpoint")


@pytest.fixture
def stock(root):
    return StableDiffusionPipeline.from_pretrained(root / "base")


class CreatesFile:
    """A pickle that creates a file when it is opened."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def named(pipeline):
    """All ways to name, to the bit."""
    images = toy_images()
    reading = pipeline.read_image(images)
    return [
        pipeline.encode_image(images, guidance_scale=4),
        pipeline.encode_text(LABELS),
        pipeline.classify(images, LABELS),
        pipeline.rank(images, LABELS),
        *(step.e_0_hat for step in pipeline.denoise_query(images, 3)),
        *reading.tensors,
        pipeline.encode_image(reading),
    ]


def same(found, expected):
    return len(found) == len(expected) and all(
        torch.equal(one, other) for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("fusion", ["one_way", "joint"])
@pytest.mark.parametrize("text_chain", ["diffusion", "none"])
def test_a_lora_of_the_base_model_changes_generation_as_in_stock_and_no_name(root, ours, stock, fusion, text_chain):
    config = ours.query_stream.config
    projection = ours.query_stream.clip_projection
    ours.query_stream = toy_stream(
        ours.unet, d_e=config.d_e, pooling="clip", projection=projection, fusion=fusion, text_chain=text_chain
    )
    before, plain = named(ours), generated(ours)
    assert torch.equal(plain, generated(stock))
    for pipeline in (ours, stock):
        pipeline.load_lora_weights(root / "lora")
    assert {*ours.get_list_adapters()} == {"unet", "text_encoder"}
    with_lora = generated(ours)
    assert torch.equal(with_lora, generated(stock))
    assert (with_lora - plain).abs().max() > 1e-2
    assert same(named(ours), before)
    assert torch.equal(generated(ours), with_lora)


def test_without_switching_off_names_would_change(root, ours, monkeypatch):
    before = named(ours)
    ours.load_lora_weights(root / "lora")
    monkeypatch.setattr("palindiff.inference.adapters.has_lora", lambda model: False)
    after = named(ours)
    assert (after[0] - before[0]).abs().max() > 1e-2  # through the U-Net
    assert (after[1] - before[1]).abs().max() > 1e-2  # through the text encoder


def test_several_loras_keep_their_weights_through_naming(root, ours, stock):
    before = named(ours)
    for pipeline in (ours, stock):
        pipeline.load_lora_weights(root / "lora", adapter_name="one")
        pipeline.load_lora_weights(root / "other", adapter_name="two")
        pipeline.set_adapters(["one", "two"], [0.25, 0.75])
    mixed = generated(stock)
    for _ in range(2):
        assert same(named(ours), before)
        assert ours.get_active_adapters() == ["one", "two"]
        assert torch.equal(generated(ours), mixed)
    for pipeline in (ours, stock):
        pipeline.set_adapters("two", 0.5)
    assert same(named(ours), before)
    assert torch.equal(generated(ours), generated(stock))
    assert not torch.equal(generated(ours), mixed)


def test_what_the_user_switched_off_stays_off(root, ours, stock):
    ours.load_lora_weights(root / "lora")
    ours.disable_lora()
    named(ours)
    assert torch.equal(generated(ours), generated(stock))
    ours.enable_lora()
    stock.load_lora_weights(root / "lora")
    assert torch.equal(generated(ours), generated(stock))


def test_an_error_while_naming_leaves_the_lora_on(root, ours, monkeypatch):
    ours.load_lora_weights(root / "lora")
    with_lora = generated(ours)

    def fail(*inputs, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ours.query_stream, "read_image", fail)
    for name_it in (ours.encode_image, ours.read_image):
        with pytest.raises(RuntimeError, match="out of memory"):
            name_it(toy_images())
    assert torch.equal(generated(ours), with_lora)


def test_generation_between_two_denoising_steps_has_the_lora(root, ours):
    before = [step.e_0_hat for step in ours.denoise_query(toy_images(), 3)]
    ours.load_lora_weights(root / "lora")
    with_lora, found = generated(ours), []
    for step in ours.denoise_query(toy_images(), 3):
        found.append(step.e_0_hat)
        assert torch.equal(generated(ours), with_lora)
    assert same(found, before)
    next(ours.denoise_query(toy_images(), 3))  # denoising that is not finished
    assert torch.equal(generated(ours), with_lora)


def test_a_fused_lora_is_the_model_s_own_weights(root, ours, stock):
    before = named(ours)
    for pipeline in (ours, stock):
        pipeline.load_lora_weights(root / "lora")
        pipeline.fuse_lora()
    fused = generated(stock)
    assert (named(ours)[0] - before[0]).abs().max() > 1e-2
    assert torch.equal(generated(ours), fused)  # naming has not taken it out again
    ours.unfuse_lora()
    assert (named(ours)[0] - before[0]).abs().max() < 1e-4  # added and subtracted again in float32


def test_naming_leaves_alone_which_weights_are_trained(ours):
    add_adapters(ours.unet, name="one")
    add_adapters(ours.unet, name="two")
    ours.unet.set_adapter(["one", "two"])
    for name, weight in ours.unet.named_parameters():
        weight.requires_grad_("lora_A.one" in name)
    before = {name: weight.requires_grad for name, weight in ours.unet.named_parameters()}
    ours.encode_image(toy_images())
    assert {name: weight.requires_grad for name, weight in ours.unet.named_parameters()} == before


def test_where_there_is_no_lora_peft_is_not_asked_for(ours, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it would raise
    assert ours.classify(toy_images(), LABELS).shape == (3, 3)


def test_after_unloading_all_is_as_before(root, ours):
    before, plain = named(ours), generated(ours)
    ours.load_lora_weights(root / "lora")
    named(ours)
    ours.unload_lora_weights()
    assert same(named(ours), before)
    assert torch.equal(generated(ours), plain)


def test_a_pipeline_with_a_lora_is_not_saved_into_a_folder_that_nothing_loads(root, ours, tmp_path):
    ours.load_lora_weights(root / "lora")
    sentence = (
        r"LoRA is loaded into `text_encoder` and `unet`\. Expected bare weights.*`unload_lora_weights\(\)` first"
    )
    with pytest.raises(ValueError, match=sentence):
        ours.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=sentence):
        export_stable_diffusion(ours, tmp_path / "exported")
    assert not list(tmp_path.iterdir())
    ours.fuse_lora()
    ours.unload_lora_weights()
    ours.save_pretrained(tmp_path / "saved")
    assert torch.equal(generated(PalindiffPipeline.from_pretrained(tmp_path / "saved")), generated(ours))


def test_a_lora_that_is_a_pickle_is_never_opened(ours, tmp_path):
    pickled, marker = tmp_path / "pytorch_lora_weights.bin", tmp_path / "was opened"
    pickled.write_bytes(pickle.dumps(CreatesFile(marker)))
    for place, options in ((tmp_path, {}), (pickled, {}), (tmp_path, {"use_safetensors": False})):
        with pytest.raises((OSError, SafetensorError)):
            ours.load_lora_weights(place, **options)
    with pytest.raises(
        ValueError, match=r"`weight_name` is pytorch_lora_weights\.bin.* Expected a \.safetensors file"
    ):
        ours.load_lora_weights(tmp_path, weight_name=pickled.name)
    assert not marker.exists()


def test_a_lora_trained_on_ours_loads_in_stock_diffusers(ours, tmp_path):
    export_stable_diffusion(ours, tmp_path / "exported")
    before, plain = named(ours), generated(ours)
    add_adapters(ours.unet)
    trained = [weight for weight in ours.unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    generator, losses = torch.Generator().manual_seed(0), []
    z_0, c = torch.randn(2, 4, 8, 8, generator=generator), torch.zeros(2, 3, 32)
    for _ in range(4):
        eps_z, t_z = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([100, 700])
        z_t = ours.scheduler.add_noise(z_0, eps_z, t_z)
        loss = F.mse_loss(ours.unet(z_t, t_z, c).sample, eps_z)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        ours.encode_image(toy_images(1))  # a look while training
    assert losses[-1] < losses[0]
    PalindiffPipeline.save_lora_weights(tmp_path / "lora", lora_layers(ours.unet))
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "exported")
    assert torch.equal(generated(stock), plain)
    stock.load_lora_weights(tmp_path / "lora")
    assert torch.equal(generated(stock), generated(ours))
    assert not torch.equal(generated(ours), plain)
    assert same(named(ours), before)
