"""reproduce.py and model_runs.py: what a table needs is trained once, measured, and written row by row."""

import json
import shutil
import threading
import time
from contextlib import contextmanager

import pytest
from PIL import Image

from palindiff.evaluation.results import read_results
from palindiff.experiments.reproduction import model_runs, verdicts
from palindiff.experiments.reproduction.plan_sections import NamingPlan


def one_seed(tree):
    tree["seeds"] = [0]


@contextmanager
def while_another_process_trains(run, made, until):
    """Hold a run from the start of the block on; its result appears once `made` has said `until`.

    It is trained beforehand: of two threads that load models at once, diffusers' `init_empty_weights` may leave one's
    patch of `nn.Module` in place, and every model after it on the device `meta`.
    """
    run.train()
    aside = run.result.rename(run.folder / "aside")
    entered = threading.Event()

    def hold():
        with run.locked():
            entered.set()
            ends = time.monotonic() + 60
            while until not in made.said and time.monotonic() < ends:
                time.sleep(0.05)
            aside.rename(run.result)

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait()
    yield
    holder.join()


def test_a_table_has_the_paper_s_numbers_beside_ours_for_each_seed(reproduction, tmp_path):
    rows = reproduction("table4").run("a command")
    assert {(row["row"], row["seed"]) for row in rows} == {
        (label, seed) for label in ("discriminate only", "both") for seed in (0, 1, None)
    }
    of_both = [row for row in rows if row["row"] == "both" and row["seed"] == 1]
    assert {row["paper_ImageNet"] for row in of_both} == {12.96}
    assert {row["metric"] for row in of_both} >= {"text_retrieval_recall@3", "acc1", "kd_efflite0"}
    assert not any(row.get("metric") == "kd_efflite0" for row in rows if row["row"] == "discriminate only")
    assert all(row["steps"] == 2 and row["train_tflop"] > 0 for row in rows if row["seed"] is not None)
    columns = {(row["row"], row["column"]): row for row in rows if row["seed"] is None}
    assert columns.keys() == {
        ("discriminate only", "recall@3"), ("discriminate only", "accuracy"),
        ("both", "recall@3"), ("both", "accuracy"), ("both", "KD"),
    }  # fmt: skip
    recall = columns["both", "recall@3"]
    ways = {f"{way}_retrieval_recall@3" for way in ("text", "image")}
    of_seeds = [row["value"] for row in rows if row["row"] == "both" and row.get("metric") in ways]
    assert recall["value"] == pytest.approx(sum(of_seeds) / 4)
    assert recall["ci_low"] <= recall["value"] <= recall["ci_high"]
    assert recall["num_seeds"] == 2
    found = read_results(tmp_path / "table4.json")
    assert found.rows == rows
    assert found.settings["unfinished"] == []


def test_a_second_call_trains_and_measures_nothing_again(reproduction, tmp_path):
    first = reproduction("table8", one_seed)
    rows = first.run("a command")
    assert first.said == ["both-seed0: training 2 steps"]
    run = tmp_path / "runs" / "toy-plan" / "both-seed0"
    shutil.rmtree(run / "state")  # of a finished run it is not needed
    times = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    again = reproduction("table8")
    assert again.run("a command") == rows
    assert again.said == []
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == times


def test_settings_of_naming_are_rows_of_one_model(reproduction):
    rows = reproduction("table8", one_seed).run("a command")
    assert [row["row"] for row in rows if row["seed"] is None] == ["1", "2"]
    assert len({row["config_hash"] for row in rows if row["seed"] == 0}) == 1


def test_a_variant_may_start_from_another_and_its_cost_includes_it(reproduction):
    made = reproduction("table5", one_seed)
    runs = made.model_runs()
    assert [run.name for run in runs] == ["both-seed0", "tuned-seed0"]
    (row, *_) = made.run("a command")
    assert row["train_tflop"] == pytest.approx(2 * runs[0].train_tflop)
    assert (runs[1].folder / "recipe.yaml").read_text().count("both-seed0/checkpoint") == 1


def test_equal_flop_is_a_longer_training_with_its_schedule_scaled(reproduction):
    def longer(tree):
        tree["settings"]["common"] += ["loop.num_steps=90", "optimizer.warmup_steps=9", "optimizer.decay_steps=30"]

    made = reproduction("claims", longer)
    both, short, long_ = (made.model_run(name, 0) for name in ("both", "alignment", "alignment-long"))
    assert long_.recipe.loop.num_steps > short.recipe.loop.num_steps == 90
    assert long_.train_tflop == pytest.approx(both.train_tflop, rel=0.02)
    share = long_.recipe.loop.num_steps / 90
    assert long_.recipe.optimizer.warmup_steps == round(9 * share)
    assert long_.recipe.optimizer.decay_steps == round(30 * share)


