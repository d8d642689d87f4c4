"""flops.py: layers and denoising by hand, and what a step and denoising cost more or less of."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from palindiff.training.cost.flops import (
    Work,
    contrastive_step_tflop,
    count_tflop,
    naming_tflop,
    step_tflop,
    unidiff_step_tflop,
)
from palindiff.training.cost.weight_free import fake_run, fake_unidiff
from palindiff.training.recipes.schema import ContrastiveRecipe, DiffDisRecipe
from palindiff.training.recipes.yaml_files import load_recipe
from toys.contrastive import contrastive_recipe
from toys.recipe import toy_recipe
from toys.text_encoders import LENGTH, QUERY_WIDTH, WIDTH
from toys.unidiff import unidiff_recipe


def naming(root, **sections):
    """Count once for all tests, as `step` does."""
    return _naming(toy_recipe(root, **sections).model_dump_json())


@functools.cache
def _naming(recipe):
    recipe = DiffDisRecipe.model_validate_json(recipe)
    with fake_run(recipe) as models:
        return naming_tflop(models, recipe.evaluation)


def step(root, **sections):
    """Count once for all tests: it takes seconds."""
    return _step(toy_recipe(root, **sections).model_dump_json())


@functools.cache
def _step(recipe):
    recipe = DiffDisRecipe.model_validate_json(recipe)
    with fake_run(recipe) as models:
        return step_tflop(models, recipe)


def test_a_layer_s_work_is_that_by_hand():
    x, linear, convolution = torch.zeros(2, 5, 8, 8), nn.Linear(8, 3), nn.Conv2d(5, 7, 3, padding=1)
    assert count_tflop(lambda: linear(x)) * 1e12 == 2 * (2 * 5 * 8) * 8 * 3
    assert count_tflop(lambda: convolution(x)) * 1e12 == 2 * (2 * 8 * 8) * 7 * 5 * 3 * 3
    assert count_tflop(lambda: F.scaled_dot_product_attention(x, x, x)) * 1e12 == 2 * (2 * 5) * (8 * 8 * 8) * 2
    weight_gradient = 2 * (2 * 8 * 8) * 7 * 5 * 3 * 3  # none for x, which asks for none
    assert count_tflop(lambda: convolution(x).sum().backward()) * 1e12 == 2 * weight_gradient


def test_the_work_of_denoising_is_that_by_hand(toy_parts):
    """One token through time embedding, three sites of one block, one head layer; see `toy_recipe.recipe_tree`."""
    steps = 2
    d_e, ch, width = 32, 32, 16
    num_tokens = (64, 16, 16)  # of the image at each site: 8 x 8 latents, halved once
    time = 2 * (2 * d_e * d_e)

    def block(width, n):
        """Projections to q, k, v and out, attention over image and query, a FFN with a gate."""
        return 4 * 2 * width**2 + 2 * 2 * (n + 1) * width + 2 * (width * 8 * width + 4 * width * width)

    sites = sum(2 * d_e * ch + block(ch, n) + 2 * ch * d_e for n in num_tokens)
    head = 2 * d_e * width + block(width, num_tokens[-1]) + 2 * width * d_e
    denoising = naming(toy_parts, evaluation={"naming_steps": steps})["denoising"]
    assert denoising * 1e12 == pytest.approx(steps * (time + sites + head), rel=1e-9)


def test_steps_and_guidance_cost_passes_and_one_way_reads_once(toy_parts):
    def work(fusion, steps, scale, **more):
        evaluation = {"naming_steps": steps, "naming_guidance_scale": scale}
        return naming(toy_parts, evaluation=evaluation, query_stream={"fusion": fusion} | more)

    one_way, joint = work("one_way", 2, 1.0), work("joint", 2, 1.0)
    assert work("one_way", 4, 3.0)["denoising"] == pytest.approx(4 * one_way["denoising"])
    assert work("one_way", 4, 3.0)["reading"] == one_way["reading"] > 0
    assert joint["reading"] == 0
    assert joint["denoising"] > 2 * one_way["reading"]  # the encoder half anew at each step
    assert work("joint", 4, 3.0)["denoising"] == pytest.approx(4 * joint["denoising"])
    assert joint["VAE"] == one_way["VAE"]
    single = work("joint", 8, 3.0, text_chain="none")["denoising"]  # two passes, guided, without the time embedding
    assert single == pytest.approx(joint["denoising"], rel=0.01)


def test_a_step_s_work_follows_its_rows_alone(toy_parts):
    four = step(toy_parts, unet={"widths": [32]}, machine={"precision": "bf16"})
    eight = step(toy_parts, unet={"widths": [32]}, loop={"num_steps": 2, "batch_size": 8, "accumulation": 2})
    assert eight == pytest.approx({name: 2 * tflop for name, tflop in four.items()})


def test_checkpointing_computes_forward_twice(toy_parts):
    """Forward, and backward of twice its work; not quite all of forward lies in blocks that are computed again."""
    without, again = (step(toy_parts, machine={"gradient_checkpointing": is_on}) for is_on in (False, True))
    assert 1.1 < again["generation"] / without["generation"] < 4 / 3


def test_a_gradient_cache_computes_forward_twice_unless_one_chunk_holds_all_rows(toy_parts):
    without, cached, one_chunk = (
        step(toy_parts, loop={"num_steps": 2, "batch_size": 4, "grad_cache_size": size}) for size in (0, 2, 4)
    )
    assert one_chunk == without
    for task, work in without.items():
        assert 1.3 < cached[task] / work < 1.35  # backward of twice forward's work, less what no gradient needs


@pytest.mark.parametrize(("task", "names"), [("generation", ["generation"]), ("alignment", ["alignment"])])
def test_a_task_alone_costs_its_own_work(task, names, toy_parts):
    alone, both = step(toy_parts, objective={"task": task}), step(toy_parts)
    assert list(alone) == names
    assert alone[names[0]] == pytest.approx(both[names[0]], rel=0.05)  # a little of the other's is not trained


def test_whole_work_is_the_sum():
    work = Work(step={"generation": 3.0, "alignment": 1.0}, named_image={"reading": 2.0, "denoising": 0.5})
    assert (work.whole_step, work.whole_named_image) == (4.0, 2.5)
    assert work.model_dump()["whole_step"] == 4.0


def forward_flop(tokens, width, layers, ffn, projected_to):
    """A transformer on one row: q, k, v, out; attention; feed-forward; the projection of one token."""
    layer = 4 * 2 * tokens * width**2 + 2 * 2 * tokens**2 * width + 2 * 2 * tokens * width * ffn
    return layers * layer + 2 * width * projected_to


def test_the_work_of_a_contrastive_step_is_that_by_hand(toy_parts, encoder_folder):
    """Backward twice the forward, but for the patches, whose pixels need no gradient. 12 tokens of text, 4 patches."""
    recipe = contrastive_recipe(toy_parts, encoder_folder / "clip", text={"is_trained": True})
    patches = 2 * 4 * (3 * 8 * 8) * 16
    image = 3 * forward_flop(5, 16, 2, 64, QUERY_WIDTH) + 2 * patches
    text = 3 * forward_flop(LENGTH, WIDTH, 2, 48, QUERY_WIDTH)
    work = contrastive_step_tflop(recipe)
    assert {name: round(each * 1e12) for name, each in work.items()} == {
        "image encoder": 4 * image,
        "text encoder": 4 * text,
    }


def test_a_frozen_text_encoder_costs_a_forward_or_nothing(toy_parts, encoder_folder):
    found = [
        contrastive_step_tflop(contrastive_recipe(toy_parts, encoder_folder / "clip", text=text)).get("text encoder")
        for text in ({"is_trained": True}, {"keep_features": False}, {})
    ]
    assert found[0] == pytest.approx(3 * found[1])
    assert found[2] is None


def test_the_emoji_rival_costs_what_naming_alone_costs():
    """The protocol's P3: an image encoder of equal FLOP a step."""
    emoji = load_recipe(DiffDisRecipe, "emoji", ["objective.task=alignment"])
    with fake_run(emoji) as models:
        alignment = sum(step_tflop(models, emoji).values())
    rival = load_recipe(ContrastiveRecipe, "clip-emoji")
    assert sum(contrastive_step_tflop(rival).values()) == pytest.approx(alignment, rel=0.05)
    for name in ("batch_size", "num_steps", "ema_decay"):
        assert getattr(rival.loop, name) == getattr(emoji.loop, name)
    assert (rival.views, rival.text, rival.data) == (emoji.views, emoji.text, emoji.data)


def test_the_work_of_unidiff_is_that_of_its_losses(toy_parts, stable_diffusion):
    """Consistency encodes nothing more; twice the rows are twice the work, but for the empty caption."""

    def work(loop=None, **objective):
        off = {"contrastive_weight": 0, "generation_weight": 0, "consistency_weight": 0}
        recipe = unidiff_recipe(toy_parts, stable_diffusion, objective=off | objective, loop=loop or {})
        with fake_unidiff(recipe) as run:
            return unidiff_step_tflop(run, recipe)

    contrastive, generation = work(contrastive_weight=1), work(generation_weight=1)
    both = work(contrastive_weight=1, generation_weight=1)
    assert max(contrastive, generation) < both
    assert both == pytest.approx(
        contrastive + generation, rel=0.1
    )  # alone, generation does not train the text encoder
    relational = work(contrastive_weight=1, generation_weight=1, consistency_weight=1, consistency="relational")
    assert relational == pytest.approx(both, rel=1e-3)
    assert work({"batch_size": 8}, contrastive_weight=1) == pytest.approx(2 * contrastive, rel=1e-2)  # similarities
    cached = work({"grad_cache_size": 2}, contrastive_weight=1, generation_weight=1)
    assert 1.2 < cached / both < 1.4
