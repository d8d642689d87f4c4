"""`palindiff reproduce`: the plan of a table, its result file, and bad input in one sentence."""

import json

import pytest

from palindiff.evaluation.results import read_results
from toys.plan import toy_plan, write_plan_parts


@pytest.fixture
def run(palindiff, tmp_path, monkeypatch):
    """Run the command on a toy plan, with --data and --runs set."""
    parts = write_plan_parts(tmp_path / "parts")
    tree = toy_plan(parts) | {"seeds": [0], "hours": {"both": 1.5}}
    (tmp_path / "toy.yaml").write_text(json.dumps(tree))
    monkeypatch.chdir(tmp_path)
    return lambda *given: palindiff("reproduce", *given, "--scale", "toy.yaml", "--data", parts)


def test_a_dry_run_lists_every_run_with_steps_cost_and_hours(run, tmp_path):
    code, out, err = run("table5", "--dry-run")
    assert code == 0, err
    assert "both-seed0" in out
    assert "1.50" in out
    assert out.count("not known") >= 2  # the cost of what starts from a model that is not trained
    assert "2 runs, 1.5 hours" in out
    assert not (tmp_path / "runs").exists()


def test_a_table_is_written_to_the_results_folder_and_rerun_for_nothing(run, tmp_path):
    code, out, err = run("table8", "--set", "machine.num_threads=1")
    assert code == 0, err
    assert "both-seed0: training 2 steps" in out
    assert "written: results/table8-toy.json" in out
    rows = read_results(tmp_path / "results" / "table8-toy.json").rows
    assert {row["row"] for row in rows} == {"1", "2"}
    assert (tmp_path / "runs" / "toy" / "both-seed0" / "checkpoint").is_dir()
    code, out, _ = run("table8", "--set", "machine.num_threads=1")
    assert code == 0
    assert "training" not in out


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ["table42"],
            "The scale has no `table42`. Expected one of table4, table8, table5, claims, controls. Use one.",
        ),
        (["table8", "--set", "loop.colour=red"], "loop.colour"),
    ],
)
def test_bad_input_is_one_sentence(given, sentence, run):
    code, _, err = run(*given)
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err


def test_an_unknown_scale_is_one_sentence(palindiff):
    code, _, err = palindiff("reproduce", "table4", "--scale", "huge")
    assert code == 2
    assert "There is no scale `huge`. Expected one of emoji, paper, photos" in err
