"""watching.py: the same noise at every look, numbers that equal the metrics' own, and a sheet of samples."""

import json

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from PIL import Image, ImageChops

from palindiff.evaluation.retrieval import recall_at_k
from palindiff.evaluation.sheets import contact_sheet
from palindiff.evaluation.zero_shot import mean_class_recall, top_k_accuracy
from palindiff.experiments.evaluators import evaluators, naming, samples, validation_losses
from palindiff.inference.generation import generate_images
from palindiff.training.loop.order import random_generator
from palindiff.training.loop.run_log import read_log
from palindiff.training.train_diffdis import train_recipe
from toys.recipe import prepare_toy, toy_recipe, train_toy_recipe, write_drawings

PROMPTS = ("a red g", "a green h")


@pytest.fixture
def parts(toy_parts, tmp_path):
    """Models with random weights and their features, as an evaluator finds them."""
    found = prepare_toy(toy_recipe(toy_parts, evaluation={"prompts": PROMPTS}), tmp_path)
    found.objective.eval()
    return found


def look(parts, step=1):
    """All that is looked at, in one call each."""
    with torch.no_grad():
        return {name: value for each in evaluators(parts) for name, value in each(step).items()}


def test_two_looks_at_the_same_weights_say_the_same(parts):
    torch.manual_seed(1)
    first = look(parts)
    sheet = (parts.output / "samples" / "step-00000001.png").read_bytes()
    torch.manual_seed(2)
    assert look(parts) == first
    assert (parts.output / "samples" / "step-00000001.png").read_bytes() == sheet


def test_other_weights_say_something_else(parts):
    first = look(parts)
    with torch.no_grad():
        for weight in (parts.pipeline.unet.conv_out.bias, parts.pipeline.query_stream.predictor.bias):
            weight += 1
    second = look(parts)
    assert second["validation_generation"] != first["validation_generation"]
    assert second["validation_alignment"] != first["validation_alignment"]


def test_validation_losses_are_of_unflipped_images_and_first_captions(parts):
    """Batches of four out of six: one is full, and what is left over is not looked at."""
    rows = torch.arange(4)
    z_mean, z_std = parts.validation_set.images.read(rows, torch.zeros(4, dtype=torch.bool))
    captions = [parts.validation_rows[row].captions[0] for row in rows.tolist()]
    texts = parts.validation_set.texts
    numbers = [texts.row[caption] for caption in captions]
    batch = {
        "z_mean": z_mean,
        "z_std": z_std,
        "c": torch.tensor(texts.c[numbers]),
        "e_0": torch.tensor(texts.e[numbers]),
        "caption_id": torch.tensor([captions.index(caption) for caption in captions]),
    }
    with torch.no_grad():
        losses = parts.objective(batch, parts.objective.draw(4, random_generator(0, "validation", 0)))
        found = validation_losses(parts)
    assert found == {f"validation_{name}": loss.item() for name, loss in losses.items()}
    assert found["validation_loss"] == pytest.approx(found["validation_generation"] + found["validation_alignment"])


def test_validation_losses_are_the_mean_over_batches(toy_parts, tmp_path):
    whole = prepare_toy(toy_recipe(toy_parts, loop={"batch_size": 2}), tmp_path)
    with torch.no_grad():
        found = validation_losses(whole)["validation_generation"]
        batches = []
        for number in range(3):
            rows = torch.arange(2 * number, 2 * number + 2)
            batch = whole.validation_set.read(rows, torch.tensor([[0.5, 0.0]] * 2))
            draws = whole.objective.draw(2, random_generator(0, "validation", number))
            batches.append(whole.objective(batch, draws)["generation"].item())
    assert found == pytest.approx(sum(batches) / 3, rel=1e-6)


def validation_with(folder, change):
    """The drawings, with a change made to the validation images' rows."""
    path = write_drawings(folder) / "validation" / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(folder)}


def test_recall_is_that_of_the_pipeline_s_own_ranking(toy_parts, tmp_path):
    """Six images of four captions, so that the two ways differ."""

    def share_captions(rows):
        for row in rows[3:]:
            row["captions"][0] = rows[0]["captions"][0]

    data = validation_with(tmp_path / "images", share_captions)
    parts = prepare_toy(toy_recipe(toy_parts, data=data, loop={"seed": 2}), tmp_path)
    captions = [row.captions[0] for row in parts.validation_rows]
    different = list(dict.fromkeys(captions))
    images, _ = parts.validation_set.images.read(torch.arange(6), torch.zeros(6, dtype=torch.bool))
    walk = {"num_inference_steps": 2, "guidance_scale": 1}
    scores = parts.pipeline.rank(images.float(), different, **walk)
    from_files = parts.pipeline.rank([row.source for row in parts.validation_rows], different, **walk)
    torch.testing.assert_close(scores, from_files, rtol=0, atol=1e-3)  # latents kept as float16
    positives = torch.tensor([[caption == other for other in different] for caption in captions])
    found = naming(parts)
    forth, back = recall_at_k(scores, positives, [1])[1], recall_at_k(scores.T, positives.T, [1])[1]
    assert found["image_to_text_recall_1"] == forth
    assert found["text_to_image_recall_1"] == back
    assert forth != back
    assert [name for name in found if "recall_5" in name or "recall_10" in name] == []  # four captions: no five best


