"""Starting from a base: Stable Diffusion of both kinds or a palindiff checkpoint, whole, in part, at another size."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from pydantic import ValidationError
from safetensors.torch import load_file

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.training.cost.flops import step_tflop
from palindiff.training.cost.weight_free import fake_run
from palindiff.training.loop.checkpoint import saved_states
from palindiff.training.recipes.build_models import ModelRecipe, build_models, training_scheduler
from palindiff.training.recipes.schema import DiffDisRecipe
from toys.recipe import recipe_tree, toy_recipe, train_toy_recipe
from toys.run import one_thread
from toys.stable_diffusion import write_clip_of, write_sd1, write_sd2

STREAM = {"num_head_layers": 1, "head_width": 16, "head_dim": 8, "gamma": 1.0}
WRITERS = {1: write_sd1, 2: write_sd2}


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folder of both Stable Diffusions and their CLIPs."""
    root = tmp_path_factory.mktemp("bases")
    for version, write in WRITERS.items():
        write_clip_of(root, version)
        write(root)
    return root


def base_sections(bases, version=1, **base):
    return {
        "base": {"source": str(bases / f"sd{version}"), **base},
        "text": {"source": str(bases / f"clip_{version}")},
        "vae": None,
        "unet": None,
        "scheduler": None,
        "query_stream": STREAM,
    }


def model_recipe(bases, version=1, **base):
    return ModelRecipe.model_validate(base_sections(bases, version, **base))


def equal_weights(module, other):
    ours, theirs = module.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("version", [1, 2])
def test_a_base_brings_every_part_but_the_query_stream(version, bases):
    pipeline = build_models(model_recipe(bases, version), seed=0)
    stock = StableDiffusionPipeline.from_pretrained(bases / f"sd{version}")
    for part in ("unet", "vae", "text_encoder"):
        assert equal_weights(getattr(pipeline, part), getattr(stock, part))
    assert pipeline.scheduler.config == stock.scheduler.config
    assert pipeline.query_stream.config.gamma == 1
    assert pipeline.caption_encoder.has_missing_layers == (version == 2)
    assert not any(weight.requires_grad for weight in pipeline.vae.parameters())


def test_the_seed_draws_the_query_stream_and_nothing_of_the_base(bases):
    one, same, other = (build_models(model_recipe(bases), seed) for seed in (0, 0, 1))
    assert equal_weights(one.query_stream, same.query_stream)
    assert not equal_weights(one.query_stream, other.query_stream)
    assert equal_weights(one.unet, other.unet)


def test_a_random_unet_has_the_base_s_layout_and_new_weights(bases):
    base, random = (build_models(model_recipe(bases, unet_weights=w), seed=0) for w in ("base", "random"))
    assert random.unet.config.items() >= {k: v for k, v in base.unet.config.items() if k[0] != "_"}.items()
    before, after = base.unet.state_dict(), random.unet.state_dict()
    moved = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    assert len(moved) > 0.9 * len(before)


def test_training_takes_another_image_size_and_the_checkpoint_keeps_it(bases, toy_parts, tmp_path):
    recipe = toy_recipe(toy_parts, **base_sections(bases, image_size_px=128), loop={"num_steps": 1})
    pipeline = train_toy_recipe(recipe, tmp_path)
    assert pipeline.unet.config.sample_size == 16
    assert PalindiffPipeline.from_pretrained(tmp_path / "checkpoint").unet.config.sample_size == 16
    with pytest.raises(ValueError, match=r"`base.image_size_px` is 100\. Expected a multiple of 64"):
        build_models(model_recipe(bases, image_size_px=100), seed=0)


@pytest.mark.parametrize("version", [1, 2])
def test_a_run_from_a_base_trains_both_parts_and_generates_the_same_in_stock_diffusers(
    version, bases, toy_parts, tmp_path
):
    recipe = toy_recipe(toy_parts, **base_sections(bases, version))
    start = build_models(recipe, recipe.loop.seed)
    pipeline = train_toy_recipe(recipe, tmp_path)
    for part in ("unet", "query_stream"):
        assert not equal_weights(getattr(pipeline, part), getattr(start, part))
    for part in ("vae", "text_encoder"):
        assert equal_weights(getattr(pipeline, part), getattr(start, part))
    stock, ours = (
        each.from_pretrained(tmp_path / "checkpoint") for each in (StableDiffusionPipeline, PalindiffPipeline)
    )
    generated = []
    for each in (stock, ours):
        each.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        generated.append(each("b", num_inference_steps=2, generator=generator, output_type="np").images)
    assert (generated[0] == generated[1]).all()


