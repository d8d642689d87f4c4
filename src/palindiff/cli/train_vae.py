"""`palindiff train-vae`: train a VAE by a recipe."""

from palindiff.cli import recipe_option as option


def train_vae(
    recipe: option.RecipeOption = "vae-emoji",
    overrides: option.SetOption = None,
    seed: option.SeedOption = None,
    output: option.OutputOption = None,
    dry_run: option.DryRunOption = False,
) -> None:
    """Train a VAE by a recipe, or resume a run.

    A VAE encodes images as latents and decodes them. Writes DIR/vae in fp16, DIR/log.jsonl,
    DIR/recipe.yaml, and DIR/state for resuming.

    \b
    Examples:
      palindiff train-vae --dry-run
      palindiff train-vae --output runs/vae
      palindiff train-vae --set loop.num_steps=200 --set data.path=images --output runs/short
    """
    from palindiff.training.recipes.schema import VaeRecipe

    option.run_recipe(VaeRecipe, recipe, overrides, seed, output, dry_run)
