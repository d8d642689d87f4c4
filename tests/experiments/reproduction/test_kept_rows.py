"""kept_rows.py and planned.py: rows stay where the models are not here, if the plan still says the same of them."""

import shutil

import pytest

from palindiff.evaluation.results import read_results
from palindiff.experiments.reproduction import verdicts


def one_seed(tree):
    tree["seeds"] = [0]


def of_label(rows, label, key="row"):
    return [row for row in rows if row[key] == label]


def without_measuring(row):
    return {name: value for name, value in row.items() if name != "train_seconds"}


def test_a_row_stays_where_its_run_is_not_here_and_says_where_it_was_measured(reproduction, tmp_path):
    first = reproduction("table4", one_seed).run("the first command")
    shutil.rmtree(tmp_path / "runs" / "toy-plan" / "both-seed0")
    again = reproduction("table4", finished_only=True)
    rows = again.run("the second command")
    assert "both-seed0: not trained" in again.said
    assert rows == first
    found = read_results(tmp_path / "table4.json")
    assert (found.rows, found.command, found.settings["unfinished"]) == (rows, "the second command", [])
    kept = found.settings["kept"]
    assert list(kept) == ["both"]
    assert (kept["both"]["command"], kept["both"]["commit"]) == ("the first command", found.commit)
    reproduction("table4", finished_only=True).run("the third command")
    assert read_results(tmp_path / "table4.json").settings["kept"] == kept  # where it was measured, not last written


def test_a_call_that_trains_keeps_no_row(reproduction, tmp_path):
    reproduction("table4", one_seed).run("a command")
    shutil.rmtree(tmp_path / "runs" / "toy-plan" / "both-seed0")
    again = reproduction("table4")
    again.run("a command")
    assert "both-seed0: training 2 steps" in again.said
    assert "kept" not in read_results(tmp_path / "table4.json").settings


@pytest.mark.parametrize("changed", ["recipe", "images", "naming", "columns"])
def test_a_row_of_something_else_does_not_stay(reproduction, tmp_path, parts, changed):
    data = shutil.copytree(parts, tmp_path / "data")
    reproduction("table8", one_seed, data=data).run("a command")
    shutil.rmtree(tmp_path / "runs")

    def change(tree):
        if changed == "recipe":
            tree["settings"]["common"].append("optimizer.learning_rate=0.5")
        if changed == "images":
            metadata = data / "images" / "train" / "metadata.jsonl"
            metadata.write_text(metadata.read_text(encoding="utf-8").replace('"a red a"', '"a blue a"'))
        if changed == "naming":
            tree["tables"]["table8"]["rows"][0]["naming"]["num_inference_steps"] = 3
        if changed == "columns":
            tree["columns"]["recall"]["metrics"] = ["text_retrieval_recall@3"]

    again = reproduction("table8", change, data=data, finished_only=True)
    rows = again.run("a command")
    assert {row["row"] for row in rows} == ({"2"} if changed == "naming" else set())


def test_labels_and_numbers_of_the_paper_may_change(reproduction, tmp_path):
    reproduction("table4", one_seed).run("a command")
    shutil.rmtree(tmp_path / "runs")

    def change(tree):
        tree["about"], tree["tables"]["table4"]["title"] = "more about toys", "Another title"
        for row in tree["tables"]["table4"]["rows"]:
            row["paper"] = {"ImageNet": 1.5}

    rows = reproduction("table4", change, finished_only=True).run("a command")
    assert {row["paper_ImageNet"] for row in rows} == {1.5}


def test_claims_are_judged_together_wherever_their_models_were(reproduction, monkeypatch, tmp_path):
    monkeypatch.setattr(verdicts, "SAME_FLOP", 0.5)  # of two steps, more cannot be asked
    first = reproduction("claims").run("a command")
    for seed in (0, 1):  # P1 at equal steps cannot be measured, its other budget and P7 can
        shutil.rmtree(tmp_path / "runs" / "toy-plan" / f"alignment-seed{seed}")
    again = reproduction("claims", finished_only=True)
    rows = again.run("a command")
    assert rows == first
    kept = read_results(tmp_path / "claims.json").settings["kept"]
    assert list(kept) == ["P1, equal steps"]
    shutil.rmtree(tmp_path / "runs")
    assert reproduction("claims", finished_only=True).run("a command") == first


def test_a_claim_among_more_claims_does_not_stay(reproduction, tmp_path):
    reproduction("claims").run("a command")
    shutil.rmtree(tmp_path / "runs")

    def one_more(tree):
        tree["claims"]["P9"] = dict(tree["claims"]["P7"]) | {"margin": 2.0}

    again = reproduction("claims", one_more, finished_only=True)
    assert [row for row in again.run("a command") if row["budget"] == "steps"] == []
    assert "P7, equal steps: not run" in again.said


def test_controls_stay_by_variant(reproduction, tmp_path):
    first = reproduction("controls", one_seed).run("a command")
    shutil.rmtree(tmp_path / "runs")
    assert reproduction("controls", finished_only=True).run("a command") == first
