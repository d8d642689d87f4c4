"""`palindiff export`: write the stock Stable Diffusion folder of a model."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from palindiff.atomic import atomic_folder, check_is_free
from palindiff.cli.model_option import DEFAULT_MODEL, ModelOption, open_model
from palindiff.cli.output_option import DryRunOption, print_plan


def export(
    output: Annotated[Path, typer.Option(metavar="DIR", help="New or empty folder.")],
    model: ModelOption = DEFAULT_MODEL,
    variant: Annotated[
        Literal["fp16", "bf16"] | None,
        typer.Option("--variant", help="Type of the weights, also in their file names.", show_default="float32"),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Split larger weight files: 5GB, 200MB, ...", show_default="none"),
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Write a model as a stock Stable Diffusion folder. It generates the same images; it cannot classify or retrieve.

    The folder is written whole or not at all, with the model card if the model has one.

    \b
    Examples:
      palindiff export --model emoji --output emoji-generator
      palindiff export --model runs/first/checkpoint --output generator --variant fp16 --max-shard-size 2GB
    """
    if max_shard_size is not None and not re.fullmatch(r"\d+ ?[KMGT]i?B", max_shard_size, re.IGNORECASE):
        raise ValueError(f"--max-shard-size is {max_shard_size}. Expected a number and a unit, such as 5GB or 200MB.")
    check_is_free(output)
    if dry_run:
        print_plan({"model": model, "output": output, "variant": variant, "max_shard_size": max_shard_size})
        return
    with atomic_folder(output) as folder:
        import torch

        from palindiff.pretrained.saving import export_stable_diffusion

        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(variant or "")
        export_stable_diffusion(open_model(model, "cpu", dtype), folder, variant, max_shard_size)
    num_bytes = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    typer.echo(f"{output}: Stable Diffusion, {num_bytes / 1e6:,.1f} MB")
