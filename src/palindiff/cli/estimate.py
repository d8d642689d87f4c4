"""`palindiff estimate`: estimate what a run costs, before anything is trained."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from palindiff.cli.output_option import JsonOption, print_json, print_table
from palindiff.cli.recipe_option import PresetOption, RecipeOption, SetOption

if TYPE_CHECKING:
    from rich.text import Text

    from palindiff.training.cost.estimate import Estimate

BYTE_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
WORK_UNITS = ((1.0, "TFLOP"), (1e-3, "GFLOP"), (1e-6, "MFLOP"))
MEMORY_NOTES = {
    "exchange": "buffers in which processes combine gradients",
    "frozen": "the VAE, and what else is not trained",
    "activations": "their peak, with the batch and the bf16 copies of weights",
    "peak": "less than the sum: activations are freed as gradients are allocated",
}


def estimate(
    recipe: RecipeOption,
    overrides: SetOption = None,
    preset: PresetOption = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Training images, for the disk size of cached features.", show_default="none"),
    ] = None,
    device: Annotated[
        Literal["gpu", "cpu"], typer.Option("--device", help="Kind of device; bf16 and attention differ in memory.")
    ] = "gpu",
    device_tflops: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0.001,
            help="Sustained TFLOP/s of one device (not its peak), to estimate time.",
            show_default="none",
        ),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes, each with its own device.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Estimate what a run of a DiffDis or UniDiff recipe costs.

    Prints parameters, memory, work, disk and time. Reads the recipe and configs; no weights, no data. Memory is that
    of one process while it trains, 1 GB = 10^9 bytes, without that of the driver, kernels and the allocator.

    \b
    Examples:
      palindiff estimate --recipe emoji --device cpu
      palindiff estimate --recipe diffdis-cc3m --preset 24gb
      palindiff estimate --recipe FILE.yaml --set loop.batch_size=256 --images 3000000 --json
      palindiff estimate --recipe adapt --set trained=all --set loop.grad_cache_size=8
      palindiff estimate --recipe FILE.yaml --processes 8 --device-tflops 150
    """
    from palindiff.training.cost.estimate import Hardware
    from palindiff.training.cost.estimate import estimate as estimate_run
    from palindiff.training.recipes.schema import DiffDisRecipe
    from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe
    from palindiff.training.recipes.yaml_files import load_recipe
    from palindiff.training.trainer import recipe_classes

    hardware = Hardware(device=device, processes=processes, device_tflops=device_tflops)
    loaded = load_recipe(recipe_classes(), recipe, overrides or [], preset)
    if not isinstance(loaded, DiffDisRecipe | UniDiffRecipe):
        raise ValueError(
            f"`objective.name` of `{recipe}` is '{loaded.objective_name}' in `palindiff estimate`. Expected "
            f"'diffdis' or 'unidiff', whose parts are estimated. Use `palindiff train --recipe {recipe} --dry-run` "
            "for parameters and memory."
        )
    found = estimate_run(loaded, hardware, images)
    settings = {"recipe": recipe, "preset": preset, "set": overrides or [], "images": images, **hardware.model_dump()}
    if as_json:
        print_json(settings | found.model_dump())
        return
    print_table(f"estimate of {recipe}", ["", ""], *_sections(found, settings))


def _sections(found: "Estimate", settings: Mapping[str, object]) -> "Iterator[list[tuple[str | Text, str]]]":
    """Write an estimate as sections of a table: a title, then lines of a name and a value."""
    parameters, memory, work = found.parameters, found.memory_bytes.model_dump(), found.tflop
    disk, time = found.disk_bytes, found.time
    in_bytes, in_flop = partial(scaled, units=BYTE_UNITS), partial(scaled, units=WORK_UNITS)
    total = {} if disk.total is None else {f"{settings['images']:,} images": disk.total}
    yield _section("parameters", parameters.parts | {"trained": parameters.trained})
    if parameters.new:
        yield _section("of the query stream" if "query_stream" in parameters.parts else "of them new", parameters.new)
    yield _section(f"memory of a process, {settings['device']}", memory, in_bytes, MEMORY_NOTES)
    yield _section("work of a step", {**work.step, "total": work.whole_step}, in_flop)
    yield _section("work of naming an image", {**work.named_image, "total": work.whole_named_image}, in_flop)
    yield _section("disk", {"an image": disk.image, "a caption": disk.caption} | total, in_bytes)
    if time is not None:
        lines = {
            "a step": f"{time.step_s:.3g} s",
            "the run": f"{time.hours:,.1f} hours",
            "trained on": f"{time.images_per_s:,.1f} images a second",
            "named": f"{time.named_images_per_s:,.1f} images a second on one device",
        }
        yield _section(f"time, {settings['processes']} x {settings['device_tflops']:g} TFLOP/s", lines, str)


def _section(
    title: str, values: Mapping[str, Any], write: Callable[[Any], str] = "{:,}".format, notes: Mapping[str, str] = {}
) -> "list[tuple[str | Text, str]]":
    """Make the rows of a title and of named values, each written as text, maybe with a note."""
    from rich.text import Text

    lines = [(f"  {name}", f"{write(value)}  {notes.get(name, '')}".rstrip()) for name, value in values.items()]
    return [(Text(title, "bold"), ""), *lines]


def scaled(number: float, units: tuple[tuple[float, str], ...]) -> str:
    """Write a number in the largest unit in which it is at least one."""
    size, name = next((unit for unit in units if number >= unit[0]), units[-1])
    return f"{number / size:,.2f} {name}"
