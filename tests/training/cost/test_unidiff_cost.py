"""What UniDiff costs: its weight-free models are those that training builds, and memory is that of a measured run."""

import json
import sys

import pytest
import torch
import yaml

from palindiff.pretrained.clip_folders import ClipParts, save_clip
from palindiff.pretrained.hub import KNOWN_BASES, PAPER_CLIP
from palindiff.pretrained.text_encoders import load_text_encoder
from palindiff.training.cost.estimate import Hardware, count_disk, count_memory, count_parameters, estimate
from palindiff.training.cost.flops import clip_tflop
from palindiff.training.cost.weight_free import fake_unidiff, weight_free_unidiff
from palindiff.training.recipes.build_unidiff import build_unidiff, build_unidiff_objective
from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe
from palindiff.training.recipes.yaml_files import load_recipe
from palindiff.training.trainer import describe, make_trainer
from toys.contrastive import toy_image_encoder
from toys.measured_memory import measured_bytes
from toys.stable_diffusion import FEW_LAYERS, write_clip_of, write_sd1
from toys.text_encoders import WIDTH
from toys.unidiff import unidiff_recipe, unidiff_tree

CPU = Hardware(device="cpu")
VARIANTS = {
    "all": {},
    "attention": {"trained": "attention", "machine": {"gradient_checkpointing": True}},
    "lora": {"trained": "lora"},
    "relational": {"objective": {"consistency": "relational"}},
    "contrastive alone": {"objective": {"generation_weight": 0, "consistency_weight": 0}},
}


@pytest.fixture(scope="module")
def other_encoder(encoder_folder, tmp_path_factory):
    """A contrastive model with a sentence encoder, as palindiff writes it, of the width of the toy U-Net."""
    folder = tmp_path_factory.mktemp("contrastive") / "clip"
    folder.mkdir()
    text = load_text_encoder(str(encoder_folder / "sentence"))
    save_clip(ClipParts(toy_image_encoder(WIDTH), text, torch.tensor(1.25)), folder)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["clip", "other encoder"])
def test_a_weight_free_run_is_what_training_builds(variant, kind, toy_parts, stable_diffusion, other_encoder):
    sections = VARIANTS[variant] | ({} if kind == "clip" else {"clip": {"source": str(other_encoder)}})
    recipe = unidiff_recipe(toy_parts, stable_diffusion, **sections)
    parts = build_unidiff(recipe)
    trained, run = build_unidiff_objective(recipe, parts), weight_free_unidiff(recipe)
    assert [(name, weight.shape, weight.requires_grad) for name, weight in run.objective.named_parameters()] == [
        (name, weight.shape, weight.requires_grad) for name, weight in trained.named_parameters()
    ]
    assert run.objective.unet.is_gradient_checkpointing == trained.unet.is_gradient_checkpointing
    assert torch.equal(run.objective.scheduler.alphas_cumprod, trained.scheduler.alphas_cumprod)
    assert run.objective.text_encoder.max_length == trained.text_encoder.max_length
    assert {name: shape(each) for name, each in run.parts["vae"].state_dict().items()} == {
        name: shape(each) for name, each in parts.vae.state_dict().items()
    }


def shape(tensor):
    return tuple(tensor.shape), tensor.dtype


@pytest.mark.parametrize("flip", ["both", "naming", "none"])
def test_its_rows_are_those_that_training_reads(flip, toy_parts, stable_diffusion, tmp_path):
    recipe = unidiff_recipe(toy_parts, stable_diffusion, views={"flip": flip, "crops": 1})
    trainer = make_trainer(recipe, tmp_path / "run")
    trainer.build_models()
    trainer.load_features()
    rows, uniform = torch.arange(3), torch.rand(3, 2)
    with fake_unidiff(recipe) as run:
        built = {name: shape(each) for name, each in run.features.read(rows, uniform).items()}
        disk = count_disk(run, recipe, None)
    trained = trainer.training_set.read(rows, uniform)
    assert built == {name: shape(each) for name, each in trained.items()}
    latents = trainer.training_set.latents.read(rows, torch.zeros(3, dtype=torch.bool))
    views = 2 if flip == "both" else 1  # generation trains on whole images: crops are of pixels alone
    assert disk.image == views * sum(each[0].nbytes for each in latents)
    assert disk.caption == 0


