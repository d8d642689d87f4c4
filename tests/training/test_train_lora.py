"""LoRA in the training of DiffDis: what is trained, the merged checkpoint, the updates alone, naming, bad input."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from pydantic import ValidationError
from safetensors.torch import load_file

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.lora import trains_lora
from palindiff.training.cost.weight_free import fake_run
from palindiff.training.loop.checkpoint import saved_states
from palindiff.training.recipes.build_models import build_models, build_objective
from toys.recipe import prepare_toy, toy_recipe, train_toy_recipe
from toys.run import one_thread
from toys.stable_diffusion import write_clip_of, write_sd1

LORA = {"rank": 2, "alpha": 4.0}
STREAM = {"num_head_layers": 1, "head_width": 16, "head_dim": 8, "gamma": 1.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of a Stable Diffusion and its CLIP."""
    root = tmp_path_factory.mktemp("base")
    write_clip_of(root, 1)
    write_sd1(root)
    return root


def lora_recipe(toy_parts, folder, **changes):
    sections = {
        "base": {"source": str(folder / "sd1")}, "text": {"source": str(folder / "clip_1")}, "vae": None, "unet": None,
        "scheduler": None, "query_stream": STREAM, "trained": "lora", "lora": LORA,
        "optimizer": {"learning_rate": 0.05},
    }  # fmt: skip
    return toy_recipe(toy_parts, **(sections | changes))


def with_text(toy_parts, base):
    """A recipe that trains the text encoder too."""
    return lora_recipe(toy_parts, base, text={"source": str(base / "clip_1"), "is_trained": True})


@pytest.fixture(scope="module")
def trained(toy_parts, base, tmp_path_factory):
    """The folder of a run with a trained text encoder, and the pipeline that training returned."""
    output = tmp_path_factory.mktemp("lora") / "run"
    with one_thread():
        return output, train_toy_recipe(with_text(toy_parts, base), output)


