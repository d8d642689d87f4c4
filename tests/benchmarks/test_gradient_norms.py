"""benchmarks/gradient_norms.py: the norms of a toy run, and what a summary says of them."""

import pytest

from palindiff.training.loop.run_log import read_log
from toys.by_path import load_by_path
from toys.recipe import toy_recipe, train_toy_recipe

gradient_norms = load_by_path("benchmarks/gradient_norms.py")


def test_norms_are_of_the_steps_that_training_makes(toy_parts, tmp_path):
    recipe = toy_recipe(toy_parts, loop={"num_steps": 6})
    rows = gradient_norms.measure(recipe, tmp_path / "measured", every=2)
    assert [row["step"] for row in rows] == [1, 3, 5]
    assert all(row["generation"] > 0 and row["alignment"] > 0 for row in rows)
    train_toy_recipe(recipe, tmp_path / "trained")
    logged = read_log(tmp_path / "trained" / "log.jsonl")
    norms = {line["step"]: line["gradient_norm"] for line in logged if "gradient_norm" in line}
    assert [row["common"] for row in rows] == [pytest.approx(norms[row["step"]], rel=1e-5) for row in rows]


def test_a_summary_says_who_is_rescaled():
    rows = [{"step": step, "generation": 0.5, "alignment": 4.0, "common": 4.0} for step in range(1, 10)]
    found = gradient_norms.summary(rows, 1.0)
    first = {row["gradient"]: row for row in found[:3]}
    assert first["generation"]["rescaled_by_the_other"] == 0.25
    assert first["alignment"]["rescaled_by_the_other"] == first["common"]["share_clipped"] == 1
    assert [row["last_step"] for row in found[::3]] == [3, 6, 9]