def test_a_palindiff_checkpoint_is_gone_on_from_with_all_its_weights(bases, toy_parts, tmp_path):
    made = PalindiffPipeline.from_stable_diffusion(
        bases / "sd2", bases / "clip_2", model_recipe(bases, 2).query_stream, seed=5
    )
    made.save_pretrained(tmp_path / "made")
    sections = base_sections(bases, 2, source=str(tmp_path / "made")) | {"text": {"source": None}}
    pipeline = build_models(ModelRecipe.model_validate(sections), seed=0)
    assert equal_weights(pipeline.query_stream, made.query_stream)
    trained = train_toy_recipe(toy_recipe(toy_parts, **sections, loop={"num_steps": 1}), tmp_path / "run")
    assert not equal_weights(trained.query_stream, made.query_stream)
    assert equal_weights(trained.query_stream.clip_projection, made.query_stream.clip_projection)


def test_a_checkpoint_with_another_query_stream_than_the_recipe_s_is_refused(bases, tmp_path):
    recipe = model_recipe(bases)
    PalindiffPipeline.from_stable_diffusion(bases / "sd1", bases / "clip_1", recipe.query_stream).save_pretrained(
        tmp_path / "made"
    )
    sections = base_sections(bases, source=str(tmp_path / "made")) | {"query_stream": {**STREAM, "gamma": 0.5}}
    with pytest.raises(ValueError, match=r"`query_stream\.gamma` is 1\.0 there and 0\.5 here\. Expected the same"):
        build_models(ModelRecipe.model_validate(sections), seed=0)


def test_a_new_query_stream_replaces_the_base_s_and_is_the_recipe_s(bases, tmp_path):
    made = PalindiffPipeline.from_stable_diffusion(bases / "sd1", bases / "clip_1", model_recipe(bases).query_stream)
    made.save_pretrained(tmp_path / "made")
    base = {"source": str(tmp_path / "made"), "query_stream": "new"}
    sections = base_sections(bases, **base) | {"text": {"source": None}, "query_stream": {**STREAM, "gamma": 0.5}}
    recipe = ModelRecipe.model_validate(sections | ZERO_SNR)
    first, again, other = (build_models(recipe, seed=seed) for seed in (1, 1, 2))
    assert first.query_stream.config.gamma == 0.5
    assert equal_weights(first.query_stream, again.query_stream)
    assert not equal_weights(first.query_stream, other.query_stream)
    assert equal_weights(first.query_stream.clip_projection, made.query_stream.clip_projection)
    assert equal_weights(first.unet, made.unet)
    assert first.query_scheduler.alphas_cumprod[-1] < 1e-6


ZERO_SNR = {"query_scheduler": {"rescale_betas_zero_snr": True}}


def test_the_text_diffusion_s_schedule_is_the_recipe_s_from_scratch_and_from_a_base(bases, toy_parts, tmp_path):
    for tree in (recipe_tree(toy_parts), recipe_tree(toy_parts, **base_sections(bases))):
        for sections, last in ((tree, 0.004), (tree | ZERO_SNR, 0)):
            scheduler = build_models(DiffDisRecipe.model_validate(sections), seed=0).query_scheduler
            assert scheduler.alphas_cumprod[-1].item() == pytest.approx(last, abs=1e-3 * bool(last))
    made = build_models(DiffDisRecipe.model_validate(tree | ZERO_SNR), seed=0)
    made.save_pretrained(tmp_path / "made")
    sections = tree | {"base": {"source": str(tmp_path / "made")}, "text": {"source": None}}
    assert (
        build_models(DiffDisRecipe.model_validate(sections | ZERO_SNR), seed=0).query_scheduler.alphas_cumprod[-1] == 0
    )
    with pytest.raises(ValueError, match=r"`query_scheduler\.rescale_betas_zero_snr` is True there and False here"):
        build_models(DiffDisRecipe.model_validate(sections), seed=0)


def test_captions_encoded_at_each_step_have_no_second_caption(toy_parts):
    for text in ({"is_trained": True}, {"keep_features": False}):
        with pytest.raises(
            ValidationError, match=r"`objective\.query_caption` is 'any' .* `text\.keep_features: true`"
        ):
            toy_recipe(toy_parts, text=text, objective={"query_caption": "any"})