def test_claims_are_judged_at_both_budgets_and_settings_once(reproduction, monkeypatch):
    monkeypatch.setattr(verdicts, "SAME_FLOP", 0.5)  # of two steps, more cannot be asked
    rows = reproduction("claims").run("a command")
    assert [(row["claim"], row["budget"]) for row in rows] == [("P1", "steps"), ("P7", "steps"), ("P1", "flop")]
    by_budget = {(row["claim"], row["budget"]): row for row in rows}
    assert by_budget["P1", "flop"]["b"] == "alignment-long"
    assert all(row["num_seeds"] == 2 for row in rows)
    assert by_budget["P7", "steps"]["margin"] == 1.0
    assert {row["budget"] for row in rows} == set(verdicts.BUDGETS)


def test_a_claim_about_accuracy_is_judged_by_it(reproduction):
    def with_accuracy(tree):
        claim = {"text": "accuracy gains", "a": "both", "b": "alignment", "metric": "accuracy", "has_budgets": False}
        tree["claims"]["E1"] = claim | {"family": "exploratory-claims"}

    made = reproduction("exploratory-claims", with_accuracy)
    (row,) = made.run("a command")
    accuracy = [
        sum(made.measured.naming(made.model_run(name, seed), NamingPlan(), made.plan.primary, []).value("acc1")
            for seed in (0, 1)) / 2
        for name in ("both", "alignment")
    ]  # fmt: skip
    assert row["difference"] == pytest.approx(100 * (accuracy[0] - accuracy[1]))
    assert row["metric"] == "accuracy"


def test_claims_whose_models_are_not_trained_are_reported(reproduction):
    made = reproduction("claims", one_seed, finished_only=True)
    assert made.run("a command") == []
    assert "both-seed0: not trained" in made.said
    assert made.rows() == []
    assert "P1, equal steps: not run" in made.said


def test_an_unfinished_run_of_another_commit_is_refused(reproduction):
    made = reproduction("table8", one_seed)
    run = made.model_runs()[0]
    run.folder.mkdir(parents=True)
    (run.folder / "reproduction.json").write_text(json.dumps({"commit": "0" * 40}))
    with pytest.raises(ValueError, match=r"both-seed0` holds an unfinished run of commit 0000.*Check that one out"):
        made.run("a command")


@pytest.mark.parametrize("finished_only", [False, True])
def test_a_run_folder_of_another_recipe_is_refused(reproduction, finished_only):
    reproduction("table8", one_seed).run("a command")

    def faster(tree):
        tree["settings"]["common"].append("optimizer.learning_rate=0.5")

    with pytest.raises(ValueError, match=r"holds a finished run of another recipe"):
        reproduction("table8", faster, finished_only=finished_only).run("a command")


def test_a_finished_run_on_other_images_is_refused(reproduction, parts, tmp_path):
    data = shutil.copytree(parts, tmp_path / "data")
    reproduction("table8", one_seed, data=data).run("a command")
    metadata = data / "images" / "train" / "metadata.jsonl"
    metadata.write_text(metadata.read_text(encoding="utf-8").replace('"a red a"', '"a blue a"'))
    with pytest.raises(ValueError, match=r"both-seed0` holds a run of other training images\. Expected those"):
        reproduction("table8", data=data).run("a command")


def test_a_finished_run_whose_start_was_trained_again_is_refused(reproduction, tmp_path):
    reproduction("table5", one_seed).run("a command")
    config = tmp_path / "runs" / "toy-plan" / "both-seed0" / "checkpoint" / "unet" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ValueError, match=r"tuned-seed0` holds a run of other both-seed0"):
        reproduction("table5").run("a command")


def test_a_run_that_another_process_trains_is_left_to_it(reproduction):
    made = reproduction("table4")
    of_both = made.model_run("both", 0)
    with of_both.locked():
        rows = made.run("a command")
    assert "both-seed0: another process has it" in made.said
    assert not of_both.is_finished
    assert {(row["row"], row["seed"]) for row in rows} >= {("both", 1), ("discriminate only", 0)}
    assert ("both", 0) not in {(row["row"], row["seed"]) for row in rows}
    assert {(row["row"], row["seed"]) for row in reproduction("table4").run("a command")} >= {("both", 0)}


def test_a_run_that_another_process_measures_is_waited_for(reproduction):
    made = reproduction("table8", one_seed)
    made.run("a command")
    run, entered = made.model_run("both", 0), threading.Event()
    released = []

    def hold():
        with run.locked():
            entered.set()
            time.sleep(0.5)
            released.append(True)

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait()
    rows = reproduction("table8").rows()
    assert released  # it came after the other one
    assert {row["seed"] for row in rows} == {0, None}
    holder.join()


def test_others_are_measured_before_one_is_waited_for(reproduction):
    made = reproduction("table4", one_seed)
    made.run("a command")
    first, other = made.model_run("alignment", 0), made.model_run("both", 0)
    for run in (first, other):
        shutil.rmtree(run.folder / "measured")
    entered, order = threading.Event(), list[bool]()

    def hold():
        with first.locked():
            entered.set()
            ends = time.monotonic() + 60
            while not (other.folder / "measured").exists() and time.monotonic() < ends:
                time.sleep(0.05)
            order.append((other.folder / "measured").exists())

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait()
    again = reproduction("table4")
    rows = again.run("a command")
    holder.join()
    assert order == [True]
    assert "alignment-seed0: another process has it" in again.said
    assert {row["variant"] for row in rows if row["seed"] == 0} >= {"both", "alignment"}


