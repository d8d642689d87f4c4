"""`palindiff train-vae`: train the VAE of a recipe."""

from palindiff.cli.recipe_option import (
    DryRunOption,
    OutputOption,
    RecipeOption,
    RecipeOptions,
    SeedOption,
    SetOption,
    run_recipe,
)


def train_vae(
    recipe: RecipeOption = "vae-emoji",
    overrides: SetOption = None,
    seed: SeedOption = None,
    output: OutputOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Train the VAE of a recipe.

    It turns images into latents and back. Writes DIR/vae in fp16, DIR/log.jsonl, DIR/recipe.yaml and the states
    that a stopped run goes on from.

    \b
    Examples:
      palindiff train-vae --dry-run
      palindiff train-vae --output runs/vae
      palindiff train-vae --set loop.num_steps=200 --set data.path=images --output runs/short
    """
    from palindiff.training.cost.weights_memory import describe_vae
    from palindiff.training.train_vae import VaeRecipe
    from palindiff.training.train_vae import train_vae as train

    def describe(chosen: VaeRecipe) -> dict[str, int]:
        return describe_vae(chosen) | {"steps": chosen.loop.num_steps}

    run_recipe(RecipeOptions(recipe, overrides or [], seed, output, dry_run), VaeRecipe, describe, train)
