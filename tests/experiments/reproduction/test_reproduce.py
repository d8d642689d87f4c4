"""reproduce.py and model_runs.py: what a table needs is trained once, measured, and written row by row."""

import json

import pytest

from palindiff.evaluation.results import read_results
from palindiff.experiments.reproduction.reproduce import ReproduceOptions, Reproduction
from palindiff.training.loop.run_log import read_log


@pytest.fixture
def reproduction(parts, plan_tree, write_plan, tmp_path):
    """Make a reproduction of a target, with changes of the plan."""

    def make(target, change=lambda tree: None, **options):
        change(plan_tree)
        given = {"data": parts, "runs": tmp_path / "runs", "results": tmp_path / f"{target}.json", **options}
        said = []
        made = Reproduction(ReproduceOptions(target, write_plan(plan_tree), **given), said.append)
        made.said = said
        return made

    return make


def few_rows(tree):
    """Two variants with one seed each."""
    tree["seeds"] = [0]


def test_a_table_has_the_paper_s_numbers_beside_ours_for_each_seed(reproduction, tmp_path):
    rows = reproduction("table4").run("a command")
    assert {(row["row"], row["seed"]) for row in rows} == {
        (label, seed) for label in ("discriminate only", "both") for seed in (0, 1)
    }
    of_both = [row for row in rows if row["row"] == "both" and row["seed"] == 1]
    assert {row["paper_ImageNet"] for row in of_both} == {12.96}
    assert {row["metric"] for row in of_both} >= {"text_retrieval_recall@3", "recall", "acc1", "kd_efflite0"}
    assert not any(row["metric"] == "kd_efflite0" for row in rows if row["row"] == "discriminate only")
    assert all(row["steps"] == 2 and row["train_tflop"] > 0 for row in rows)
    found = read_results(tmp_path / "table4.json")
    assert found.rows == rows
    assert found.settings["unfinished"] == []
