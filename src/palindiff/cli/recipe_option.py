"""What every verb that runs a recipe shares: its options, and what happens before and after the training itself."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

R = TypeVar("R", bound="BaseModel")

RecipeOption = Annotated[str, typer.Option("--recipe", metavar="NAME|FILE.yaml", help="Bundled recipe or a file.")]
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
        help="What a card must have on to hold the full-size model: 12gb, 24gb, 40gb or 80gb. Lies below --set.",
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
        help="Folder of the run. The same command goes on where a run was stopped.",
        show_default="runs/ and the recipe's name",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved recipe, its size and its steps; train nothing.")
]


@dataclass(frozen=True)
class RecipeOptions:
    """What the user gave on the command line."""

    recipe: str
    overrides: list[str]
    seed: int | None
    output: Path | None
    dry_run: bool
    preset: str | None = None


def run_recipe(
    options: RecipeOptions,
    model: "type[R]",
    describe: "Callable[[R], Mapping[str, int]]",
    train: "Callable[[R, Path], Mapping[str, float]]",
) -> None:
    """Resolve a recipe and print it; then tell its size, or train it below the output folder and print its numbers."""
    from palindiff.training.recipes.yaml_files import dump_recipe, load_recipe, prepare_run_dir

    seed = [] if options.seed is None else [f"loop.seed={options.seed}"]
    overrides = [*options.overrides, *seed]
    recipe = load_recipe(model, options.recipe, overrides, options.preset)
    preset = [] if options.preset is None else [f"--preset {options.preset}"]
    told = " ".join([options.recipe, *preset, *(f"--set {override}" for override in overrides)])
    if options.dry_run:
        typer.echo(dump_recipe(recipe, told))
        _print_size(describe(recipe))
        return
    output = options.output or Path("runs") / Path(options.recipe).stem
    prepare_run_dir(recipe, output, told)
    _print_once(dump_recipe(recipe, told))
    numbers = train(recipe, output)
    _print_once("".join(f"{name} {value:.4g}\n" for name, value in numbers.items()) + f"written below {output}")


def _print_size(size: "Mapping[str, int]") -> None:
    for name, count in size.items():
        if name == "training_bytes":
            typer.echo(f"memory: {count / 1e6:,.0f} MB for weights, gradients, Adam and EMA; activations come on top")
        else:
            typer.echo(f"{name}: {count:,}")


def _print_once(text: str) -> None:
    """Print on the first of several processes; the launchers of torch and accelerate number them."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(text)
