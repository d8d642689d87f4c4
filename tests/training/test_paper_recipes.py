"""The paper's recipes: its hyper-parameters, and one recipe a row of its ablations that changes that row's setting."""

import re

import pytest

from palindiff.training.recipes.schema import ContrastiveRecipe, DiffDisRecipe
from palindiff.training.recipes.yaml_files import load_recipe, recipe_names

MAIN = "diffdis-cc3m"
PAPER = {  # what the paper states, in palindiff's keys; guidance_scale is 1 + w
    "base.source": "CompVis/stable-diffusion-v1-1", "base.image_size_px": 256, "base.unet_weights": "base",
    "text.source": "openai/clip-vit-large-patch14", "text.is_trained": False,
    "query_stream.fusion": "joint", "query_stream.gamma": 0.01, "query_stream.text_chain": "diffusion",
    "query_stream.num_head_layers": 6, "query_stream.head_width": 768, "query_stream.head_dim": 64,
    "objective.task": "both", "objective.alignment_weight": 1, "objective.text_drop_rate": 0.1,
    "objective.image_drop_rate": 0.1,
    "optimizer.learning_rate": 1e-5, "optimizer.new_learning_rate": 1e-4, "optimizer.weight_decay": 1e-4,
    "optimizer.warmup_steps": 1000, "optimizer.decay": "none", "loop.batch_size": 256, "loop.ema_decay": 0.9999,
    "evaluation.naming_steps": 8, "evaluation.naming_guidance_scale": 4, "evaluation.guidance_scale": 4,
    "evaluation.num_inference_steps": 50,
}  # fmt: skip
# What captions and §4.3 say of the models of a table. Table 6's caption: trained "without enlarging the learning rate,
# freeze T, and deep fusion blocks". Its rows are the models of Tables 7 and 8 too (docs/decisions.md, row 23).
SCRATCH = {"base.unet_weights": "random", "optimizer.learning_rate": 1e-4}
WEAKER = {"optimizer.new_learning_rate": 1e-5, "text.is_trained": True, "query_stream.fusion": "head"}
ROWS = {  # what each recipe changes of the main one
    "one-way": {"query_stream.fusion": "one_way"},  # ours
    "lora": {"trained": "lora", "optimizer.learning_rate": 1e-4},  # ours
    "generation": {"objective.task": "generation"},  # Table 3
    "scratch-discriminate": {**SCRATCH, "objective.task": "alignment", "evaluation.prompts": []},  # Table 4
    "scratch-generate": {**SCRATCH, "objective.task": "generation"},
    "scratch-both": SCRATCH,
    "text-trained": {"text.is_trained": True},  # Table 5
    "one-rate": {"optimizer.new_learning_rate": 1e-5},
    "gamma-1": {**WEAKER, "query_stream.gamma": 1},  # Table 6
    "gamma-0.1": {**WEAKER, "query_stream.gamma": 0.1},
    "gamma-0.01": {**WEAKER, "query_stream.gamma": 0.01},
}
HEADS = {  # the paper's numbers, which a recipe's head states
    "": "27.4 25.9 33.6 9.8 2.3e-3 24.4 9.80 25.92 33.60", "generation": "10.8 2.9e-3 24.6",
    "scratch-discriminate": "11.31 15.82", "scratch-generate": "43.47", "scratch-both": "41.05 12.96 19.72",
    "text-trained": "11.56 25.72 29.37", "one-rate": "10.98 24.98 31.08", "gamma-1": "11.90 22.35 28.59",
    "gamma-0.1": "11.62 22.97 29.08",
    "gamma-0.01": "11.52 23.45 28.64 14.85 23.14 23.15 23.12 23.13",
}  # fmt: skip


def flat(tree, prefix=""):
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def numbers_of(name):
    return flat(load_recipe(DiffDisRecipe, name).model_dump(mode="json"))


def head_of(name, recipes_dir):
    return "".join(line for line in (recipes_dir / f"{name}.yaml").open() if line.startswith("#"))


@pytest.fixture(scope="module")
def recipes_dir():
    from importlib.resources import files

    return files("palindiff.training") / "recipes"


def test_the_main_recipe_has_the_paper_s_hyper_parameters():
    numbers = numbers_of(MAIN)
    assert {key: numbers[key] for key in PAPER} == PAPER
    assert numbers["loop.num_steps"] == round(6 * 3_318_333 / 256), "six epochs of the pairs that CC3M lists"


def test_every_row_has_a_recipe_and_every_recipe_a_row():
    assert {name for name in recipe_names() if name.startswith(MAIN)} == {MAIN, *(f"{MAIN}-{row}" for row in ROWS)}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_s_recipe_changes_its_setting_alone(row):
    main, here = numbers_of(MAIN), numbers_of(f"{MAIN}-{row}")
    assert {key: here[key] for key in here if here[key] != main[key]} == {
        key: value for key, value in ROWS[row].items() if value != main[key]
    }


@pytest.mark.parametrize("row", HEADS)
def test_the_head_of_a_recipe_states_the_paper_s_numbers(row, recipes_dir):
    head = head_of(f"{MAIN}-{row}" if row else MAIN, recipes_dir)
    assert set(HEADS[row].split()) <= set(re.findall(r"\d+\.\d+(?:e-\d)?", head))
    assert re.search(r"Table \d", head)


@pytest.mark.parametrize(
    ("size", "patch", "width", "layers", "numbers"),
    [
        ("l14", 14, 1024, 24, "22.7 21.1 29.9 20.3 14.7 11.3 19.1"),
        ("b16", 16, 768, 12, "20.6 19.7"),
        ("b32", 32, 768, 12, "20.8 16.7"),
    ],
)
def test_the_paper_s_rivals_have_four_times_the_batch_and_3_3_times_the_epochs(
    size, patch, width, layers, numbers, recipes_dir
):
    name = f"clip-cc3m-{size}"
    recipe, main = load_recipe(ContrastiveRecipe, name), load_recipe(DiffDisRecipe, MAIN)
    assert recipe.loop.batch_size == 4 * main.loop.batch_size
    epochs = [each.loop.num_steps * each.loop.batch_size / 3_318_333 for each in (recipe, main)]
    assert epochs[0] / epochs[1] == pytest.approx(3.3, abs=0.05)
    assert recipe.optimizer.decay_steps == recipe.loop.num_steps
    assert recipe.text.source == main.text.source
    assert recipe.text.is_trained
    shape = recipe.image_encoder
    assert (shape.image_size_px, shape.patch_size_px, shape.width, shape.num_layers) == (224, patch, width, layers)
    head = head_of(name, recipes_dir)
    assert set(numbers.split()) <= set(re.findall(r"\d+\.\d+", head))
    assert "Table 1" in head
