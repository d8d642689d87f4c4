"""`palindiff demo`: write one page that shows what one model generates, names and finds."""

from pathlib import Path
from typing import Annotated

import typer

from palindiff.cli.output_option import DryRunOption, command_line, print_plan

DEFAULT_MINUTES = 10


def demo(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the page, index.html.")] = Path("demo"),
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the emoji set; it is drawn there if absent.")
    ] = Path("data/emoji"),
    train: Annotated[bool, typer.Option("--train", help="Train a model first, instead of the bundled one.")] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=100_000, help="Training time of --train, minutes.", show_default=f"{DEFAULT_MINUTES}"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of training and of the generated images.")] = 0,
    results: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Evaluate generation too; write all numbers.", show_default="none"),
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Write a page that shows what a model does.

    One model generates images from captions, names images of unseen concepts, and finds images by caption.

    \b
    Examples:
      palindiff demo
      palindiff demo --train --minutes 10 --output demo-trained
      palindiff demo --results results/demo.json
    """
    if minutes is not None and not train:
        raise ValueError(
            f"`--minutes` is {minutes:g} without `--train`. Expected both or neither: the bundled model is trained "
            "already. Add --train, or remove --minutes."
        )
    minutes = (minutes or DEFAULT_MINUTES) if train else None
    if dry_run:
        model = "bundled" if minutes is None else f"trained for {minutes:g} minutes"
        print_plan({"data": f"{data}, drawn if absent", "model": model, "page": output / "index.html"})
        return
    from palindiff.experiments.demo import DemoOptions, run_demo

    options = DemoOptions(output, data, minutes, seed, results)
    target = run_demo(options, command_line(), lambda message: typer.echo(f"{message} ..."))
    typer.echo(f"written: {target}")
