"""base_shape.py and skeleton.py: what is estimated on is what a base trains, tensor by tensor, shape by shape."""

import pytest
import torch

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.training.cost.base_shape import PAPER_BASE, read_base_shape
from palindiff.training.cost.estimate import Hardware, count_disk, estimate
from palindiff.training.cost.flops import count_work
from palindiff.training.cost.skeleton import build_skeleton, fake_skeleton
from palindiff.training.recipes.build_models import BaseConfig, TextConfig
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.yaml_files import load_recipe
from toys.recipe import prepare_toy, toy_recipe
from toys.stable_diffusion import write_clip_of, write_sd1, write_sd2

STREAM = {"num_head_layers": 1, "head_width": 16, "head_dim": 8, "gamma": 1.0}
CPU = Hardware(device="cpu")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    for version, write in ((1, write_sd1), (2, write_sd2)):
        write_clip_of(root, version)
        write(root)
    from palindiff.models.query_stream import QueryStreamConfig

    made = PalindiffPipeline.from_stable_diffusion(root / "sd2", root / "clip_2", QueryStreamConfig(**STREAM))
    made.save_pretrained(root / "made")
    return root


def base_recipe(toy_parts, bases, name, clip, **sections):
    text = {"source": str(bases / clip)} | sections.pop("text", {})
    base = {"source": str(bases / name)} | sections.pop("base", {})
    none = dict.fromkeys(("vae", "unet", "scheduler"))
    return toy_recipe(toy_parts, base=base, text=text, query_stream=STREAM, **none, **sections)


VARIANTS = {
    "1.x": ("sd1", "clip_1", {}),
    "2.x": ("sd2", "clip_2", {}),
    "1.x, encoded live": ("sd1", "clip_1", {"text": {"keep_features": False}, "base": {"image_size_px": 128}}),
    "2.x, tower trained": (
        "sd2",
        "clip_2",
        {"text": {"is_trained": True}, "machine": {"gradient_checkpointing": True}},
    ),
    "a checkpoint": ("made", "clip_2", {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_skeleton_of_a_base_is_what_training_prepares(variant, bases, toy_parts, tmp_path):
    name, clip, sections = VARIANTS[variant]
    recipe = base_recipe(toy_parts, bases, name, clip, **sections)
    parts, skeleton = prepare_toy(recipe, tmp_path), build_skeleton(recipe)
    for built, trained in ((skeleton.objective, parts.objective), (skeleton.vae, parts.pipeline.vae)):
        assert [(n, weight.shape, weight.requires_grad) for n, weight in built.named_parameters()] == [
            (n, weight.shape, weight.requires_grad) for n, weight in trained.named_parameters()
        ]
    assert {n: each.shape for n, each in skeleton.objective.named_buffers()} == {
        n: each.shape for n, each in parts.objective.named_buffers()
    }
    assert torch.equal(skeleton.objective.scheduler.alphas_cumprod, parts.objective.scheduler.alphas_cumprod)
    assert skeleton.image_size_px == parts.pipeline.unet.config.sample_size * parts.pipeline.vae_scale_factor
    rows, uniform = torch.arange(3), torch.rand(3, 2)
    built, trained = (each.read(rows, uniform) for each in (skeleton.features, parts.training_set))
    assert {n: (each.shape, each.dtype) for n, each in built.items()} == {
        n: (each.shape, each.dtype) for n, each in trained.items()
    }


def test_live_captions_cost_work_and_no_disk_and_a_trained_tower_costs_more_of_both_memory_and_work(bases, toy_parts):
    kept, live, trained = (
        estimate(base_recipe(toy_parts, bases, "sd1", "clip_1", text=text), CPU)
        for text in ({}, {"keep_features": False}, {"is_trained": True})
    )
    assert kept.disk_bytes.caption > live.disk_bytes.caption == trained.disk_bytes.caption == 0
    assert "captions" not in kept.tflop.step
    assert trained.tflop.step["captions"] > 2 * live.tflop.step["captions"] > 0
    assert trained.parameters.trained == live.parameters.trained + live.parameters.parts["text_encoder"]
    assert trained.memory_bytes.peak > live.memory_bytes.peak


def test_images_kept_without_mirror_images_take_half(bases, toy_parts):
    sizes = []
    for flip in ("both", "none"):
        recipe = base_recipe(toy_parts, bases, "sd1", "clip_1", views={"flip": flip})
        with fake_skeleton(recipe) as models:
            sizes.append(count_disk(models, recipe, None).image)
    assert sizes[0] == 2 * sizes[1]


def test_the_kept_layer_of_a_2_x_is_no_new_weight(bases, toy_parts):
    told = estimate(base_recipe(toy_parts, bases, "sd2", "clip_2"), CPU).parameters
    assert sum(told.new.values()) < told.parts["query_stream"]
    assert told.trained == told.parts["unet"] + sum(told.new.values())


def test_the_paper_s_recipe_is_estimated_without_a_file():
    shape = read_base_shape(BaseConfig(source=PAPER_BASE), TextConfig(source="openai/clip-vit-large-patch14"))
    assert shape.unet["cross_attention_dim"] == shape.tower.d_c == shape.tower.d_e == 768
    recipe = load_recipe(DiffDisRecipe, "diffdis-cc3m", ["loop.batch_size=1"])
    with fake_skeleton(recipe) as models:
        assert sum(weight.numel() for weight in models.objective.unet.parameters()) == 859_520_964
        assert models.image_size_px == 256
        assert count_disk(models, recipe, 10).total == 10 * 2 * 4 * 32 * 32 * 2
        assert set(count_work(models, recipe).step) == {"generation", "alignment", "captions"}


def test_a_base_that_is_nowhere_is_told(tmp_path, bases):
    with pytest.raises(FileNotFoundError, match=r"No configs of `nobody/nothing`: it is no folder"):
        read_base_shape(BaseConfig(source="nobody/nothing"), TextConfig(source=str(bases / "clip_1")))
    with pytest.raises(ValueError, match=r"`text\.source` is missing beside a Stable Diffusion"):
        read_base_shape(BaseConfig(source=str(bases / "sd1")), TextConfig())
    (tmp_path / "unet").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no unet/config\.json"):
        read_base_shape(BaseConfig(source=str(tmp_path)), TextConfig(source=str(bases / "clip_1")))


def test_sharding_an_average_elsewhere_and_8_bit_moments_lower_what_a_card_holds(bases, toy_parts):
    recipe = base_recipe(toy_parts, bases, "sd1", "clip_1")
    gpu = Hardware(processes=2)
    whole = estimate(recipe, gpu).memory_bytes

    def changed(section, **values):
        update = {section: getattr(recipe, section).model_copy(update=values)}
        return estimate(recipe.model_copy(update=update), gpu).memory_bytes

    shared = changed("machine", sharding="fsdp")
    for name in ("weights", "gradients", "optimizer", "ema"):
        assert getattr(shared, name) == getattr(whole, name) // 2
    assert changed("machine", ema_device="cpu").ema == 0
    assert 0.25 < changed("optimizer", kind="adamw_8bit").optimizer / whole.optimizer < 0.26
