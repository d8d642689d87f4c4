"""`palindiff generate`: paint pictures from words."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palindiff.cli.listed import check_texts, read_lines
from palindiff.cli.model_option import DEFAULT_MODEL, DeviceOption, ModelOption, open_model
from palindiff.cli.told_option import DryRunOption, JsonOption, folded_table, print_count, print_json, print_plan
from palindiff.cli.walk_option import GuidanceOption
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
    guidance_scale: GuidanceOption = PAINTING_GUIDANCE_SCALE,
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
    wanted = [*(prompts or []), *read_lines(prompts_file, "PROMPT")]
    check_texts(wanted, "prompt", "PROMPT or --prompts", may_repeat=True)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"`{output}` is a file. Expected a folder. Name another with --output.")
    settings = {"model": model, "num_inference_steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    if dry_run:
        plan = {"output": str(output), "pictures_of_each_prompt": num_pictures, "prompts": wanted}
        print_plan(settings | plan, as_json)
        return
    _check_writable(output)
    pipeline = open_model(model, device)
    _check_steps(steps, pipeline.scheduler.config.num_train_timesteps)
    from palindiff.inference.painted_files import PaintOptions, paint_files

    options = PaintOptions(num_pictures, seed, guidance_scale, steps, batch_size)
    painted = []
    for each in paint_files(pipeline, wanted, options, output, model):
        painted.append(each)
        print_count(len(painted), len(wanted) * num_pictures)
    if as_json:
        print_json(settings | {"pictures": [{**asdict(each), "path": str(each.path)} for each in painted]})
    else:
        _print(painted, output)


def _check_writable(output: Path) -> None:
    """Try to write below a folder, or where it will be, before time goes into what is written there.

    Raises: PermissionError.
    """
    nearest = next(each for each in (output, *output.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise PermissionError(
            f"`{output}` cannot be written ({error.strerror}). Expected a folder that takes new files. Name another "
            "with --output."
        ) from error


def _check_steps(steps: int, num_train_timesteps: int) -> None:
    if steps > num_train_timesteps:
        raise ValueError(
            f"--steps is {steps}. Expected 1 to {num_train_timesteps}: the model's scheduler has no more. Give fewer."
        )


def _print(painted: "list[PaintedFile]", output: Path) -> None:
    from rich.console import Console
    from rich.markup import escape

    table = folded_table(f"painted into {output}", "prompt", "seed", "file")
    for each in painted:
        table.add_row(escape(each.prompt), str(each.seed), escape(each.path.name))
    Console().print(table)
