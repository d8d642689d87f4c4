"""`palindiff generate`: generate images from prompts."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palindiff.cli.inputs import read_lines
from palindiff.cli.model_option import DEFAULT_MODEL, DeviceOption, ModelOption, open_model
from palindiff.cli.naming_option import GuidanceOption
from palindiff.cli.output_option import DryRunOption, JsonOption, print_count, print_json, print_plan, print_table
from palindiff.inference.defaults import GENERATED_FILES_BATCH_SIZE, GENERATION_GUIDANCE_SCALE, GENERATION_STEPS
from palindiff.inference.labels import check_texts

if TYPE_CHECKING:
    from palindiff.inference.image_files import GeneratedFile

MAX_SEED = 2**62


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="What to generate.")] = None,
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Text file with more prompts, one per line.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the PNG files; existing files are kept.")
    ] = Path("generations"),
    num_images: Annotated[int, typer.Option("--num", min=1, help="Images of each prompt.")] = 1,
    best_of: Annotated[
        int, typer.Option("--best-of", min=1, help="Images generated for each one kept, the closest to the prompt.")
    ] = 1,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of each prompt's first image; the next adds 1.")
    ] = 0,
    guidance_scale: GuidanceOption = GENERATION_GUIDANCE_SCALE,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = GENERATION_STEPS,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images generated together; changes images only by rounding.")
    ] = GENERATED_FILES_BATCH_SIZE,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Generate images from prompts, each from its own seed.

    With --best-of N the model embeds the N images it has generated, and keeps the one closest to the prompt.

    The metadata of every PNG holds prompt, seed, guidance scale, steps, model and version.

    \b
    Examples:
      palindiff generate "a flat emoji of a red apple"
      palindiff generate "a red apple" "a blue car" --num 2 --best-of 4 --seed 7 --output generations
      palindiff generate --prompts prompts.txt --model runs/first/checkpoint --json
    """
    wanted = [*(prompts or []), *read_lines(prompts_file, "PROMPT")]
    check_texts(wanted, "prompt", "Use PROMPT or --prompts.", may_repeat=True)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"`{output}` is a file. Expected a folder. Pass another with --output.")
    settings = {"model": model, "num_inference_steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    if dry_run:
        plan = {"output": output, "images_of_each_prompt": num_images, "best_of": best_of, "prompts": wanted}
        print_plan(settings | plan, as_json)
        return
    _check_writable(output)
    pipeline = open_model(model, device)
    from palindiff.inference.image_files import GenerationOptions, generate_files

    options = GenerationOptions(num_images, seed, best_of, guidance_scale, steps, batch_size)
    generated = []
    for each in generate_files(pipeline, wanted, options, output, model):
        generated.append(each)
        print_count("images", len(generated), len(wanted) * num_images)
    if as_json:
        print_json(settings | {"images": [asdict(each) for each in generated]})
    else:
        _print_files(generated, output)


def _print_files(generated: "list[GeneratedFile]", output: Path) -> None:
    """Print a row for each file, with its cosine if others were rejected."""
    is_best = generated[0].cosine is not None
    rows = [
        (each.prompt, str(each.seed), *([f"{each.cosine:.3f}"] if is_best else []), each.path.name)
        for each in generated
    ]
    print_table(f"generated into {output}", ["prompt", "seed", *(["cosine"] if is_best else []), "file"], rows)


def _check_writable(output: Path) -> None:
    """Try to write into a folder, or where it will be created, before time is spent on images.

    Raises: PermissionError.
    """
    nearest = next(each for each in (output, *output.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise PermissionError(
            f"`{output}` cannot be written ({error.strerror}). Expected a folder that takes new files. Pass another "
            "with --output."
        ) from error
