"""kept_rows.py and planned.py: rows stay where the models are not here, if the plan still says the same of them."""

import shutil

import pytest

from palindiff.evaluation.results import read_results
from palindiff.experiments.reproduction import model_runs, verdicts


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


def test_a_call_that_trains_loses_no_row_before_it_has_a_new_one(reproduction, tmp_path, monkeypatch):
    first = reproduction("table4", one_seed).run("a command")
    shutil.rmtree(tmp_path / "runs")
    again = reproduction("table4")
    train = model_runs.train_recipe

    def interrupted(recipe, folder, **options):
        if folder.name == "both-seed0":
            raise KeyboardInterrupt
        return train(recipe, folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(model_runs, "train_recipe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            again.run("a command")
    found = read_results(tmp_path / "table4.json")
    assert list(found.settings["kept"]) == ["both"]
    assert of_label(found.rows, "both") == of_label(first, "both")
    reproduction("table4").run("a command")
    assert "kept" not in read_results(tmp_path / "table4.json").settings


def test_a_call_that_does_not_train_does_not_train_a_start_either(reproduction, tmp_path):
    first = reproduction("table5", one_seed).run("a command")
    shutil.rmtree(tmp_path / "runs" / "toy-plan" / "both-seed0")
    again = reproduction("table5", finished_only=True)
    assert again.run("a command") == first
    assert again.said == ["both-seed0: not trained"]
    assert not (tmp_path / "runs" / "toy-plan" / "both-seed0" / "checkpoint").exists()
    (tmp_path / "table5.json").unlink()
    assert reproduction("table5", finished_only=True).run("a command") == []


def test_rows_of_more_seeds_stay_where_fewer_are_here(reproduction, tmp_path):
    first = reproduction("table4").run("a command")
    shutil.rmtree(tmp_path / "runs" / "toy-plan" / "both-seed0")
    assert reproduction("table4", finished_only=True).run("a command") == first
    (tmp_path / "table4.json").unlink()
    rows = reproduction("table4", finished_only=True).run("a command")
    assert {row["seed"] for row in of_label(rows, "both")} == {1, None}
    assert read_results(tmp_path / "table4.json").settings["unfinished"] == ["both-seed0"]


def test_a_run_of_which_one_row_is_missing_is_named(reproduction, tmp_path):
    reproduction("table8", one_seed).run("a command")
    shutil.rmtree(tmp_path / "runs")

    def change(tree):
        tree["tables"]["table8"]["rows"][0]["naming"]["num_inference_steps"] = 3

    rows = reproduction("table8", change, finished_only=True).run("a command")
    assert {row["row"] for row in rows} == {"2"}
    assert read_results(tmp_path / "table8.json").settings["unfinished"] == ["both-seed0"]


def test_a_variant_of_another_name_is_the_same(reproduction, tmp_path):
    first = reproduction("claims").run("a command")
    table = reproduction("table4").run("a command")
    shutil.rmtree(tmp_path / "runs")

    def rename(tree):
        tree["variants"]["named"] = tree["variants"].pop("alignment")
        tree["claims"]["P1"]["b"] = "named"
        tree["tables"]["table4"]["rows"][0] |= {"variant": "named", "paper": {}}

    rows = reproduction("claims", rename, finished_only=True).run("a command")
    assert [row["b"] for row in rows if row["claim"] == "P1" and row["budget"] == "steps"] == ["named"]
    assert len(rows) == len(first)
    rows = reproduction("table4", finished_only=True).run("a command")
    assert len(rows) == len(table)
    alone = of_label(rows, "discriminate only")
    assert {row["variant"] for row in alone} == {"named"}
    assert not any(key.startswith("paper_") for row in alone for key in row)


def test_a_file_that_is_no_result_file_is_not_overwritten(reproduction, tmp_path):
    (tmp_path / "table4.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a result file.*Or remove the file, or name another --results"):
        reproduction("table4", one_seed).run("a command")


@pytest.mark.parametrize("changed", ["recipe", "sources", "images", "naming", "columns"])
def test_a_row_of_something_else_does_not_stay(reproduction, tmp_path, parts, changed):
    data = shutil.copytree(parts, tmp_path / "data")
    reproduction("table8", one_seed, data=data).run("a command")
    shutil.rmtree(tmp_path / "runs")

    def change(tree):
        if changed == "recipe":
            tree["settings"]["common"].append("optimizer.learning_rate=0.5")
        if changed == "sources":
            tree["settings"]["common"].append("text.source=some/other-encoder")
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
