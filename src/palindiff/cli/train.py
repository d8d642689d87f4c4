"""`palindiff train`: train one model that generates and names, by a recipe."""

import sys
from pathlib import Path

from palindiff.cli.recipe_option import (
    DryRunOption,
    OutputOption,
    PresetOption,
    RecipeOption,
    RecipeOptions,
    SeedOption,
    SetOption,
    run_recipe,
)


def train(
    recipe: RecipeOption,
    preset: PresetOption = None,
    overrides: SetOption = None,
    seed: SeedOption = None,
    output: OutputOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Train one model that generates and names.

    Both tasks go through the same U-Net at every step, as in DiffDis. Writes DIR/checkpoint (a Stable Diffusion folder
    with two more sub-folders), DIR/log.jsonl, DIR/recipe.yaml and the states that a stopped run goes on from.

    \b
    Examples:
      palindiff train --recipe NAME --dry-run
      palindiff train --recipe NAME --output runs/first
      palindiff train --recipe FILE.yaml --set loop.num_steps=2000 --seed 1
      palindiff train --recipe NAME --preset 24gb
      torchrun --nproc_per_node 2 -m palindiff.cli.main train --recipe NAME
      torchrun --nproc_per_node 2 -m palindiff.cli.main train --recipe NAME --set machine.sharding=fsdp
    """
    from palindiff.experiments.evaluators import evaluators
    from palindiff.training.cost.estimate import describe as describe_models
    from palindiff.training.loop.run_log import read_log
    from palindiff.training.train_diffdis import Recipe, train_recipe

    def describe(chosen: Recipe) -> dict[str, int]:
        return describe_models(chosen) | {"steps": chosen.loop.num_steps}

    def train_and_report(chosen: Recipe, folder: Path) -> dict[str, float]:
        train_recipe(chosen, folder, evaluators, tell=_show_progress)
        return read_log(folder / "log.jsonl")[-1]

    options = RecipeOptions(recipe, overrides or [], seed, output, dry_run, preset)
    run_recipe(options, Recipe, describe, train_and_report)


def _show_progress(what: str, done: int, total: int) -> None:
    """Count what is computed before the first step: one line that changes on a terminal, one at the end elsewhere."""
    if done == total or sys.stderr.isatty():
        print(f"{what}: {done:,} of {total:,}", end="\n" if done == total else "\r", file=sys.stderr, flush=True)
