"""What every verb that runs a recipe shares: its options, and what happens before and after the training itself."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palindiff.cli.output_option import next_line

if TYPE_CHECKING:
    from tqdm import tqdm

    from palindiff.training.recipes.schema import Recipe

RecipeOption = Annotated[
    str, typer.Option("--recipe", metavar="NAME|FILE.yaml", help="Bundled recipe, such as emoji-quick, or a file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one value of the recipe, such as loop.num_steps=100. Repeatable."
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="Settings for the full-size model, estimated to fit a GPU: 12gb, 24gb, 40gb, 80gb. --set overrides them.",
        show_default="none",
    ),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", help="Short for --set loop.seed=N.", show_default="the recipe's, usually 0")
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="DIR",
        help="Folder of the run. Rerun the same command to resume.",
        show_default="runs/ and the recipe's name",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved recipe, its size and its steps; train nothing.")
]


def run_recipe(
    models: "type[Recipe] | Mapping[str, type[Recipe]]",
    name: str,
    overrides: list[str] | None,
    seed: int | None,
    output: Path | None,
    dry_run: bool,
    preset: str | None = None,
) -> None:
    """Resolve a recipe and print it; then print its size, or train it and print the last numbers of its log.

    models: the recipe's class, or the classes to choose from by `objective.name`; the rest as on the command line.
    """
    from palindiff.training.loop.run_log import LOG_FILE, read_log
    from palindiff.training.recipes.yaml_files import dump_recipe, load_recipe, prepare_run_dir
    from palindiff.training.trainer import TRAINERS, describe, train_recipe

    changes = [*(overrides or []), *([] if seed is None else [f"loop.seed={seed}"])]
    recipe: Recipe = load_recipe(models, name, changes, preset)
    origin = " ".join([name, *([f"--preset {preset}"] if preset else []), *(f"--set {each}" for each in changes)])
    if dry_run:
        typer.echo(dump_recipe(recipe, origin))
        size = describe(recipe)
        megabytes = size.pop("training_bytes") / 1e6
        typer.echo("\n".join(f"{part}: {count:,}" for part, count in size.items()))
        typer.echo(f"memory: {megabytes:,.0f} MB for weights, gradients, Adam and EMA, without activations")
        return
    output = output or Path("runs") / Path(name).stem
    prepare_run_dir(recipe, output, origin)
    _print_once(dump_recipe(recipe, origin))
    train_recipe(recipe, output, progress=Progress())
    last = read_log(output / LOG_FILE)[-1:]  # on the main process's disk alone
    numbers = [f"{key} {value:.4g}" for line in last for key, value in line.items()]
    trainer = TRAINERS[recipe.objective_name]
    command = trainer.next_command.format(result=shlex.quote(str(output / trainer.result_name)))
    follows = [next_line(command)] if command else []
    _print_once("\n".join([*numbers, f"written to {output}", *follows]))


def _print_once(text: str) -> None:
    """Print on the first of several processes, by the number that the launchers of torch and accelerate set."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(text)


class Progress:
    """Counts what is computed before the first step, with an estimate of what is left; every minute off a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` are computed."""
        from tqdm import tqdm

        if self._bar is None and done < total:
            interval_s = 0.1 if sys.stderr.isatty() else 60
            self._bar = tqdm(desc=what, total=total, initial=done, unit="", mininterval=interval_s, leave=False)
        elif self._bar is not None:
            self._bar.update(done - self._bar.n)
        if done == total:
            if self._bar is not None:
                self._bar.close()
            self._bar = None
            print(f"{what}: {done:,} of {total:,}", file=sys.stderr, flush=True)
