"""estimate.py: against a measured run, against counts by hand, and what must not change it or must change it so."""

import functools
import sys

import pytest
import yaml
from pydantic import ValidationError

from palindiff.models.vae import VaeConfig, build_vae
from palindiff.training.cost import estimate as cost
from palindiff.training.cost.estimate import Hardware, count_disk, count_memory, count_parameters, count_time, estimate
from palindiff.training.cost.flops import Work
from palindiff.training.cost.weight_free import fake_run
from palindiff.training.loop.device import computes_bf16
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.yaml_files import load_recipe
from palindiff.training.trainer import describe
from toys.measured_memory import measured_bytes
from toys.recipe import prepare_toy, recipe_tree, toy_recipe
from toys.text_encoders import write_clip

CPU = Hardware(device="cpu")
# Without such instructions bf16 is emulated, over ten times slower; test_memory.py counts bf16 on every processor.
BF16 = "bf16" if computes_bf16() else "fp32"


@pytest.fixture(scope="module")
def middling(toy_parts, tmp_path_factory):
    """A recipe whose tensors outweigh what an interpreter itself takes: latents of 3 x 16 x 16, 7 M parameters."""
    folder = tmp_path_factory.mktemp("middling")
    config = VaeConfig(widths=(8, 8), latent_channels=3, norm_groups=4, image_size_px=32)
    build_vae(config).save_pretrained(folder / "vae")
    tree = recipe_tree(
        toy_parts,
        vae=str(folder / "vae"),
        unet={"widths": [64, 128, 192], "head_dim": 32, "norm_groups": 32},
        query_stream={"num_head_layers": 2, "head_width": 128, "head_dim": 32},
        loop={"batch_size": 12},
        machine={"num_threads": 1},
    )
    (folder / "middling.yaml").write_text(yaml.safe_dump(tree))
    return tree, folder / "middling.yaml"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_memory_of_many_chunks_follows_from_that_of_a_few(precision, toy_parts, monkeypatch):
    """Four chunks of two rows, run and continued from two and three; similarities grow with the square of rows."""
    recipe = toy_recipe(toy_parts, loop={"batch_size": 8, "grad_cache_size": 2}, machine={"precision": precision})
    all_rows = toy_recipe(toy_parts, loop={"batch_size": 8}, machine={"precision": precision})
    with fake_run(recipe) as run:
        continued = count_memory(run, recipe, CPU)
        monkeypatch.setattr(cost, "MOST_CHUNKS", 4)
        whole = count_memory(run, recipe, CPU)
    with fake_run(all_rows) as run:
        at_once = count_memory(run, all_rows, CPU)
    assert continued.peak == pytest.approx(whole.peak, rel=1e-3)
    assert continued.activations == pytest.approx(whole.activations, rel=5e-3)
    assert whole.activations < 0.8 * at_once.activations


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's largest resident set from /proc")
@pytest.mark.parametrize(
    "changes",
    [
        ["machine.precision=fp32"],
        [f"machine.precision={BF16}", "machine.gradient_checkpointing=true", "query_stream.fusion=joint"],
    ],
    ids=["fp32", f"{BF16}, checkpointing, joint"],
)
def test_memory_is_that_of_a_measured_run(changes, middling):
    """15 % is what is promised."""
    _, file = middling
    recipe = load_recipe(DiffDisRecipe, str(file), changes)
    with fake_run(recipe) as run:
        assert count_memory(run, recipe, CPU).peak == pytest.approx(measured_bytes(file, changes), rel=0.15)


@pytest.mark.parametrize("task", ["both", "generation", "alignment"])
@pytest.mark.parametrize("encoder", ["encoder", "clip"])
def test_parameters_are_those_that_training_builds(task, encoder, toy_parts, tmp_path):
    source = write_clip(tmp_path / "clip") if encoder == "clip" else toy_parts / encoder
    recipe = toy_recipe(toy_parts, objective={"task": task}, text={"source": str(source)})
    parts = prepare_toy(recipe, tmp_path)
    with fake_run(recipe) as models:
        told = count_parameters(models)
    for name in ("unet", "query_stream", "vae", "text_encoder"):
        assert told.parts[name] == sum(weight.numel() for weight in getattr(parts.pipeline, name).parameters())
    groups = parts.objective.parameter_groups(1e-3, 2e-3)
    assert told.trained == sum(weight.numel() for group in groups for weight in group["params"])
    assert (told.trained == told.parts["unet"] + told.parts["query_stream"]) == (task == "both")
    assert sum(told.new.values()) == told.parts["query_stream"]
    assert list(told.new)[:3] == ["site 1, 32 wide", "site 2, 32 wide", "site 3, 32 wide"]
    expected = {"trained": told.trained, "training_bytes": 20 * told.trained, "steps": recipe.loop.num_steps}
    assert describe(recipe) == told.parts | expected


