"""`palindiff train`: train a model by a recipe of any objective."""

from palindiff.cli import recipe_option as option


def train(
    recipe: option.RecipeOption,
    preset: option.PresetOption = None,
    overrides: option.SetOption = None,
    seed: option.SeedOption = None,
    output: option.OutputOption = None,
    dry_run: option.DryRunOption = False,
) -> None:
    """Train a model by a recipe, or resume a run.

    The recipe's `objective.name` chooses what is trained: diffdis, one model for text-to-image generation and
    zero-shot classification and retrieval; contrastive, an image and a text encoder as in CLIP; unidiff, a CLIP and a
    Stable Diffusion at once; or vae. Writes DIR/checkpoint (a Stable Diffusion folder with two more sub-folders),
    DIR/clip, DIR/unidiff or DIR/vae, DIR/latest (the weights at the last evaluation; not of unidiff), DIR/log.jsonl,
    DIR/recipe.yaml, and DIR/state for resuming.

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

    option.run_recipe(recipe_classes(), recipe, overrides, seed, output, dry_run, preset)
