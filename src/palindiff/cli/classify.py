"""`palindiff classify`: name images among given labels."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palindiff.cli.inputs import (
    IMAGES_AT_ONCE,
    ImagesArgument,
    OnBadOption,
    check_texts,
    find_images,
    read_lines,
    readable_images,
)
from palindiff.cli.model_option import DEFAULT_MODEL, DeviceOption, ModelOption, open_model
from palindiff.cli.naming_option import GuidanceOption, SeedOption, StepsOption, TopOption
from palindiff.cli.output_option import DryRunOption, JsonOption, folded_table, print_count, print_json, print_plan
from palindiff.inference.defaults import NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.labels import LABEL_TEMPLATES, check_labels

if TYPE_CHECKING:
    from torch import Tensor

Ranked = list[dict[str, str | float]]


def classify(
    images: ImagesArgument,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels", metavar="A,B,...", help='Names to choose from, with commas between; "A, B" in quotes is one.'
        ),
    ] = None,
    labels_file: Annotated[
        Path | None, typer.Option("--labels-file", metavar="FILE", help="Text file with more names, one a line.")
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            help="Caption with {} where the name goes; the mean of several counts. Repeatable.",
            show_default="the name alone",
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    top: TopOption = 5,
    steps: StepsOption = NAMING_STEPS,
    guidance_scale: GuidanceOption = NAMING_GUIDANCE_SCALE,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    on_bad: OnBadOption = "refuse",
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Name images: how probable is each label for each image, among the labels given?

    \b
    Examples:
      palindiff classify apple.png car.jpg --labels "red apple,automobile,cat face"
      palindiff classify photos --labels-file names.txt --template "a photo of a {}" --template "a drawing of a {}"
      palindiff classify apple.png --labels apple,pear --model runs/first/checkpoint --steps 4 --json
    """  # fmt: skip
    names = [*_split(labels), *read_lines(labels_file, "--labels")]
    chosen = templates or list(LABEL_TEMPLATES)
    check_texts(names, "label", "--labels or --labels-file")
    check_labels(names, chosen)
    files = find_images(images)
    walk = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    settings = {"model": model, **walk}
    if dry_run:
        plan = {"templates": chosen, "labels": names, "images": [str(file) for file in files]}
        print_plan(settings | plan, as_json)
        return
    files = readable_images(files, on_bad)
    pipeline = open_model(model, device)
    counted = {"batch_size": IMAGES_AT_ONCE, "tell": lambda done: print_count(done, len(files))}
    probabilities = pipeline.classify(files, names, chosen, **walk, **counted)
    answers = _best(probabilities, names, top)
    if as_json:
        told = [{"image": str(file), "labels": ranked} for file, ranked in zip(files, answers, strict=True)]
        print_json(settings | {"templates": chosen, "images": told})
    else:
        _print(files, answers)


def _split(labels: str | None) -> list[str]:
    """Split at commas, as a row of a CSV file is: a label in quotes may hold some.

    Raises: ValueError if a quote is not closed, or text follows one.
    """
    if labels is None:
        return []
    try:
        rows = list(csv.reader(labels.splitlines(), skipinitialspace=True, strict=True)) or [[""]]
    except csv.Error as error:
        raise ValueError(
            f'--labels cannot be split ({error}). Expected commas between names, and " around a whole name alone. '
            "Give such names with --labels-file, one a line."
        ) from error
    return [label.strip() for row in rows for label in row]


def _best(probabilities: "Tensor", names: list[str], top: int) -> list[Ranked]:
    best = probabilities.topk(min(top, len(names)))
    return [
        [{"label": names[i], "probability": share} for i, share in zip(places, shares, strict=True)]
        for places, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _print(files: list[Path], answers: list[Ranked]) -> None:
    from rich.console import Console
    from rich.markup import escape

    table = folded_table("names, with probability", "image", *(str(place + 1) for place in range(len(answers[0]))))
    for file, ranked in zip(files, answers, strict=True):
        table.add_row(
            escape(str(file)), *(f"{escape(str(each['label']))} {each['probability']:.1%}" for each in ranked)
        )
    Console().print(table)