def image(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    return pipeline("a red a", num_inference_steps=2, output_type="pt", generator=generator).images


def test_only_updates_and_the_query_stream_are_trained_and_saved(toy_parts, base, tmp_path):
    run = prepare_toy(lora_recipe(toy_parts, base), tmp_path / "run")
    names = {name for name, weight in run.objective.named_parameters() if weight.requires_grad}
    of_unet = {name for name in names if name.startswith("unet.")}
    assert of_unet
    assert all(".lora_A." in name or ".lora_B." in name for name in of_unet)
    assert {name.split(".")[0] for name in names} == {"unet", "query_stream"}


def test_the_checkpoint_is_a_stock_folder_with_the_updates_in_its_weights(trained, base):
    output, pipeline = trained
    stock = StableDiffusionPipeline.from_pretrained(output / "checkpoint", safety_checker=None)
    loaded = PalindiffPipeline.from_pretrained(output / "checkpoint")
    assert torch.equal(image(stock), image(loaded))
    torch.testing.assert_close(image(stock), image(pipeline), atol=1e-5, rtol=0)  # weights lie elsewhere in memory
    start = StableDiffusionPipeline.from_pretrained(base / "sd1", safety_checker=None)
    moved = {name for name, weight in start.unet.state_dict().items()
             if not torch.equal(weight, stock.unet.state_dict()[name])}  # fmt: skip
    assert moved
    assert all(name.split(".")[-2] in ("to_q", "to_k", "to_v", "0") and "attn" in name for name in moved)
    assert not any(trains_lora(part) for part in (pipeline.unet, pipeline.text_encoder))
    assert "LoRA of rank 2" in (output / "checkpoint" / "README.md").read_text(encoding="utf-8")


def test_stock_diffusers_generates_the_same_from_the_base_and_the_updates(trained, base):
    output, pipeline = trained
    stock = StableDiffusionPipeline.from_pretrained(base / "sd1", safety_checker=None)
    before = image(stock)
    stock.load_lora_weights(output / "checkpoint" / "lora")
    torch.testing.assert_close(image(stock), image(pipeline), atol=1e-5, rtol=0)  # sums in another order
    assert not torch.allclose(before, image(pipeline), atol=1e-4)


def test_evaluation_in_training_names_with_the_updates_that_the_checkpoint_holds(trained, toy_parts, base, tmp_path):
    output, pipeline = trained
    files = sorted((toy_parts / "images" / "validation").glob("*.png"))
    run = prepare_toy(with_text(toy_parts, base), tmp_path / "run")
    average = load_file(saved_states(output / "state")[-1] / "ema.safetensors")
    own = dict(run.objective.named_parameters())
    with torch.no_grad():
        for name, weight in average.items():
            own[name].copy_(weight)
    run.objective.eval()
    torch.testing.assert_close(run.pipeline.encode_image(files), pipeline.encode_image(files), atol=1e-5, rtol=0)
    torch.testing.assert_close(run.pipeline.encode_text(["a red a"]), pipeline.encode_text(["a red a"]))


@pytest.mark.parametrize("fusion", ["joint", "one_way", "head"])
def test_every_weight_that_alignment_alone_trains_has_a_gradient(fusion, toy_parts, base, tmp_path):
    """As data-parallel training asks for."""
    stream = STREAM | {"fusion": fusion}
    recipe = lora_recipe(toy_parts, base, query_stream=stream, objective={"task": "alignment"})
    run = prepare_toy(recipe, tmp_path / "run")
    rows = torch.arange(4)
    batch, draws = run.training_set.read(rows, torch.rand(4, 2)), run.objective.draw(4, torch.Generator())
    run.objective(batch, draws)["loss"].backward()
    trained = {name: weight for name, weight in run.objective.named_parameters() if weight.requires_grad}
    assert not [name for name, weight in trained.items() if weight.grad is None]
    assert any("lora" in name for name in trained)


def test_a_stopped_run_resumes_to_the_same_weights(trained, toy_parts, base, tmp_path):
    output, _ = trained
    whole = with_text(toy_parts, base)
    half = whole.model_copy(update={"loop": whole.loop.model_copy(update={"num_steps": 1})})
    with one_thread():
        train_toy_recipe(half, tmp_path / "run")
        train_toy_recipe(whole, tmp_path / "run")
    for part in ("unet", "text_encoder", "query_stream", "lora"):
        files = sorted((output / "checkpoint" / part).glob("*.safetensors"))
        resumed = tmp_path / "run" / "checkpoint" / part
        assert files
        for file in files:
            before, after = load_file(file), load_file(resumed / file.name)
            assert before.keys() == after.keys()
            assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_a_run_is_estimated_with_the_weights_that_it_trains(toy_parts, base, tmp_path):
    recipe = lora_recipe(toy_parts, base)
    real = prepare_toy(recipe, tmp_path / "run").objective
    with fake_run(recipe) as run:
        shapes = {name: weight.shape for name, weight in run.objective.named_parameters() if weight.requires_grad}
    assert shapes == {name: weight.shape for name, weight in real.named_parameters() if weight.requires_grad}


def test_random_weights_are_not_trained_by_updates(toy_parts, base):
    with pytest.raises(
        ValidationError, match=r"`trained` is 'lora' with a U-Net of random weights.*Set `base.source`"
    ):
        toy_recipe(toy_parts, trained="lora")
    with pytest.raises(ValidationError, match=r"`trained` is 'lora' with a U-Net of random weights"):
        lora_recipe(toy_parts, base, base={"source": str(base / "sd1"), "unet_weights": "random"})


def test_a_layer_that_the_unet_does_not_have_is_named(toy_parts, base):
    recipe = lora_recipe(toy_parts, base, lora={"unet_layers": ["to_w"]})
    pipeline = build_models(recipe, 0)
    with pytest.raises(ValueError, match=r"LoRA was asked for on the layer `to_w` of the U-Net"):
        build_objective(recipe, pipeline, pipeline.caption_encoder, torch.zeros(1, 4, 8))
