"""What the training of a model took, from the files of its run.

Not here: what a run will take (`cost/estimate.py`).
"""

import json
from pathlib import Path

from palindiff.training.cost.flops import contrastive_step_tflop, step_tflop, unidiff_step_tflop
from palindiff.training.cost.weight_free import fake_run, fake_unidiff
from palindiff.training.loop.run_log import LOG_FILE, read_log, training_cost
from palindiff.training.recipes.schema import ContrastiveRecipe, DiffDisRecipe, Recipe
from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe
from palindiff.training.recipes.yaml_files import RECIPE_FILE, load_recipe
from palindiff.training.trainer import recipe_classes

COST_FILE = "training_cost.json"  # beside a checkpoint that several runs made one after another: {"tflop": ...}


def training_tflop(folder: Path) -> float | None:
    """TFLOP of the steps of a run, forward and backward; features that are computed before the first are left out.

    Neither are those of the weights that a run started from, such as a pre-trained text encoder or a base's U-Net,
    except where the folder has a file that says them.

    folder: of a run, or of the model in it.
    Returns: None if there is no recipe and log beside the model, or the recipe is of a VAE.
    Raises: ValueError if the recipe cannot be read; FileNotFoundError or ModuleNotFoundError if the config of the text
        encoder that it names cannot be had.
    """
    if (folder / COST_FILE).is_file():
        return float(json.loads((folder / COST_FILE).read_text(encoding="utf-8"))["tflop"])
    runs = [run for run in (folder, folder.parent) if (run / RECIPE_FILE).is_file() and (run / LOG_FILE).is_file()]
    log = read_log(runs[0] / LOG_FILE) if runs else []
    if not log:
        return None
    recipe, (steps, _) = load_recipe(recipe_classes(), str(runs[0] / RECIPE_FILE)), training_cost(log)
    of_step = tflop_of_step(recipe)
    return None if of_step is None else steps * of_step


def tflop_of_step(recipe: Recipe) -> float | None:
    """TFLOP of one step of a recipe, forward and backward; None for a VAE.

    Raises: as `training_tflop`.
    """
    if isinstance(recipe, ContrastiveRecipe):
        return sum(contrastive_step_tflop(recipe).values())
    if isinstance(recipe, UniDiffRecipe):
        with fake_unidiff(recipe) as unidiff:
            return unidiff_step_tflop(unidiff, recipe)
    if not isinstance(recipe, DiffDisRecipe):
        return None
    with fake_run(recipe) as run:
        return sum(step_tflop(run, recipe).values())
