"""report.py: the page holds what the result files hold, and nothing where there is none."""

import json

import pytest

from palindiff.experiments.reproduction import report
from palindiff.experiments.reproduction.plan import load_plan
from toys.by_path import ROOT


@pytest.fixture
def results(tmp_path):
    """Write a result file of a target at the scale emoji."""

    def write(target, rows, unfinished=()):
        tree = json.loads((ROOT / "results" / "ranks.json").read_text())
        tree |= {"rows": rows, "settings": {"unfinished": list(unfinished)}}
        (tmp_path / f"{target}-emoji.json").write_text(json.dumps(tree))
        return tmp_path

    return write


def mean(label, metric, value, **row):
    return {"row": label, "seed": None, "data": "unseen", "metric": metric, "value": value, "ci_low": None,
            "ci_high": None, "lowest": value - 0.01, "highest": value + 0.01, "num_seeds": 3, **row}  # fmt: skip


def lines(text, start):
    return [line for line in text.splitlines() if line.startswith(f"| {start}")]


def test_a_table_shows_the_paper_s_numbers_and_ours_with_intervals(results):
    rows = [
        mean("both", "recall", 0.321, ci_low=0.3, ci_high=0.34),
        mean("both", "kd_efflite0", 0.0123, data="unseen 1024"),
        mean("discriminate only", "recall", 0.25),
        {**mean("both", "recall", 0.99), "seed": 0},  # of one seed: not shown
    ]
    text = report.page(results("table4", rows, ["both-seed2"]))
    (both,) = lines(text, "both")
    assert "12.96" in both
    assert "32.1 (30.0 to 34.0)" in both
    assert "0.0123 (0.0023 to 0.0223)" in both
    assert both.endswith("| 3 |")
    (one,) = lines(text, "discriminate only |")
    assert "25.0 (24.0 to 26.0)" in one
    assert "Not run: both-seed2." in text
    assert "99.0" not in text


def test_a_claim_that_was_not_judged_is_listed_as_not_run(results):
    judged = {
        "claim": "P1", "budget": "steps", "metric": "recall", "difference": 1.234, "judged_low": 0.5,
        "judged_high": 2.0, "num_seeds": 3, "verdict": "holds here",
    }  # fmt: skip
    first, second = lines(report.page(results("claims", [judged])), "P1")
    assert first.endswith("| equal steps | 1.23 points | 0.50 to 2.00 | 3 | holds here |")
    assert second.endswith("| not run |")


def test_without_results_every_table_says_not_run(tmp_path):
    text = report.page(tmp_path)
    assert text.count("Not run.") == sum(len(load_plan(scale).tables) for scale in ("emoji", "paper", "photos"))


def test_the_page_in_the_repository_is_what_the_results_say():
    page = (ROOT / report.PAGE).read_text(encoding="utf-8")
    assert page == report.page(ROOT / "results"), "run python -m palindiff.experiments.reproduction.report"