def test_a_chain_of_every_new_setting_trains_saves_and_is_estimated(toy_parts, tmp_path):
    stream = {"num_head_layers": 1, "head_width": 16, "head_dim": 8, "gamma": 0.5}
    recipe = toy_recipe(
        toy_parts,
        query_stream=stream | {"query_scale": "sqrt_d", "query_input": "normalised"},
        objective={"task": "alignment", "t_e_power": 4, "query_caption": "any"},
        **ZERO_SNR,
    )
    trained = train_toy_recipe(recipe, tmp_path)
    loaded = PalindiffPipeline.from_pretrained(tmp_path / "checkpoint")
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.encode_image(z, 2), trained.encode_image(z, 2))
    assert loaded.query_scheduler.alphas_cumprod[-1] == 0
    with fake_run(recipe) as run:
        assert step_tflop(run, recipe)["alignment"] > 0


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"unet": {"widths": [32]}}, "`unet` found together with `base`"),
        ({"vae": "bundled", "scheduler": {}}, "`vae` and `scheduler` found together with `base`"),
        ({"base": None}, "`vae` and `unet` and `scheduler` found empty without a `base`"),
    ],
)
def test_a_recipe_has_one_origin(changed, told, bases):
    with pytest.raises(ValidationError, match=told):
        ModelRecipe.model_validate(base_sections(bases) | changed)


def test_a_recipe_from_scratch_needs_a_text_encoder(toy_parts):
    with pytest.raises(ValidationError, match=r"`text\.source` missing"):
        toy_recipe(toy_parts, text={"source": None})


def test_a_stable_diffusion_needs_its_clip_and_takes_no_other_length(bases):
    sections = base_sections(bases)
    with pytest.raises(ValueError, match=r"`text\.source` is missing, and .* is no palindiff checkpoint here"):
        build_models(ModelRecipe.model_validate(sections | {"text": {}}), seed=0)
    sections["text"] |= {"max_length": 5}
    with pytest.raises(ValueError, match=r"`text\.max_length` is 5 together with `base`"):
        build_models(ModelRecipe.model_validate(sections), seed=0)


def test_any_generation_scheduler_s_noise_can_be_learned(bases):
    """PNDM has no velocity and Euler adds noise on another scale; the noise schedule of training is one all the "
    "same."""
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler

    pndm = StableDiffusionPipeline.from_pretrained(bases / "sd1").scheduler
    assert isinstance(pndm, PNDMScheduler)
    for other in (pndm, EulerDiscreteScheduler.from_config(pndm.config), DDIMScheduler.from_config(pndm.config)):
        assert torch.equal(training_scheduler(other).alphas_cumprod, pndm.alphas_cumprod)


@pytest.mark.parametrize("is_trained", [False, True])
def test_captions_encoded_at_each_step_train_as_kept_features_do(is_trained, toy_parts, tmp_path):
    """A frozen encoder gives the same run, but for the rounding of kept features to half precision; a trained one "
    "moves."""
    kept = train_toy_recipe(toy_recipe(toy_parts), tmp_path / "kept")
    text = {"keep_features": False, "is_trained": is_trained}
    live = train_toy_recipe(toy_recipe(toy_parts, text=text), tmp_path / "live")
    start = build_models(toy_recipe(toy_parts), 0)
    assert equal_weights(live.text_encoder, start.text_encoder) != is_trained
    assert equal_weights(kept.text_encoder, start.text_encoder)
    if not is_trained:
        for part in ("unet", "query_stream"):
            ours, theirs = getattr(live, part).state_dict(), getattr(kept, part).state_dict()
            for name, weight in ours.items():
                torch.testing.assert_close(
                    weight, theirs[name], rtol=0, atol=5e-3
                )  # Adam's steps here are 1e-3 to 2e-3


def test_a_trained_text_encoder_is_resumed_averaged_and_saved(toy_parts, tmp_path):
    recipe = toy_recipe(toy_parts, text={"is_trained": True}, loop={"num_steps": 4, "save_every": 2})
    whole = train_toy_recipe(recipe, tmp_path / "whole")
    short = recipe.model_copy(update={"loop": recipe.loop.model_copy(update={"num_steps": 2})})
    train_toy_recipe(short, tmp_path / "halves")
    resumed = train_toy_recipe(recipe, tmp_path / "halves")
    assert equal_weights(whole.text_encoder, resumed.text_encoder)
    average = load_file(saved_states(tmp_path / "whole" / "state")[-1] / "ema.safetensors")
    loaded = PalindiffPipeline.from_pretrained(tmp_path / "whole" / "checkpoint")
    prefix = "caption_encoder.model."
    trained = {name.removeprefix(prefix): weight for name, weight in average.items() if name.startswith(prefix)}
    assert trained
    weights = loaded.text_encoder.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in trained.items())


