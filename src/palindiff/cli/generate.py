"""`palindiff generate`: paint pictures from words."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palindiff.cli.listed import check_texts, read_lines
from palindiff.cli.model_option import DEFAULT_MODEL, DeviceOption, ModelOption, open_model
from palindiff.cli.told_option import DryRunOption, JsonOption, print_json, print_plan
from palindiff.inference.defaults import PAINTING_GUIDANCE_SCALE, PAINTING_STEPS

if TYPE_CHECKING:
    from palindiff.inference.painted_files import PaintedFile

MAX_SEED = 2**62


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="What to paint.")] = None,
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Text file with more prompts, one a line.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Folder of the PNG files; no file there is replaced.")
    ] = Path("paintings"),
    num_pictures: Annotated[int, typer.Option("--num", min=1, help="Pictures of each prompt.")] = 1,
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of each prompt's first picture; the rest count on."),
    ] = 0,
    guidance_scale: Annotated[
        float, typer.Option("--guidance-scale", min=1, help="1 + w of the paper's guidance; 1 turns it off.")
    ] = PAINTING_GUIDANCE_SCALE,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps from noise to a picture.")] = PAINTING_STEPS,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", min=1, help="Pictures painted at once; changes them by float rounding alone."),
    ] = 8,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Paint pictures from words, each from its own seed.

    Every PNG says in its metadata how it was made: prompt, seed, guidance scale, steps, model, version.

    \b
    Examples:
      palindiff generate "a flat emoji of a red apple"
      palindiff generate "a red apple" "a blue car" --num 4 --seed 7 --output paintings
      palindiff generate --prompts prompts.txt --model runs/first/checkpoint --json
    """
    wanted = [*(prompts or []), *read_lines(prompts_file)]
    check_texts(wanted, "prompt", "PROMPT or --prompts", may_repeat=True)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"`{output}` is a file. Expected a folder. Name another with --output.")
    settings = {"model": model, "num_inference_steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    if dry_run:
        plan = {"output": str(output), "pictures_of_each_prompt": num_pictures, "prompts": wanted}
        print_plan(settings | plan, as_json)
        return
    pipeline = open_model(model, device)
    from palindiff.inference.painted_files import PaintOptions, paint_files

    options = PaintOptions(num_pictures, seed, guidance_scale, steps, batch_size)
    painted = []
    for each in paint_files(pipeline, wanted, options, output, model):
        painted.append(each)
        typer.echo(f"\r{len(painted)} of {len(wanted) * num_pictures} pictures", nl=False, err=True)
    typer.echo(err=True)
    if as_json:
        print_json(settings | {"pictures": [{**asdict(each), "path": str(each.path)} for each in painted]})
    else:
        _print(painted, output)


def _print(painted: "list[PaintedFile]", output: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("prompt", "seed", "file", title=escape(f"painted into {output}"))
    for each in painted:
        table.add_row(escape(each.prompt), str(each.seed), escape(each.path.name))
    Console().print(table)