def test_what_is_held_follows_from_the_parameters(toy_parts):
    recipe = toy_recipe(toy_parts, objective={"task": "alignment"})
    with fake_run(recipe) as run:
        parameters, memory = count_parameters(run), count_memory(run, recipe, CPU)
    trained = parameters.trained
    assert [memory.weights, memory.gradients, memory.ema, memory.optimizer] == [4 * trained] * 3 + [8 * trained]
    assert memory.frozen == 4 * (sum(parameters.parts.values()) - trained)
    assert memory.peak < memory.weights + memory.gradients + memory.ema + memory.optimizer + memory.frozen + (
        memory.activations
    )


@pytest.fixture(scope="module")
def narrow(middling):
    """A recipe whose activations outweigh its weights."""
    more = {"unet": {"widths": [32], "head_dim": 16, "norm_groups": 8}}
    more["query_stream"] = {"num_head_layers": 1, "head_width": 16, "head_dim": 8}
    return middling[0] | more | {"machine": {}}


def memory_of(tree, processes=1, loop=None, **sections):
    """Count once for all tests: it takes seconds."""
    tree = tree | sections | {"loop": {"num_steps": 2, "batch_size": 4} | (loop or {})}
    return _memory_of(DiffDisRecipe.model_validate(tree).model_dump_json(), processes)


@functools.cache
def _memory_of(tree, processes):
    recipe = DiffDisRecipe.model_validate_json(tree)
    with fake_run(recipe) as models:
        return count_memory(models, recipe, Hardware(device="cpu", processes=processes))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_grow_by_the_same_with_each_row(precision, narrow):
    two, four, eight = (
        memory_of(narrow, loop={"batch_size": b}, machine={"precision": precision}).activations for b in (2, 4, 8)
    )
    assert eight - four == pytest.approx(2 * (four - two), rel=0.02)
    if precision == "fp32":  # in bf16 the weights' copies come once, whatever the batch
        assert eight == pytest.approx(2 * four, rel=0.02)


def test_checkpointing_saves_memory(narrow):
    without, with_it = (memory_of(narrow, machine={"gradient_checkpointing": is_on}) for is_on in (False, True))
    assert with_it.activations < 0.5 * without.activations
    assert with_it.peak < without.peak


def test_accumulation_and_processes_share_the_rows(narrow):
    whole = memory_of(narrow)
    parts, shared = memory_of(narrow, loop={"accumulation": 2}), memory_of(narrow, processes=2)
    assert parts.activations == pytest.approx(whole.activations / 2, rel=0.02)
    assert shared.activations == pytest.approx(parts.activations, rel=0.01)
    assert (whole.exchange, parts.exchange, shared.exchange) == (0, 0, shared.gradients)
    held = whole.weights + whole.optimizer + whole.ema + whole.frozen
    assert shared.peak == pytest.approx(held + shared.exchange + shared.activations, rel=0.02)
    assert parts.peak == pytest.approx(held + parts.gradients + parts.activations, rel=0.02)  # of the first part


def test_a_batch_that_processes_do_not_divide_is_refused(toy_parts):
    with pytest.raises(ValueError, match=r"`loop\.batch_size` is 4 with accumulation 1 and 3 processes"):
        estimate(toy_recipe(toy_parts), Hardware(processes=3))


@pytest.mark.parametrize("views", [{}, {"crops": 2}])
def test_disk_is_what_features_take(views, toy_parts, tmp_path):
    recipe = toy_recipe(toy_parts, views=views, machine={"cache_dir": str(tmp_path / "cache")})
    training_set = prepare_toy(recipe, tmp_path / "run").training_set
    with fake_run(recipe) as models:
        told, of_one = count_disk(models, recipe, 100), count_disk(models, recipe, None)
    assert told.image * len(training_set) == training_set.images.moments.nbytes
    assert told.caption * len(training_set.texts.row) == training_set.texts.c.nbytes + training_set.texts.e.nbytes
    assert (told.total, of_one.total) == (100 * (told.image + told.caption), None)


def test_time_is_work_over_throughput(toy_parts):
    recipe = toy_recipe(toy_parts, loop={"num_steps": 100, "batch_size": 8})
    work = Work(step={"generation": 3.0, "alignment": 1.0}, named_image={"VAE": 0.25})
    assert count_time(work, recipe, Hardware(processes=2)) is None
    time = count_time(work, recipe, Hardware(processes=2, device_tflops=0.5))
    assert time.model_dump() == {"step_s": 4, "hours": 400 / 3600, "images_per_s": 2, "named_images_per_s": 2}


@pytest.mark.parametrize("wrong", [{"processes": 0}, {"device_tflops": 0}, {"device": "tpu"}, {"devices": 2}])
def test_hardware_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValidationError):
        Hardware(**wrong)