def test_a_unet_from_scratch_takes_another_image_size_than_the_vae_s(toy_parts, tmp_path):
    unet = recipe_tree(toy_parts)["unet"]
    side = build_models(toy_recipe(toy_parts), seed=0).image_size_px
    recipe = toy_recipe(toy_parts, unet={**unet, "image_size_px": 2 * side}, loop={"num_steps": 1})
    train_toy_recipe(recipe, tmp_path)
    assert PalindiffPipeline.from_pretrained(tmp_path / "checkpoint").image_size_px == 2 * side
    with pytest.raises(ValueError, match=rf"`unet.image_size_px` is {side + 1}\. Expected a multiple of \d+, which"):
        build_models(toy_recipe(toy_parts, unet={**unet, "image_size_px": side + 1}), seed=0)


def test_recipes_from_scratch_stay_as_they_were(toy_parts):
    tree = recipe_tree(toy_parts)
    assert "base" not in tree
    assert toy_recipe(toy_parts).base is None


def base_with(bases, folder, part, **changes):
    """A copy of Stable Diffusion 1.x whose config of a part is changed; of the scheduler, also its class."""
    shutil.copytree(bases / "sd1", folder)
    if kind := changes.pop("kind", None):
        index = json.loads((folder / "model_index.json").read_text())
        index[part][1] = kind
        (folder / "model_index.json").write_text(json.dumps(index))
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return model_recipe(bases, source=str(folder))


@pytest.mark.parametrize("with_weights", [True, False])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "FlowMatchEulerDiscreteScheduler"}, "the scheduler FlowMatchEulerDiscreteScheduler"),
        ({"kind": "EDMEulerScheduler"}, "the scheduler EDMEulerScheduler"),
        ({"kind": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, ".* with `use_flow_sigmas`"),
        ({"prediction_type": "sample"}, "`prediction_type` 'sample'"),
    ],
)
def test_a_base_that_diffuses_in_another_way_is_refused(changes, told, with_weights, bases, tmp_path):
    recipe = base_with(bases, tmp_path / "sd", "scheduler", **changes)
    with pytest.raises(ValueError, match=rf"has {told}.*Start from another base"):
        build_models(recipe, seed=0, with_weights=with_weights)


@pytest.mark.parametrize("noise", [{"rescale_betas_zero_snr": True}, {"trained_betas": [0.1] * 999 + [1.0]}])
def test_predicting_noise_where_nothing_else_is_left_is_refused(noise, bases, tmp_path):
    changes = {"kind": "DDIMScheduler", "prediction_type": "epsilon", **noise}
    recipe = base_with(bases, tmp_path / "sd", "scheduler", **changes)
    with pytest.raises(ValueError, match=r"'epsilon' with a noise schedule that ends in pure noise.*'v_prediction'"):
        build_models(recipe, seed=0)
    build_models(
        base_with(bases, tmp_path / "v", "scheduler", **changes | {"prediction_type": "v_prediction"}), seed=0
    )


def latent_side(bases):
    return json.loads((bases / "sd1" / "unet" / "config.json").read_text())["sample_size"]


@pytest.mark.parametrize("is_stated", [True, False])
def test_a_unet_may_state_its_latents_as_a_list_or_not_at_all(is_stated, bases, tmp_path):
    recipe = base_with(bases, tmp_path / "sd", "unet", sample_size=[latent_side(bases)] * 2 if is_stated else None)
    pipelines = [build_models(each, seed=0) for each in (model_recipe(bases), recipe)]
    assert pipelines[0].image_size_px == pipelines[1].image_size_px
    options = {"num_inference_steps": 1, "output_type": "np"}
    images = [each("a cat", generator=torch.manual_seed(0), **options).images for each in pipelines]
    assert (images[0] == images[1]).all()
    assert build_models(recipe, seed=0, with_weights=False).image_size_px == pipelines[0].image_size_px


def test_a_unet_that_states_its_latents_as_a_list_trains_and_is_estimated(bases, toy_parts, tmp_path):
    side = latent_side(bases)
    base_with(bases, tmp_path / "sd", "unet", sample_size=[side, side])
    recipe = toy_recipe(toy_parts, **base_sections(bases, source=str(tmp_path / "sd")))
    train_toy_recipe(recipe, tmp_path / "run")
    with fake_run(recipe) as run:
        assert run.features.row["z_mean"].shape[-1] == side
