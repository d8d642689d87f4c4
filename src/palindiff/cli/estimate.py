"""`palindiff estimate`: estimate what a run costs, before anything is trained."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from palindiff.cli.output_option import JsonOption, print_json, print_table
from palindiff.cli.recipe_option import PresetOption, RecipeOption, SetOption

if TYPE_CHECKING:
    from palindiff.training.cost.estimate import Estimate

BYTE_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
WORK_UNITS = ((1.0, "TFLOP"), (1e-3, "GFLOP"), (1e-6, "MFLOP"))
MEMORY_NOTES = {
    "exchange": "buffers in which processes combine gradients",
    "frozen": "VAE, text encoder, and what the task does not train",
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
            help="Sustained TFLOP/s of one device (well below its peak), to estimate time.",
            show_default="none",
        ),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes, each with its own device.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Estimate what a run of a recipe costs.

    Prints parameters, memory, work, disk and time. Reads the recipe and configs; no weights, no data. Memory is that
    of one process while it trains, 1 GB = 10^9 bytes, without that of the driver, kernels and the allocator.

    \b
    Examples:
      palindiff estimate --recipe emoji --device cpu
      palindiff estimate --recipe diffdis-cc3m --preset 24gb
      palindiff estimate --recipe FILE.yaml --set loop.batch_size=256 --images 3000000 --json
      palindiff estimate --recipe FILE.yaml --processes 8 --device-tflops 150
    """
    from palindiff.training.cost.estimate import Hardware
    from palindiff.training.cost.estimate import estimate as estimate_run
    from palindiff.training.recipes.yaml_files import load_recipe
    from palindiff.training.train_diffdis import Recipe

    hardware = Hardware(device=device, processes=processes, device_tflops=device_tflops)
    found = estimate_run(load_recipe(Recipe, recipe, overrides or [], preset), hardware, images)
    settings = {"recipe": recipe, "preset": preset, "set": overrides or [], "images": images, **hardware.model_dump()}
    if as_json:
        print_json(settings | found.model_dump())
        return
    from rich.text import Text

    sections = _sections(found, settings).items()
    rows = [
        [(Text(title, "bold"), ""), *((f"  {name}", value) for name, value in of.items())] for title, of in sections
    ]
    print_table(f"estimate of {recipe}", ["", ""], *rows)


def _sections(found: "Estimate", settings: Mapping[str, object]) -> dict[str, dict[str, str]]:
    """Write an estimate as titles, each with lines of a name and a value."""
    parameters, memory, work, disk = found.parameters, found.memory_bytes, found.tflop, found.disk_bytes
    disk_bytes = {"an image": disk.image, "a caption": disk.caption}
    if disk.total is not None:
        disk_bytes[f"{settings['images']:,} images"] = disk.total
    sections = {
        "parameters": _counts(parameters.parts | {"trained": parameters.trained}),
        "of the query stream": _counts(parameters.new),
        f"memory of a process, {settings['device']}": {
            name: f"{value}  {MEMORY_NOTES.get(name, '')}".rstrip()
            for name, value in _scaled(memory.model_dump(), BYTE_UNITS).items()
        },
        "work of a step": _scaled({**work.step, "total": work.whole_step}, WORK_UNITS),
        "work of naming an image": _scaled({**work.named_image, "total": work.whole_named_image}, WORK_UNITS),
        "disk": _scaled(disk_bytes, BYTE_UNITS),
    }
    if (time := found.time) is not None:
        sections[f"time, {settings['processes']} x {settings['device_tflops']:g} TFLOP/s"] = {
            "a step": f"{time.step_s:.3g} s",
            "the run": f"{time.hours:,.1f} hours",
            "trained on": f"{time.images_per_s:,.1f} images a second",
            "named": f"{time.named_images_per_s:,.1f} images a second on one device",
        }
    return sections


def _counts(counts: Mapping[str, int]) -> dict[str, str]:
    return {name: f"{count:,}" for name, count in counts.items()}


def _scaled(numbers: Mapping[str, float], units: tuple[tuple[float, str], ...]) -> dict[str, str]:
    return {name: scaled(number, units) for name, number in numbers.items()}


def scaled(number: float, units: tuple[tuple[float, str], ...]) -> str:
    """Write a number in the largest unit in which it is at least one."""
    size, name = next((unit for unit in units if number >= unit[0]), units[-1])
    return f"{number / size:,.2f} {name}"
