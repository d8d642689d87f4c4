"""`palindiff train-codec`: train the autoencoder of a recipe."""

from palindiff.cli.recipe_option import (
    DryRunOption,
    OutputOption,
    RecipeOption,
    RecipeOptions,
    SeedOption,
    SetOption,
    run_recipe,
)


def train_codec(
    recipe: RecipeOption = "codec-emoji",
    overrides: SetOption = None,
    seed: SeedOption = None,
    output: OutputOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Train the autoencoder of a recipe.

    It turns pictures into latents and back. Writes DIR/vae in fp16, DIR/log.jsonl, DIR/recipe.yaml and the states
    that a stopped run goes on from.

    \b
    Examples:
      palindiff train-codec --dry-run
      palindiff train-codec --output runs/codec
      palindiff train-codec --set loop.num_steps=200 --set data.path=pictures --output runs/short
    """
    from palindiff.training.codec import CodecRecipe
    from palindiff.training.codec import train_codec as train
    from palindiff.training.footprint import describe_codec

    def describe(chosen: CodecRecipe) -> dict[str, int]:
        return describe_codec(chosen) | {"steps": chosen.loop.num_steps}

    run_recipe(RecipeOptions(recipe, overrides or [], seed, output, dry_run), CodecRecipe, describe, train)
