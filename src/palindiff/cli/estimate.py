"""`palindiff estimate`: what a recipe costs, before anything is trained."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from palindiff.cli.output_option import JsonOption, folded_table, print_json
from palindiff.cli.recipe_option import PresetOption, RecipeOption, SetOption

if TYPE_CHECKING:
    from palindiff.training.cost.estimate import Estimate, Hardware

BYTE_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
WORK_UNITS = ((1.0, "TFLOP"), (1e-3, "GFLOP"), (1e-6, "MFLOP"))
MEMORY_NOTES = {
    "exchange": "what gradients are gathered in",
    "frozen": "VAE, text encoder, what the task leaves out",
    "activations": "at most at once, with the batch and bf16 copies of weights",
    "peak": "the worst moment; gradients come as activations go",
}


def estimate(
    recipe: RecipeOption,
    overrides: SetOption = None,
    preset: PresetOption = None,
    images: Annotated[
        int | None,
        typer.Option("--images", min=1, help="Images to train on, for the size of the feature cache on disk."),
    ] = None,
    device: Annotated[
        Literal["gpu", "cpu"],
        typer.Option("--device", help="What trains; they differ in what bf16 keeps in fp32, and in attention."),
    ] = "gpu",
    device_tflops: Annotated[
        float | None,
        typer.Option(
            "--device-tflops",
            metavar="X",
            min=0.001,
            help="TFLOP a second that one device sustains, which is well below its peak. Without it no time is told.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Processes that share a step, each with a device of its own.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Progress what a recipe costs: parameters, memory, work, disk and time.

    Reads the recipe and configs; no weights, no data. Memory is that of one process while it trains, 1 GB = 10^9
    bytes, without what the driver, kernels and the allocator take for themselves.

    \b
    Examples:
      palindiff estimate --recipe emoji --device cpu
      palindiff estimate --recipe diffdis-cc3m --preset 24gb
      palindiff estimate --recipe FILE.yaml --set loop.batch_size=256 --images 3000000 --json
      palindiff estimate --recipe FILE.yaml --processes 8 --device-tflops 150
    """
    from palindiff.training.cost.estimate import Hardware
    from palindiff.training.cost.estimate import estimate as estimate_run
    from palindiff.training.recipes.schema import DiffDisRecipe
    from palindiff.training.recipes.yaml_files import load_recipe

    hardware = Hardware(device=device, processes=processes, device_tflops=device_tflops)
    found = estimate_run(load_recipe(DiffDisRecipe, recipe, overrides or [], preset), hardware, images)
    if as_json:
        asked = {
            "recipe": recipe,
            "preset": preset,
            "set": overrides or [],
            "images": images,
            **hardware.model_dump(),
        }
        print_json(asked | found.model_dump())
    else:
        _print(recipe, found, hardware, images)


def _print(recipe: str, found: "Estimate", hardware: "Hardware", images: int | None) -> None:
    from rich.console import Console

    parameters, memory, work = found.parameters, found.memory_bytes, found.tflop
    disk, time = found.disk_bytes, found.time
    counted = {name: f"{count:,}" for name, count in (parameters.parts | {"trained": parameters.trained}).items()}
    sections: dict[str, Mapping[str, str]] = {
        "parameters": counted,
        "of the query stream": {name: f"{count:,}" for name, count in parameters.new.items()},
        f"memory of a process, {hardware.device}": {
            name: f"{scaled(size, BYTE_UNITS)}  {MEMORY_NOTES.get(name, '')}".rstrip()
            for name, size in memory.model_dump().items()
        },
        "work of a step": _works({**work.step, "together": work.whole_step}),
        "work of naming an image": _works({**work.named_image, "together": work.whole_named_image}),
        "disk": {
            "an image": scaled(disk.image, BYTE_UNITS),
            "a caption": scaled(disk.caption, BYTE_UNITS),
        } | ({} if disk.total is None else {f"{images:,} images": scaled(disk.total, BYTE_UNITS)}),
    }  # fmt: skip
    if time is not None:
        sections[f"time, {hardware.processes} x {hardware.device_tflops:g} TFLOP a second"] = {
            "a step": f"{time.step_s:.3g} s",
            "the run": f"{time.hours:,.1f} hours",
            "trained on": f"{time.images_per_s:,.1f} images a second",
            "named": f"{time.named_images_per_s:,.1f} images a second on one device",
        }
    table = folded_table(f"estimate of {recipe}", "", "")
    table.show_header = False
    for title, lines in sections.items():
        table.add_row(f"[bold]{title}[/bold]", "")
        for name, value in lines.items():
            table.add_row(f"  {name}", value)
        table.add_section()
    Console().print(table)


def _works(works: Mapping[str, float]) -> dict[str, str]:
    return {name: scaled(tflop, WORK_UNITS) for name, tflop in works.items()}


def scaled(number: float, units: tuple[tuple[float, str], ...]) -> str:
    """Write a number in the largest unit in which it is at least one."""
    size, name = next((unit for unit in units if number >= unit[0]), units[-1])
    return f"{number / size:,.2f} {name}"