def test_zero_shot_accuracy_is_that_of_labels_in_templates(toy_parts, tmp_path):
    parts = prepare_toy(toy_recipe(toy_parts, evaluation={"templates": ["a red {}", "{}"]}), tmp_path)
    pipeline, labels = parts.pipeline, [row.label for row in parts.validation_rows]
    z, _ = parts.validation_set.images.read(torch.arange(6), torch.zeros(6, dtype=torch.bool))
    scores = pipeline.encode_image(z.float(), 2, 1.0) @ pipeline.encode_labels(list("ghi"), ["a red {}", "{}"]).T
    truth = torch.tensor(["ghi".index(label) for label in labels])
    found = naming(parts)
    assert found["zero_shot_top_1"] == top_k_accuracy(scores, truth, [1])[1]
    assert found["zero_shot_mean_class_recall"] == mean_class_recall(scores, truth)
    assert "zero_shot_top_5" not in found  # of three classes


def test_unlabelled_images_have_no_zero_shot_accuracy(toy_parts, tmp_path):
    data = validation_with(tmp_path / "images", lambda rows: rows[3].pop("label"))
    parts = prepare_toy(toy_recipe(toy_parts, data=data), tmp_path)
    assert not [name for name in naming(parts) if name.startswith("zero_shot")]


def test_at_most_so_many_images_are_watched_and_evenly_spread(toy_parts, tmp_path):
    parts = prepare_toy(toy_recipe(toy_parts, evaluation={"num_images": 3}), tmp_path)
    rows = torch.tensor([0, 2, 5])
    captions = [parts.validation_rows[row].captions[0] for row in rows.tolist()]
    z, _ = parts.validation_set.images.read(rows, torch.zeros(3, dtype=torch.bool))
    scores = parts.pipeline.rank(z.float(), captions, num_inference_steps=2, guidance_scale=1)
    expected = recall_at_k(scores, torch.eye(3, dtype=torch.bool), [1])[1]
    assert naming(parts)["image_to_text_recall_1"] == expected
    assert naming(parts)["zero_shot_top_1"] in (0, 1 / 3, 2 / 3, 1)


def test_the_sheet_shows_the_prompts_generated_from_their_seeds(parts):
    assert samples(parts, 7) == {}
    evaluation = parts.recipe.evaluation
    generated = generate_images(
        parts.pipeline, PROMPTS, [0, 1], evaluation.guidance_scale, evaluation.num_inference_steps
    )
    written = Image.open(parts.output / "samples" / "step-00000007.png")
    assert ImageChops.difference(written, contact_sheet(generated, PROMPTS, title="step 7")).getbbox() is None


@pytest.mark.parametrize(
    ("task", "prompts", "expected"),
    [
        ("both", PROMPTS, {"generation", "alignment", "recall", "sheet"}),
        ("both", (), {"generation", "alignment", "recall"}),
        ("generation", PROMPTS, {"generation", "sheet"}),
        ("alignment", PROMPTS, {"alignment", "recall"}),
    ],
)
def test_what_a_task_can_show_is_looked_at(task, prompts, expected, toy_parts, tmp_path):
    parts = prepare_toy(
        toy_recipe(toy_parts, objective={"task": task}, evaluation={"prompts": prompts}), tmp_path / "run"
    )
    numbers = look(parts)
    found = {name for name in ("generation", "alignment") if f"validation_{name}" in numbers}
    found |= {"recall"} if "image_to_text_recall_1" in numbers else set()
    found |= {"sheet"} if (tmp_path / "run" / "samples").exists() else set()
    assert found == expected


def test_a_run_that_is_watched_learns_as_one_that_is_not(toy_parts, tmp_path):
    loop = {"num_steps": 4, "evaluate_every": 1}
    recipe = toy_recipe(toy_parts, evaluation={"prompts": PROMPTS}, loop=loop)
    train_toy_recipe(recipe, tmp_path / "watched", evaluators)
    train_toy_recipe(recipe, tmp_path / "alone")
    weights = [
        (tmp_path / name / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
        for name in ("watched", "alone")
    ]
    assert weights[0] == weights[1]
    told = [line["step"] for line in read_log(tmp_path / "watched" / "log.jsonl") if "validation_loss" in line]
    assert told == [1, 2, 3, 4]
    assert len(list((tmp_path / "watched" / "samples").iterdir())) == 4


def train_as_one_of_two(toy_parts, output):
    AcceleratorState._reset_state(reset_partial_state=True)  # a forked child inherits its parent's
    recipe = toy_recipe(toy_parts, loop={"num_steps": 2, "batch_size": 4, "evaluate_every": 1})
    train_recipe(recipe, output, evaluators, show_progress=False)


def test_two_processes_train_while_one_of_them_looks(toy_parts, tmp_path):
    """A look that waited for the other process would never end."""
    debug_launcher(train_as_one_of_two, args=(toy_parts, tmp_path / "run"), num_processes=2)
    looks = [line["step"] for line in read_log(tmp_path / "run" / "log.jsonl") if "validation_alignment" in line]
    assert looks == [1, 2]
    assert (tmp_path / "run" / "checkpoint" / "query_stream").is_dir()
