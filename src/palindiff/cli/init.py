"""`palindiff init`: write a checkpoint to start from, out of Stable Diffusion and CLIP."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from palindiff.atomic import atomic_folder, check_is_free
from palindiff.cli.model_option import hide_progress_bars
from palindiff.cli.output_option import DryRunOption, JsonOption, next_line, print_json, print_plan
from palindiff.cli.recipe_option import RecipeOption, SetOption

DEFAULT_RECIPE = "diffdis-cc3m-one-way"
PARTS = ("unet", "vae", "text_encoder", "query_stream")
SourceOption = Annotated[
    str,
    typer.Option(
        "--from", metavar="DIR|NAME|FILE", help="Stable Diffusion 1.x or 2.x: folder, Hub name or .safetensors file."
    ),
]


def init(
    source: SourceOption,
    text: Annotated[
        str, typer.Option(metavar="DIR|NAME", help="CLIP that its text encoder comes from: folder or Hub name.")
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="New folder of the checkpoint.")],
    recipe: RecipeOption = DEFAULT_RECIPE,
    overrides: SetOption = None,
    variant: Annotated[
        str | None, typer.Option(help="Weight files to read, such as fp16.", show_default="none")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with the configs of a 2.x .safetensors file.", show_default="none"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the new weights.")] = 0,
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Make a checkpoint from Stable Diffusion.

    It generates as that Stable Diffusion does, whose folder it is with two more sub-folders: the recipe's query
    stream, untrained, and its scheduler. Train it before using it for classification or retrieval.

    \b
    Examples:
      palindiff init --from stable-diffusion-v1-1 --text clip-vit-large-patch14 --output start
      palindiff init --from model.safetensors --text clip-vit-large-patch14 --recipe diffdis-cc3m --output joint
      palindiff train --recipe diffdis-cc3m-one-way --set base.source=start --set data.path=cc3m
    """
    from palindiff.training.recipes.schema import DiffDisRecipe
    from palindiff.training.recipes.yaml_files import load_recipe

    check_is_free(output)
    models = load_recipe(DiffDisRecipe, recipe, overrides or [])
    query_stream, query_scheduler = models.query_stream, models.query_scheduler
    settings = {"from": source, "text": text, "output": output, "seed": seed}
    if dry_run:
        print_plan(settings | {"query_stream": str(query_stream), "query_scheduler": str(query_scheduler)}, as_json)
        return
    hide_progress_bars()
    from palindiff.inference.pipeline import PalindiffPipeline

    with atomic_folder(output) as folder:
        pipeline = PalindiffPipeline.from_stable_diffusion(
            source, text, query_stream, query_scheduler=query_scheduler, seed=seed, variant=variant, config=config
        )
        pipeline.save_pretrained(folder)
    counts = {name: sum(weight.numel() for weight in getattr(pipeline, name).parameters()) for name in PARTS}
    if as_json:
        print_json(settings | {"parameters": counts})
        return
    for name, count in counts.items():
        typer.echo(f"{name}: {count:,} parameters{', new' if name == 'query_stream' else ''}")
    typer.echo(f"written: {output}. It generates images; train it before using it for classification or retrieval.")
    given = "".join(f" --set {shlex.quote(each)}" for each in overrides or ())
    base = shlex.quote(f"base.source={output}")
    typer.echo(next_line(f"palindiff train --recipe {shlex.quote(recipe)}{given} --set {base} --set data.path=DIR"))