def test_parameters_are_those_of_both_models_and_what_is_new(toy_parts, shallow):
    def told(**sections):
        with fake_unidiff(unidiff_recipe(toy_parts, shallow, **sections)) as run:
            return count_parameters(run)

    whole, lora = told(), told(trained="lora", lora={"rank": 1})
    assert set(whole.parts) == {"image_encoder", "text_encoder", "unet", "vae"}
    assert list(whole.new) == ["projection of consistency"]
    assert lora.new["LoRA"] == sum(lora.parts.values()) - sum(whole.parts.values())
    assert lora.trained == sum(lora.new.values()) + 1  # and the logit scale
    assert lora.trained < told(trained="attention").trained < whole.trained
    recipe = unidiff_recipe(toy_parts, shallow)
    assert describe(recipe)["trained"] == whole.trained


def test_chunks_and_fewer_trained_weights_take_less_memory(toy_parts, shallow):
    def memory(**sections):
        recipe = unidiff_recipe(toy_parts, shallow, **sections)
        with fake_unidiff(recipe) as run:
            return count_memory(run, recipe, CPU)

    whole, chunks = memory(loop={"batch_size": 16}), memory(loop={"batch_size": 16, "grad_cache_size": 2})
    assert chunks.activations < 0.4 * whole.activations
    held = memory(trained="lora", lora={"rank": 1})
    assert held.gradients == held.weights < 0.2 * whole.gradients
    assert held.frozen + held.weights == pytest.approx(whole.frozen + whole.weights, rel=0.1)
    lean = memory(loop={"batch_size": 16}, machine={"gradient_checkpointing": True})
    assert lean.activations < whole.activations


def test_an_estimate_has_all_losses_and_clip_as_what_names(toy_parts, shallow):
    recipe = unidiff_recipe(toy_parts, shallow)
    found = estimate(recipe, Hardware(device="cpu", device_tflops=0.5), num_images=10)
    assert list(found.tflop.step) == ["all losses"]
    with fake_unidiff(recipe) as run:
        assert found.tflop.named_image == {"image encoder": clip_tflop(run)}
    assert found.time.step_s == pytest.approx(found.tflop.whole_step / 0.5)
    assert found.disk_bytes.total == 10 * found.disk_bytes.image


def test_the_usual_models_are_known_without_a_file():
    """Stable Diffusion v1 and ViT-L/14: the numbers of weights that their checkpoints hold."""
    recipe = load_recipe(UniDiffRecipe, "adapt", ["trained=all"])
    assert recipe.stable_diffusion.source in KNOWN_BASES
    assert recipe.clip.source == PAPER_CLIP
    with fake_unidiff(recipe) as run:
        parts, objective = count_parameters(run).parts, run.objective
        assert parts["unet"] == 859_520_964
        assert parts["image_encoder"] == 303_966_208
        assert parts["text_encoder"] == 123_060_480
        clip = sum(weight.numel() for weight in objective.contrastive.parameters())
        assert clip == 427_616_513  # of transformers' CLIPModel


@pytest.fixture(scope="module")
def middling(toy_parts, tmp_path_factory):
    """A recipe whose tensors outweigh what an interpreter itself takes; only the configs are of that size."""
    root = tmp_path_factory.mktemp("middling")
    clip, base = write_clip_of(root), write_sd1(root, unet=FEW_LAYERS)
    widths = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2}
    change(clip / "config.json", text_config=widths, vision_config=widths | {"image_size": 64})
    change(base / "unet" / "config.json", block_out_channels=[128, 256], norm_num_groups=32,
           cross_attention_dim=256)  # fmt: skip
    change(base / "text_encoder" / "config.json", **widths)
    tree = unidiff_tree(toy_parts, root, loop={"batch_size": 12}, machine={"num_threads": 1, "precision": "fp32"})
    file = root / "middling.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def change(file, **sections):
    config = json.loads(file.read_text())
    for name, value in sections.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(config))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's largest resident set from /proc")
def test_memory_is_that_of_a_measured_run(middling):
    """15 % is what is promised."""
    changes = ["machine.gradient_checkpointing=true", "loop.grad_cache_size=4"]
    recipe = load_recipe(UniDiffRecipe, str(middling), changes)
    with fake_unidiff(recipe) as run:
        assert count_memory(run, recipe, CPU).peak == pytest.approx(measured_bytes(middling, changes), rel=0.15)
