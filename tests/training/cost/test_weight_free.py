"""weight_free.py: what is estimated on is what is trained, from scratch and from a base, shape by shape."""

import shutil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.query_stream import QueryStreamConfig
from palindiff.pretrained.bundled import bundled_vae, load_vae
from palindiff.pretrained.hub import PAPER_BASE, PAPER_CLIP
from palindiff.training.cost.estimate import Hardware, count_disk, count_held, count_memory, count_parameters
from palindiff.training.cost.flops import step_tflop
from palindiff.training.cost.weight_free import fake_run, weight_free_run
from palindiff.training.recipes.build_models import ModelRecipe, build_models
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.yaml_files import load_recipe
from toys.recipe import prepare_toy, toy_recipe
from toys.stable_diffusion import write_clip_of, write_sd1, write_sd2
from toys.text_encoders import write_clip

STREAM = {"num_head_layers": 1, "head_width": 16, "head_dim": 8, "gamma": 1.0}
CPU = Hardware(device="cpu")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    for version, write in ((1, write_sd1), (2, write_sd2)):
        write_clip_of(root, version)
        write(root)
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
    "2.x, text encoder trained": (
        "sd2",
        "clip_2",
        {"text": {"is_trained": True}, "machine": {"gradient_checkpointing": True}},
    ),
    "a checkpoint": ("made", "clip_2", {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_weight_free_run_of_a_base_is_what_training_prepares(variant, bases, toy_parts, tmp_path):
    name, clip, sections = VARIANTS[variant]
    recipe = base_recipe(toy_parts, bases, name, clip, **sections)
    parts, run = prepare_toy(recipe, tmp_path), weight_free_run(recipe)
    for built, trained in ((run.objective, parts.objective), (run.pipeline.vae, parts.pipeline.vae)):
        assert [(n, weight.shape, weight.requires_grad) for n, weight in built.named_parameters()] == [
            (n, weight.shape, weight.requires_grad) for n, weight in trained.named_parameters()
        ]
    assert {n: each.shape for n, each in run.objective.named_buffers()} == {
        n: each.shape for n, each in parts.objective.named_buffers()
    }
    assert torch.equal(run.objective.scheduler.alphas_cumprod, parts.objective.scheduler.alphas_cumprod)
    assert run.pipeline.unet.config.sample_size == parts.pipeline.unet.config.sample_size
    assert run.pipeline.vae_scale_factor == parts.pipeline.vae_scale_factor
    rows, uniform = torch.arange(3), torch.rand(3, 2)
    built, trained = (each.read(rows, uniform) for each in (run.features, parts.training_set))
    assert {n: (each.shape, each.dtype) for n, each in built.items()} == {
        n: (each.shape, each.dtype) for n, each in trained.items()
    }


def test_live_captions_cost_work_and_no_disk_and_a_trained_text_encoder_costs_more_of_both_memory_and_work(toy_parts):
    texts = {"kept": {}, "live": {"keep_features": False}, "trained": {"is_trained": True}}
    captions, work, parameters, peak = {}, {}, {}, {}
    for name, text in texts.items():
        recipe = toy_recipe(toy_parts, text=text, unet={"widths": [32]})
        with fake_run(recipe) as run:
            captions[name], work[name] = count_disk(run, recipe, None).caption, step_tflop(run, recipe)
            parameters[name] = count_parameters(run)
            if name != "kept":
                peak[name] = count_memory(run, recipe, CPU).peak
    assert captions["kept"] > captions["live"] == captions["trained"] == 0
    assert "captions" not in work["kept"]
    assert work["trained"]["captions"] > 2 * work["live"]["captions"] > 0
    assert parameters["trained"].trained == parameters["live"].trained + parameters["live"].parts["text_encoder"]
    assert peak["trained"] > peak["live"]


def test_images_kept_without_mirror_images_take_half(bases, toy_parts):
    sizes = []
    for flip in ("both", "none"):
        recipe = base_recipe(toy_parts, bases, "sd1", "clip_1", views={"flip": flip})
        with fake_run(recipe) as models:
            sizes.append(count_disk(models, recipe, None).image)
    assert sizes[0] == 2 * sizes[1]


def test_the_kept_layer_of_a_2_x_is_no_new_weight(bases, toy_parts):
    with fake_run(base_recipe(toy_parts, bases, "sd2", "clip_2")) as run:
        told = count_parameters(run)
    assert sum(told.new.values()) < told.parts["query_stream"]
    assert told.trained == told.parts["unet"] + sum(told.new.values())


def test_the_paper_s_recipe_is_estimated_without_a_file():
    recipe = load_recipe(DiffDisRecipe, "diffdis-cc3m", ["loop.batch_size=2"])
    assert (recipe.base.source, recipe.text.source) == (PAPER_BASE, PAPER_CLIP)
    with fake_run(recipe) as models:
        assert sum(weight.numel() for weight in models.objective.unet.parameters()) == 859_520_964
        encoder = models.pipeline.caption_encoder
        assert models.objective.unet.config.cross_attention_dim == encoder.d_c == encoder.d_e == 768
        assert models.pipeline.unet.config.sample_size * models.pipeline.vae_scale_factor == 256
        assert count_disk(models, recipe, 10).total == 10 * 2 * 4 * 32 * 32 * 2


def test_a_base_that_is_missing_is_named(tmp_path, bases):
    def build(base, **text):
        sections = {"base": {"source": str(base)}, "text": text, "query_stream": STREAM}
        return build_models(ModelRecipe.model_validate(sections), 0, with_weights=False)

    clip = str(bases / "clip_1")
    with pytest.raises(FileNotFoundError, match=r"No configs of `nobody/nothing`: it is not a folder"):
        build("nobody/nothing", source=clip)
    with pytest.raises(ValueError, match=r"`text\.source` is missing, and .* is no palindiff checkpoint here"):
        build(bases / "sd1")
    folder = shutil.copytree(bases / "sd1", tmp_path / "sd1")
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no unet/config\.json"):
        build(folder, source=clip)


def test_a_single_file_is_built_from_its_configs_alone(bases, toy_parts):
    recipe = base_recipe(toy_parts, bases, "absent.safetensors", "clip_2", base={"config": str(bases / "sd2")})
    with fake_run(recipe) as models:
        assert models.objective.query_stream.config.clip_projection_settings["num_layers"] == 1


def test_sharding_an_average_elsewhere_and_8_bit_moments_lower_what_a_card_holds(toy_parts):
    recipe = toy_recipe(toy_parts)

    def held(recipe):
        with fake_run(recipe) as run:
            return count_held(run, recipe, Hardware(processes=2))

    def changed(section, **values):
        update = {section: getattr(recipe, section).model_copy(update=values)}
        return held(recipe.model_copy(update=update))

    whole, shared = held(recipe), changed("machine", sharding="fsdp")
    for name in ("weights", "gradients", "optimizer", "ema"):
        assert shared[name] == whole[name] // 2
    assert changed("machine", ema_device="cpu")["ema"] == 0
    assert 0.25 < changed("optimizer", kind="adamw_8bit")["optimizer"] / whole["optimizer"] < 0.26


# ---- from scratch


SCRATCH_VARIANTS = {
    "as it is": {},
    "joint": {"query_stream": {"fusion": "joint"}},
    "no text diffusion": {"query_stream": {"text_chain": "none"}},
    "naming alone": {"objective": {"task": "alignment"}},
    "other views": {"views": {"crops": 2, "flip": "naming"}},
    "checkpointing": {"machine": {"gradient_checkpointing": True}},
}


def kinds(tensors):
    return {name: (tuple(each.shape[1:]), each.dtype) for name, each in tensors.items()}


@pytest.mark.parametrize("variant", SCRATCH_VARIANTS)
@pytest.mark.parametrize("encoder", ["encoder", "clip"])
def test_a_weight_free_run_from_scratch_is_what_training_prepares(variant, encoder, toy_parts, tmp_path):
    source = write_clip(tmp_path / "clip") if encoder == "clip" else toy_parts / encoder
    recipe = toy_recipe(toy_parts, text={"source": str(source)}, **SCRATCH_VARIANTS[variant])
    parts = prepare_toy(recipe, tmp_path)
    run = weight_free_run(recipe)
    for built, trained in ((run.objective, parts.objective), (run.pipeline.vae, parts.pipeline.vae)):
        assert [(name, weight.shape, weight.requires_grad) for name, weight in built.named_parameters()] == [
            (name, weight.shape, weight.requires_grad) for name, weight in trained.named_parameters()
        ]
    assert {name: each.shape for name, each in run.objective.named_buffers()} == {
        name: each.shape for name, each in parts.objective.named_buffers()
    }
    assert run.objective.unet.is_gradient_checkpointing == parts.pipeline.unet.is_gradient_checkpointing
    assert run.objective.scheduler.config == parts.objective.scheduler.config
    assert run.pipeline.unet.config.sample_size * run.pipeline.vae_scale_factor == 16
    rows, uniform = torch.arange(3), torch.rand(3, 2)
    assert kinds(run.features.read(rows, uniform)) == kinds(parts.training_set.read(rows, uniform))


def test_a_fake_run_needs_no_data_and_takes_no_memory(toy_parts):
    recipe = toy_recipe(toy_parts, data={"path": "nowhere"})
    with FakeTensorMode(allow_non_fake_inputs=True):
        run = weight_free_run(recipe)
    modules = (run.objective, run.pipeline.vae, run.pipeline.text_encoder)
    assert all(isinstance(weight, FakeTensor) for module in modules for weight in module.parameters())


def test_the_bundled_vae_is_built_from_its_config():
    built, loaded = load_vae("bundled", with_weights=False), bundled_vae()
    assert {name: value for name, value in loaded.config.items() if name != "_name_or_path"} == dict(built.config)
