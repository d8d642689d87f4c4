"""`palindiff demo` from the command line: every option reaches what is made."""

import pytest
import yaml

from palindiff.evaluation.results import read_results
from palindiff.experiments import demo, demo_groups, emoji_protocol, shown_captions
from toys.demo import write_timed_recipe
from toys.emoji import write_emoji_set
from toys.page import assert_self_contained


@pytest.fixture
def emoji_dir(toy_parts, tmp_path, monkeypatch):
    """A toy set, and a toy recipe where the demo trains its own."""
    recipe = write_timed_recipe(tmp_path / "quick.yaml", toy_parts)
    monkeypatch.setattr(demo, "TRAINED_RECIPE", recipe)
    monkeypatch.setattr(shown_captions, "FREE_WORDING", ("a red circle",))
    monkeypatch.setattr(demo_groups, "NUM_GENERATED", 2)
    monkeypatch.setattr(emoji_protocol, "NUM_GENERATED", 2)
    monkeypatch.setattr(emoji_protocol, "METRIC_STEPS", 2)
    return write_emoji_set(tmp_path / "emoji")


def test_training_first_makes_page_run_and_results(palindiff, emoji_dir, tmp_path):
    output, results = tmp_path / "page", tmp_path / "results" / "demo.json"
    code, out, err = palindiff(
        "demo", "--train", "--minutes", "0.01", "--seed", 4, "--data", emoji_dir, "--output", output,
        "--results", results,
    )  # fmt: skip
    assert code == 0, err
    assert out.splitlines()[-1] == f"written: {output / 'index.html'}"
    assert_self_contained((output / "index.html").read_text(encoding="utf-8"))
    recipe = yaml.safe_load((output / "run" / "recipe.yaml").read_text())
    assert (recipe["loop"]["seed"], recipe["data"]["path"]) == (4, str(emoji_dir))
    found = read_results(results)
    assert (found.seed, found.settings["minutes"]) == (4, 0.01)
    assert found.command.startswith("palindiff demo --train --minutes 0.01 --seed 4 --data emoji --output page")


@pytest.mark.parametrize(
    ("options", "model"),
    [
        ((), "bundled"),
        (("--train",), "trained for 10 minutes"),
        (("--train", "--minutes", "2.5"), "trained for 2.5 minutes"),
    ],
)
def test_a_dry_run_prints_what_would_be_done_and_writes_nothing(palindiff, tmp_path, monkeypatch, options, model):
    monkeypatch.chdir(tmp_path)
    code, out, _ = palindiff("demo", *options, "--dry-run", "--output", "page", "--data", "set")
    assert code == 0
    assert out == f"data: set, drawn if absent\nmodel: {model}\npage: page/index.html\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "value"), [("--minutes", "0"), ("--seed", "-1"), ("--minutes", "soon")])
def test_options_out_of_range_are_refused(palindiff, option, value):
    code, out, err = palindiff("demo", option, value)
    assert (code, out) == (2, "")
    assert option in err


def test_a_folder_that_is_no_emoji_set_is_one_sentence(palindiff, emoji_dir, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = palindiff("demo", "--data", tmp_path / "empty", "--output", tmp_path / "page", "--train")
    assert code == 2
    assert err.splitlines()[-1].startswith(f"palindiff: `{tmp_path / 'empty'}` has no images of the split `train`.")
    assert not (tmp_path / "page").exists()


def test_minutes_without_train_are_refused(palindiff):
    code, _, err = palindiff("demo", "--minutes", 3, "--dry-run")
    assert code == 2
    assert "`--minutes` is 3 without `--train`" in err
