"""Training by a recipe, whatever its objective: `objective.name` chooses the trainer.

Here: the table of trainers, and the functions that commands and experiments call. Not here: what a trainer does
(`base_trainer.py`).
"""

from pathlib import Path
from typing import Any

from palindiff.training.base_trainer import Trainer
from palindiff.training.cost.memory import training_bytes
from palindiff.training.features.dataset import Progress
from palindiff.training.loop.device import make_accelerator
from palindiff.training.loop.distributed import is_sharded
from palindiff.training.loop.loop_config import check_shares
from palindiff.training.loop.optimizer import check_optimizer
from palindiff.training.recipes.schema import Recipe
from palindiff.training.train_contrastive import ContrastiveTrainer
from palindiff.training.train_diffdis import DiffDisTrainer
from palindiff.training.train_unidiff import UniDiffTrainer
from palindiff.training.train_vae import VaeTrainer

TRAINERS: dict[str, type[Trainer[Any]]] = {  # by `objective.name`
    "diffdis": DiffDisTrainer,
    "contrastive": ContrastiveTrainer,
    "unidiff": UniDiffTrainer,
    "vae": VaeTrainer,
}


def recipe_classes() -> dict[str, type[Recipe]]:
    """The recipe class of each objective, from which `load_recipe` chooses."""
    return {name: trainer.recipe_class for name, trainer in TRAINERS.items()}


def make_trainer(recipe: Recipe, output: Path, progress: Progress | None = None) -> Trainer[Any]:
    """Start the accelerator, check what can be checked before features are computed, and choose the trainer.

    Raises: ModuleNotFoundError if a package is missing; ValueError if the batch does not divide evenly over processes
        and micro-batches, or the optimizer cannot be sharded.
    """
    accelerator = make_accelerator(recipe.machine, output)
    check_shares(recipe.loop, accelerator.num_processes)
    check_optimizer(recipe.optimizer, is_sharded(recipe.machine, accelerator.num_processes))
    return TRAINERS[recipe.objective_name](recipe, output, accelerator, progress)


def train_recipe(recipe: Recipe, output: Path, show_progress: bool = True, progress: Progress | None = None) -> Any:
    """Train below `output` and write the EMA weights there; the same call resumes a run that was stopped.

    progress: is called while features are computed.
    Returns: the trained model: a PalindiffPipeline for "diffdis", a ClipModel for "contrastive", both a ClipModel and
        a StableDiffusionPipeline for "unidiff", an AutoencoderKL for "vae".
    """
    return make_trainer(recipe, output, progress).train(show_progress)


def describe(recipe: Recipe) -> dict[str, int]:
    """Count the parameters of each part, those that are trained, the bytes they take in training, and the steps."""
    counts = TRAINERS[recipe.objective_name].count_parameters(recipe)
    return counts | {"training_bytes": training_bytes(counts["trained"], recipe), "steps": recipe.loop.num_steps}
