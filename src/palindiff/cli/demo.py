"""`palindiff demo`: one page on which one model generates, names and finds."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option(help="Folder of the page, index.html.")] = Path("demo"),
    data: Annotated[Path, typer.Option(help="Folder of the emoji set; drawn there if absent.")] = Path("data/emoji"),
    train: Annotated[
        bool, typer.Option("--train", help="Train a model first, instead of showing the bundled one.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, max=100_000, help="How long --train trains, in minutes.", show_default="10"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of training and of the generated images.")] = 0,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Measure generation too (800 images) and write all numbers there.",
            show_default="measure naming only, write nothing",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Progress what would be done, and stop.")] = False,
) -> None:
    """Make a page on which one model generates from captions, names unseen images, and finds images by words.

    \b
    Examples:
      palindiff demo
      palindiff demo --train --minutes 10 --output demo-trained
      palindiff demo --results results/demo.json
    """  # fmt: skip
    if minutes is not None and not train:
        raise ValueError(
            f"`--minutes` is {minutes:g} without `--train`. Expected both or neither: what ships is trained. "
            "Add --train."
        )
    minutes = 10 if minutes is None else minutes
    kind = f"a model trained for {minutes:g} minutes" if train else "the bundled model"
    if dry_run:
        typer.echo(f"would draw {data} if absent, measure {kind}, and write {output / 'index.html'}")
        return
    from palindiff.experiments.demo import DemoOptions, run_demo

    options = DemoOptions(output, data, minutes if train else None, seed, results)
    command = shlex.join(["palindiff", *sys.argv[1:]])
    target = run_demo(options, command, lambda told: typer.echo(f"{told} ..."))
    typer.echo(f"written: {target}")
