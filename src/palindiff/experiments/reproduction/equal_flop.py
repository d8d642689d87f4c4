"""Trainings of equal cost: the FLOP of a step, and a schedule for another number of steps.

Not here: counting (`palindiff.training.training_cost`), which runs cost as much as which (`model_runs.py`).
"""

from palindiff.training.recipes.schema import Recipe
from palindiff.training.recipes.yaml_files import config_hash, named_paths
from palindiff.training.training_cost import tflop_of_step

_STEP_TFLOP: dict[str, float] = {}  # of recipes already counted, by config hash and the paths of weights


def step_tflop(recipe: Recipe) -> float:
    """TFLOP of one step, counted once for all seeds and lengths of a recipe; a VAE's counts nothing."""
    one_step = recipe.model_copy(update={"loop": recipe.loop.model_copy(update={"seed": 0, "num_steps": 1})})
    key = f"{config_hash(one_step)} {named_paths(recipe)}"
    if key not in _STEP_TFLOP:
        _STEP_TFLOP[key] = tflop_of_step(recipe) or 0.0
    return _STEP_TFLOP[key]


def scaled_schedule(recipe: Recipe, steps: int) -> tuple[str, ...]:
    """Scale warm-up and decay with the number of steps -> KEY=VALUE."""
    share = steps / recipe.loop.num_steps
    optimizer = recipe.optimizer
    return (
        f"optimizer.warmup_steps={round(optimizer.warmup_steps * share)}",
        f"optimizer.decay_steps={round(optimizer.decay_steps * share)}",
    )
