"""base_trainer.py: evaluation under fixed draws, chosen by recipe and task, without effect on training."""

import json
from resource import RLIMIT_FSIZE, getrlimit, setrlimit
from typing import ClassVar

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.seeds import seeded_generator
from palindiff.training.base_trainer import open_sets
from palindiff.training.loop.run_log import read_log
from palindiff.training.train_diffdis import DiffDisTrainer
from palindiff.training.trainer import TRAINERS, train_recipe
from toys.recipe import prepare_toy, toy_recipe, train_toy_recipe

WEIGHTS = "diffusion_pytorch_model.safetensors"
PROMPTS = ("a red g", "a green h")


@pytest.fixture
def parts(toy_parts, tmp_path):
    """Models with random weights and their features, as an evaluation finds them."""
    found = prepare_toy(toy_recipe(toy_parts, evaluation={"prompts": PROMPTS}), tmp_path)
    found.objective.eval()
    return found


def evaluate(parts, step=1):
    with torch.no_grad():
        return parts.evaluate(step)


def test_two_evaluations_of_the_same_weights_are_equal(parts):
    torch.manual_seed(1)
    first = evaluate(parts)
    sheet = (parts.output / "samples" / "step-00000001.png").read_bytes()
    torch.manual_seed(2)
    assert evaluate(parts) == first
    assert (parts.output / "samples" / "step-00000001.png").read_bytes() == sheet


def test_other_weights_have_other_losses(parts):
    first = evaluate(parts)
    with torch.no_grad():
        for weight in (parts.pipeline.unet.conv_out.bias, parts.pipeline.query_stream.predictor.bias):
            weight += 1
    second = evaluate(parts)
    assert second["validation_generation"] != first["validation_generation"]
    assert second["validation_alignment"] != first["validation_alignment"]


def test_validation_losses_are_of_unflipped_images_and_first_captions(parts):
    """Six rows in batches of at most four: two of three."""
    texts, totals = parts.validation_set.texts, dict[str, float]()
    for number, rows in enumerate((torch.arange(3), torch.arange(3, 6))):
        z_mean, z_std = parts.validation_set.images.read(rows, torch.zeros(3, dtype=torch.bool))
        captions = [parts.validation_images[row].captions[0] for row in rows.tolist()]
        numbers = [texts.row[caption] for caption in captions]
        batch = {
            "z_mean": z_mean,
            "z_std": z_std,
            "c": torch.tensor(texts.c[numbers]),
            "e_0": torch.tensor(texts.e[numbers]),
            "caption_id": torch.tensor([captions.index(caption) for caption in captions]),
        }
        with torch.no_grad():
            losses = parts.objective(batch, parts.objective.draw(3, seeded_generator(0, "validation", number)))
        totals = {name: totals.get(name, 0.0) + loss.item() / 2 for name, loss in losses.items()}
    with torch.no_grad():
        found = parts.validation_losses()
    assert found == pytest.approx({f"validation_{name}": total for name, total in totals.items()}, rel=1e-6)
    assert found["validation_loss"] == pytest.approx(found["validation_generation"] + found["validation_alignment"])


def test_validation_losses_are_the_mean_over_batches(toy_parts, tmp_path):
    whole = prepare_toy(toy_recipe(toy_parts, loop={"batch_size": 2}), tmp_path)
    with torch.no_grad():
        found = whole.validation_losses()["validation_generation"]
        batches = []
        for number in range(3):
            rows = torch.arange(2 * number, 2 * number + 2)
            batch = whole.validation_set.read(rows, torch.tensor([[0.5, 0.0]] * 2))
            draws = whole.objective.draw(2, seeded_generator(0, "validation", number))
            batches.append(whole.objective(batch, draws)["generation"].item())
    assert found == pytest.approx(sum(batches) / 3, rel=1e-6)


def test_no_validation_row_is_left_out_but_what_does_not_divide(toy_parts, tmp_path):
    parts = prepare_toy(toy_recipe(toy_parts, loop={"batch_size": 4}), tmp_path)
    parts.validation_rows, read = torch.arange(5), parts.validation_set.read
    seen: list[int] = []
    parts.validation_set.read = lambda rows, uniform: seen.extend(rows.tolist()) or read(rows, uniform)
    with torch.no_grad():
        parts.validation_losses()
    assert seen == [0, 1, 2, 3]  # two batches of two


def test_validation_images_meet_conditions_of_their_own(toy_parts, tmp_path):
    whole = toy_recipe(toy_parts)
    training, validation = open_sets(whole)
    chosen = validation[2].captions[0]
    some = toy_recipe(toy_parts, evaluation={"where": [f"caption={chosen}"]})
    same, kept = open_sets(some)
    assert same.fingerprint == training.fingerprint
    assert {row.captions[0] for row in kept} == {chosen}
    assert len(kept) < len(validation)
    none = toy_recipe(toy_parts, evaluation={"where": ["image_path=nowhere"]})
    with pytest.raises(ValueError, match=r"No row of .* meets image_path=nowhere\. Expected at least one\."):
        open_sets(none)
    with pytest.raises(ValueError, match="The condition `nowhere` has no key"):
        toy_recipe(toy_parts, evaluation={"where": ["nowhere"]})