def test_a_run_waits_for_the_start_that_another_process_trains(reproduction):
    made = reproduction("table5", one_seed)
    start, tuned = made.model_runs()
    with while_another_process_trains(start, made, until="both-seed0: another process has it"):
        rows = made.run("a command")
    assert "both-seed0: another process has it" in made.said
    assert tuned.is_finished
    assert {row["variant"] for row in rows} == {"tuned"}


def test_a_training_that_diverges_is_named_until_it_is_repeated(reproduction, monkeypatch, tmp_path):
    made = reproduction("table4", one_seed)
    train = model_runs.train_recipe

    def diverging(recipe, folder, **options):
        if folder.name == "both-seed0":
            raise FloatingPointError("The loss is nan.")
        return train(recipe, folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(model_runs, "train_recipe", diverging)
        made.run("a command")
    assert "both-seed0: failed. The loss is nan." in made.said
    settings = read_results(tmp_path / "table4.json").settings
    assert (settings["failed"], settings["unfinished"]) == (["both-seed0"], ["both-seed0"])
    reproduction("table4").run("a command")
    settings = read_results(tmp_path / "table4.json").settings
    assert (settings["failed"], settings["unfinished"]) == ([], [])


def test_a_claim_over_two_data_sets_is_about_their_mean(reproduction):
    def of_two_sets(tree):
        one_seed(tree)
        tree["naming"]["again"] = dict(tree["naming"]["validation"])
        tree["claims"]["P1"]["data"] = ["validation", "again"]

    made = reproduction("claims", of_two_sets)
    rows = {(row["claim"], row["budget"]): row for row in made.run("a command")}
    values = [
        sum(made.measured.naming(made.model_run(name, 0), NamingPlan(), each, []).value(f"{way}_retrieval_recall@3")
            for each in ("validation", "again") for way in ("text", "image")) / 4
        for name in ("both", "alignment")
    ]  # fmt: skip
    assert rows["P1", "steps"]["difference"] == pytest.approx(100 * (values[0] - values[1]))


def test_controls_are_rows_of_each_set_that_has_them(reproduction):
    def on_two_sets(tree):
        one_seed(tree)
        tree["naming"]["again"] = tree["naming"]["validation"] | {"tasks": ["classification"]}
        tree["controlled"] = ["validation", "again"]

    rows = reproduction("controls", on_two_sets).run("a command")
    assert {row["variant"] for row in rows} == {"both"}
    expected = {"zeroed_images_acc1", "largest_class_acc1", "nearest_efflite0_text_retrieval_recall@1"}
    for name in ("validation", "again"):
        assert {row["metric"] for row in rows if row["data"] == name} >= expected
    hashes = {name: {row["plan_hash"] for row in rows if row["data"] == name} for name in ("validation", "again")}
    assert hashes["validation"].isdisjoint(hashes["again"])


def test_a_run_of_equal_flop_waits_for_what_the_other_one_starts_from(reproduction):
    def as_long_as_tuned(tree):
        one_seed(tree)
        tree["variants"]["alignment-long"]["same_flop_as"] = "tuned"
        tree["tables"]["table5"]["rows"] = [
            {"label": name, "variant": name} for name in ("alignment-long", "alignment")
        ]

    made = reproduction("table5", as_long_as_tuned)
    start, long, other = made.model_runs()
    assert [run.name for run in (start, long, other)] == ["both-seed0", "alignment-long-seed0", "alignment-seed0"]
    assert not long.is_countable
    with while_another_process_trains(start, made, until="alignment-seed0: training 2 steps"):
        made.run("a command")
    assert made.said.index("alignment-seed0: training 2 steps") < made.said.index(
        f"alignment-long-seed0: training {long.recipe.loop.num_steps} steps"
    )
    assert long.is_finished


def test_missing_data_and_unknown_tables_are_refused_before_any_training(reproduction, tmp_path):
    with pytest.raises(
        ValueError, match=r"The scale has no `table99`\. Expected one of table4, table8, table5, claims, controls"
    ):
        reproduction("table99").run("a command")
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        reproduction("table8", data=tmp_path / "nowhere").run("a command")
    assert not (tmp_path / "runs").exists()


def test_a_figure_is_a_sheet_of_real_and_generated_images(reproduction, tmp_path):
    def as_figure(tree):
        tree["seeds"] = [0]
        rows = [{"label": name, "variant": name, "generates": True} for name in ("both", "tuned")]
        tree["tables"]["figure4"] = {
            "title": "Images",
            "generation": "few",
            "columns": ["kd"],
            "sheet_captions": 3,
            "rows": rows,
        }

    made = reproduction("figure4", as_figure)
    made.run("a command")
    assert made.said[-1] == f"written: {tmp_path / 'figure4.png'}"
    with Image.open(tmp_path / "figure4.png") as sheet:
        assert sheet.width > 3 * 3 * 96  # three captions, each with a real image and two generated ones
