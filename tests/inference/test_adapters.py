"""adapters.py: a LoRA changes painting as in stock diffusers, and naming not at all."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.inference.sharing import export_stable_diffusion
from toy_shared import add_adapters, lora_layers, painted, write_lora, write_stable_diffusion
from toys import toy_pictures, toy_stream

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
    pictures, stream = toy_pictures(), pipeline.query_stream
    found = [
        pipeline.encode_image(pictures, guidance_scale=4),
        pipeline.encode_text(LABELS),
        pipeline.classify(pictures, LABELS),
        pipeline.rank(pictures, LABELS),
        *(step.e_0_hat for step in pipeline.walk_query(pictures, 3)),
    ]
    if stream.config.fusion == "one_way":
        reading = pipeline.read_image(pictures)
        found += [*(tensor for pair in reading.site_blocks for tensor in pair), pipeline.encode_image(reading)]
    return found


def same(found, expected):
    return len(found) == len(expected) and all(
        torch.equal(one, other) for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("fusion", ["one_way", "joint"])
@pytest.mark.parametrize("text_chain", ["diffusion", "none"])
def test_a_lora_of_the_base_model_changes_painting_as_in_stock_and_no_name(root, ours, stock, fusion, text_chain):
    config = ours.query_stream.config
    projection = ours.query_stream.text_projection
    ours.query_stream = toy_stream(
        ours.unet, d_e=config.d_e, pooling="clip", projection=projection, fusion=fusion, text_chain=text_chain
    )
    before, plain = named(ours), painted(ours)
    assert torch.equal(plain, painted(stock))
    for pipeline in (ours, stock):
        pipeline.load_lora_weights(root / "lora")
    assert {*ours.get_list_adapters()} == {"unet", "text_encoder"}
    with_lora = painted(ours)
    assert torch.equal(with_lora, painted(stock))
    assert (with_lora - plain).abs().max() > 1e-2
    assert same(named(ours), before)
    assert torch.equal(painted(ours), with_lora)


def test_without_switching_off_names_would_change(root, ours, monkeypatch):
    before = named(ours)
    ours.load_lora_weights(root / "lora")
    monkeypatch.setattr("palindiff.inference.adapters.has_adapters", lambda model: False)
    after = named(ours)
    assert (after[0] - before[0]).abs().max() > 1e-2  # through the U-Net
    assert (after[1] - before[1]).abs().max() > 1e-2  # through the text tower


def test_several_loras_keep_their_weights_through_naming(root, ours, stock):
    before = named(ours)
    for pipeline in (ours, stock):
        pipeline.load_lora_weights(root / "lora", adapter_name="one")
        pipeline.load_lora_weights(root / "other", adapter_name="two")
        pipeline.set_adapters(["one", "two"], [0.25, 0.75])
    mixed = painted(stock)
    for _ in range(2):
        assert same(named(ours), before)
        assert ours.get_active_adapters() == ["one", "two"]
        assert torch.equal(painted(ours), mixed)
    for pipeline in (ours, stock):
        pipeline.set_adapters("two", 0.5)
    assert same(named(ours), before)
    assert torch.equal(painted(ours), painted(stock))
    assert not torch.equal(painted(ours), mixed)


def test_what_the_user_switched_off_stays_off(root, ours, stock):
    ours.load_lora_weights(root / "lora")
    ours.disable_lora()
    named(ours)
    assert torch.equal(painted(ours), painted(stock))
    ours.enable_lora()
    stock.load_lora_weights(root / "lora")
    assert torch.equal(painted(ours), painted(stock))


def test_an_error_while_naming_leaves_the_lora_on(root, ours, monkeypatch):
    ours.load_lora_weights(root / "lora")
    with_lora = painted(ours)

    def fail(*inputs, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ours.query_stream, "read_image", fail)
    for name_it in (ours.encode_image, ours.read_image):
        with pytest.raises(RuntimeError, match="out of memory"):
            name_it(toy_pictures())
    assert torch.equal(painted(ours), with_lora)


def test_painting_between_two_steps_of_a_walk_has_the_lora(root, ours):
    before = [step.e_0_hat for step in ours.walk_query(toy_pictures(), 3)]
    ours.load_lora_weights(root / "lora")
    with_lora, found = painted(ours), []
    for step in ours.walk_query(toy_pictures(), 3):
        found.append(step.e_0_hat)
        assert torch.equal(painted(ours), with_lora)
    assert same(found, before)
    next(ours.walk_query(toy_pictures(), 3))  # a walk that is not walked to its end
    assert torch.equal(painted(ours), with_lora)


def test_a_fused_lora_is_the_model_s_own_weights(root, ours, stock):
    before = named(ours)
    for pipeline in (ours, stock):
        pipeline.load_lora_weights(root / "lora")
        pipeline.fuse_lora()
    fused = painted(stock)
    assert (named(ours)[0] - before[0]).abs().max() > 1e-2
    assert torch.equal(painted(ours), fused)  # naming has not taken it out again
    ours.unfuse_lora()
    assert (named(ours)[0] - before[0]).abs().max() < 1e-4  # added and subtracted again in float32


def test_naming_leaves_alone_which_weights_are_trained(ours):
    add_adapters(ours.unet, name="one")
    add_adapters(ours.unet, name="two")
    ours.unet.set_adapter(["one", "two"])
    for name, weight in ours.unet.named_parameters():
        weight.requires_grad_("lora_A.one" in name)
    before = {name: weight.requires_grad for name, weight in ours.unet.named_parameters()}
    ours.encode_image(toy_pictures())
    assert {name: weight.requires_grad for name, weight in ours.unet.named_parameters()} == before


def test_where_there_is_no_lora_peft_is_not_asked_for(ours, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it would raise
    assert ours.classify(toy_pictures(), LABELS).shape == (3, 3)


def test_after_unloading_all_is_as_before(root, ours):
    before, plain = named(ours), painted(ours)
    ours.load_lora_weights(root / "lora")
    named(ours)
    ours.unload_lora_weights()
    assert same(named(ours), before)
    assert torch.equal(painted(ours), plain)


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
    assert torch.equal(painted(PalindiffPipeline.from_pretrained(tmp_path / "saved")), painted(ours))


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
    before, plain = named(ours), painted(ours)
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
        ours.encode_image(toy_pictures(1))  # a look while training
    assert losses[-1] < losses[0]
    PalindiffPipeline.save_lora_weights(tmp_path / "lora", lora_layers(ours.unet))
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "exported")
    assert torch.equal(painted(stock), plain)
    stock.load_lora_weights(tmp_path / "lora")
    assert torch.equal(painted(stock), painted(ours))
    assert not torch.equal(painted(ours), plain)
    assert same(named(ours), before)