@pytest.mark.parametrize(
    ("task", "prompts", "expected"),
    [
        ("both", PROMPTS, {"generation", "alignment", "recall", "sheet"}),
        ("both", (), {"generation", "alignment", "recall"}),
        ("generation", PROMPTS, {"generation", "sheet"}),
        ("alignment", PROMPTS, {"alignment", "recall"}),
    ],
)
def test_a_task_is_evaluated_by_what_it_trains(task, prompts, expected, toy_parts, tmp_path):
    parts = prepare_toy(
        toy_recipe(toy_parts, objective={"task": task}, evaluation={"prompts": prompts}), tmp_path / "run"
    )
    numbers = evaluate(parts)
    found = {name for name in ("generation", "alignment") if f"validation_{name}" in numbers}
    found |= {"recall"} if "image_to_text_recall_1" in numbers else set()
    found |= {"sheet"} if (tmp_path / "run" / "samples").exists() else set()
    assert found == expected


def test_a_run_that_is_evaluated_learns_as_one_that_is_not(toy_parts, tmp_path):
    loop = {"num_steps": 4, "evaluate_every": 1}
    recipe = toy_recipe(toy_parts, evaluation={"prompts": PROMPTS}, loop=loop)
    train_toy_recipe(recipe, tmp_path / "evaluated")
    train_toy_recipe(toy_recipe(toy_parts, loop={"num_steps": 4, "evaluate_every": 0}), tmp_path / "alone")
    weights = [
        (tmp_path / name / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
        for name in ("evaluated", "alone")
    ]
    assert weights[0] == weights[1]
    told = [line["step"] for line in read_log(tmp_path / "evaluated" / "log.jsonl") if "validation_loss" in line]
    assert told == [1, 2, 3, 4]
    assert len(list((tmp_path / "evaluated" / "samples").iterdir())) == 4


def train_as_one_of_two(toy_parts, output):
    AcceleratorState._reset_state(reset_partial_state=True)  # a forked child inherits its parent's
    recipe = toy_recipe(toy_parts, loop={"num_steps": 2, "batch_size": 4, "evaluate_every": 1})
    train_recipe(recipe, output, show_progress=False)


def test_two_processes_train_while_one_of_them_evaluates(toy_parts, tmp_path):
    """An evaluation that waited for the other process would never end."""
    debug_launcher(train_as_one_of_two, args=(toy_parts, tmp_path / "run"), num_processes=2)
    evaluated = [line["step"] for line in read_log(tmp_path / "run" / "log.jsonl") if "validation_alignment" in line]
    assert evaluated == [1, 2]
    assert (tmp_path / "run" / "checkpoint" / "query_stream").is_dir()


def test_the_recipe_chooses_the_evaluators(toy_parts, tmp_path):
    chosen = {"evaluators": ["classification"], "prompts": PROMPTS}
    parts = prepare_toy(toy_recipe(toy_parts, evaluation=chosen), tmp_path / "run")
    assert [row["metric"] for row in parts.evaluation_rows(1)] == ["zero_shot_top_1", "zero_shot_mean_class_recall"]
    assert not (tmp_path / "run" / "samples").exists()


class Scripted(DiffDisTrainer):
    """Has the recalls that it is told, by step."""

    recalls: ClassVar = {1: 0.2, 2: 0.6, 3: 0.4, 4: 0.6}

    def evaluation_rows(self, step):
        value = self.recalls[step]
        return [{"metric": f"{way}_recall_10", "value": value} for way in ("image_to_text", "text_to_image")]


def test_a_full_disk_is_one_sentence_and_leaves_no_half_model(parts):
    limits = getrlimit(RLIMIT_FSIZE)
    setrlimit(RLIMIT_FSIZE, (4_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"could not be written to `.*/best` \(.*Expected a disk with room for it\."):
            parts._write(parts.output / "best")
    finally:
        setrlimit(RLIMIT_FSIZE, limits)
    assert not (parts.output / "best").exists()
    assert not list(parts.output.glob(".best*"))


def weights_in(folder):
    return {part: load_file(folder / part / WEIGHTS) for part in ("unet", "query_stream")}


def test_the_best_checkpoint_is_kept_beside_the_last(toy_parts, tmp_path, monkeypatch):
    """The first of the equally good ones, whose loss is not the lowest."""
    monkeypatch.setitem(TRAINERS, "diffdis", Scripted)
    loop = {"evaluate_every": 1, "save_every": 1}
    train_toy_recipe(toy_recipe(toy_parts, loop=loop | {"num_steps": 4}), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "best.json").read_text()) == {
        "step": 2, "metric": "mean_recall", "value": 0.6
    }  # fmt: skip
    train_toy_recipe(toy_recipe(toy_parts, loop=loop | {"num_steps": 2}), tmp_path / "two")
    best, last, two = (weights_in(tmp_path / name) for name in ("run/best", "run/checkpoint", "two/checkpoint"))
    assert all(torch.equal(best[part][name], weight) for part in best for name, weight in two[part].items())
    assert any(not torch.equal(best[part][name], weight) for part in best for name, weight in last[part].items())
    assert PalindiffPipeline.from_pretrained(tmp_path / "run" / "best").model_card


@pytest.mark.parametrize(
    ("keep_best", "task", "metric"),
    [("auto", "both", "mean_recall"), ("auto", "generation", "validation_generation"), ("none", "both", None),
     ("generation", "both", "validation_generation"), ("recall", "generation", None),
     ("classification", "both", "zero_shot_top_1")],
)  # fmt: skip
def test_a_recipe_chooses_what_is_best(keep_best, task, metric, toy_parts, tmp_path):
    sections = {"evaluation": {"keep_best": keep_best}, "objective": {"task": task}, "loop": {"num_steps": 1}}
    train_toy_recipe(toy_recipe(toy_parts, **sections), tmp_path)
    path = tmp_path / "best.json"
    assert path.exists() == (tmp_path / "best").exists() == (metric is not None)
    assert metric is None or json.loads(path.read_text())["metric"] == metric
