"""`palindiff init`: a checkpoint to start from, out of Stable Diffusion and the CLIP of its text encoder."""

from pathlib import Path
from typing import Annotated, Any

import typer

from palindiff.atomic import atomic_folder, check_is_free
from palindiff.cli.output_option import DryRunOption, JsonOption, print_json, print_plan

DEFAULT_RECIPE = "diffdis-cc3m-one-way"
PARTS = ("unet", "vae", "text_encoder", "query_stream")


SourceOption = Annotated[
    str,
    typer.Option(
        "--from", metavar="DIR|NAME|FILE", help="Stable Diffusion 1.x or 2.x: folder, Hub name or .safetensors file."
    ),
]
TextOption = Annotated[
    str,
    typer.Option("--text", metavar="DIR|NAME", help="CLIP that its text encoder was taken from: folder or Hub name."),
]
OutputOption = Annotated[Path, typer.Option("--output", metavar="DIR", help="New folder of the checkpoint.")]
RecipeOption = Annotated[
    str, typer.Option("--recipe", metavar="NAME|FILE.yaml", help="Recipe whose query stream to draw, untrained.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value of it, such as query_stream.gamma=1."),
]
VariantOption = Annotated[
    str | None, typer.Option("--variant", help="Weights to read, such as fp16.", show_default="the plain ones")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="DIR", help="Folder that describes a .safetensors file of Stable Diffusion 2.x."),
]


def init(
    source: SourceOption,
    text: TextOption,
    output: OutputOption,
    recipe: RecipeOption = DEFAULT_RECIPE,
    overrides: SetOption = None,
    variant: VariantOption = None,
    config: ConfigOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the new weights.")] = 0,
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Make a checkpoint that generates as Stable Diffusion does, and can be trained to name.

    The folder is that Stable Diffusion's with two more sub-folders. Its query stream is new: train it before naming.

    \b
    Examples:
      palindiff init --from stable-diffusion-v1-1 --text clip-vit-large-patch14 --output start
      palindiff init --from model.safetensors --text clip-vit-large-patch14 --recipe diffdis-cc3m --output start
      palindiff train --recipe diffdis-cc3m --set base.source=start --set data.path=cc3m
    """
    from palindiff.training.recipes.schema import DiffDisRecipe
    from palindiff.training.recipes.yaml_files import load_recipe

    check_is_free(output)
    query_stream = load_recipe(DiffDisRecipe, recipe, overrides or []).query_stream
    told = {"from": source, "text": text, "output": str(output), "seed": seed}
    if dry_run:
        print_plan(told | {"query_stream": str(query_stream)}, as_json)
        return
    counts = _write(output, (source, text, query_stream), {"seed": seed, "variant": variant, "config": config})
    if as_json:
        print_json(told | {"parameters": counts})
        return
    for name, count in counts.items():
        typer.echo(f"{name}: {count:,} parameters{', new' if name == 'query_stream' else ''}")
    typer.echo(f"written: {output}. It generates; train it before it names.")


def _write(output: Path, arguments: tuple[Any, ...], options: dict[str, Any]) -> dict[str, int]:
    """Load and write the checkpoint, whole or not at all, and count its parts' parameters."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    from palindiff.inference.pipeline import PalindiffPipeline

    with atomic_folder(output) as folder:
        pipeline = PalindiffPipeline.from_stable_diffusion(*arguments, **options)
        pipeline.save_pretrained(folder)
    return {name: sum(weight.numel() for weight in getattr(pipeline, name).parameters()) for name in PARTS}
