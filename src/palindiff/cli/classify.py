"""`palindiff classify`: name pictures among given labels."""

from pathlib import Path
from typing import Annotated

import typer

from palindiff.cli.listed import PicturesArgument, check_texts, find_pictures, read_lines
from palindiff.cli.model_option import DEFAULT_MODEL, DeviceOption, ModelOption, open_model
from palindiff.cli.told_option import DryRunOption, JsonOption, print_json, print_plan
from palindiff.cli.walk_option import GuidanceOption, SeedOption, StepsOption, TopOption
from palindiff.inference.defaults import NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.labels import LABEL_TEMPLATES, check_labels

Ranked = list[dict[str, str | float]]


def classify(
    pictures: PicturesArgument,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="A,B,...", help="Names to choose from, with commas between.")
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
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Name pictures: how probable is each label for each picture, among the labels given?

    \b
    Examples:
      palindiff classify apple.png car.jpg --labels "red apple,automobile,cat face"
      palindiff classify photos --labels-file names.txt --template "a photo of a {}" --template "a drawing of a {}"
      palindiff classify apple.png --labels apple,pear --model runs/first/checkpoint --steps 4 --json
    """  # fmt: skip
    split = [label.strip() for label in labels.split(",")] if labels is not None else []
    names, chosen = [*split, *read_lines(labels_file)], templates or list(LABEL_TEMPLATES)
    check_texts(names, "label", "--labels or --labels-file")
    check_labels(names, chosen)
    files = find_pictures(pictures)
    settings = {"model": model, "num_inference_steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    if dry_run:
        plan = {"templates": chosen, "labels": names, "pictures": [str(file) for file in files]}
        print_plan(settings | plan, as_json)
        return
    pipeline = open_model(model, device)
    probabilities = pipeline.classify(
        files, names, chosen, num_inference_steps=steps, guidance_scale=guidance_scale, seed=seed
    )
    best = probabilities.topk(min(top, len(names)))
    answers: list[Ranked] = [
        [{"label": names[i], "probability": share} for i, share in zip(places, shares, strict=True)]
        for places, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    if as_json:
        told = [{"picture": str(file), "labels": ranked} for file, ranked in zip(files, answers, strict=True)]
        print_json(settings | {"templates": chosen, "pictures": told})
    else:
        _print(files, answers)


def _print(files: list[Path], answers: list[Ranked]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("picture", *(str(place + 1) for place in range(len(answers[0]))), title="names, with probability")
    for file, ranked in zip(files, answers, strict=True):
        table.add_row(
            escape(str(file)), *(f"{escape(str(each['label']))} {each['probability']:.1%}" for each in ranked)
        )
    Console().print(table)
