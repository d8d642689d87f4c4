"""`palindiff train`: train a model by a recipe of any objective."""

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
    """Train a model by a recipe, or resume a run.

    The recipe's `objective.name` chooses what is trained: diffdis, one model for text-to-image generation and
    zero-shot naming; or vae. Writes DIR/checkpoint (a Stable Diffusion folder with two more sub-folders) or DIR/vae,
    DIR/latest (the weights at the last evaluation), DIR/log.jsonl, DIR/recipe.yaml, and DIR/state for resuming.

    \b
    Examples:
      palindiff train --recipe NAME --dry-run
      palindiff train --recipe NAME --output runs/first
      palindiff train --recipe FILE.yaml --set loop.num_steps=2000 --seed 1
      palindiff train --recipe NAME --preset 24gb
      torchrun --nproc_per_node 2 -m palindiff.cli.main train --recipe NAME
      torchrun --nproc_per_node 2 -m palindiff.cli.main train --recipe NAME --set machine.sharding=fsdp
    """
    from palindiff.training.trainer import recipe_classes

    run_recipe(RecipeOptions(recipe, overrides, seed, output, dry_run, preset), recipe_classes())
