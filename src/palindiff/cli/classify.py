"""`palindiff classify`: zero-shot classification of images among given labels."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palindiff.cli.inputs import ImagesArgument, OnBadOption, open_inputs, read_lines
from palindiff.cli.model_option import DEFAULT_MODEL, DeviceOption, ModelOption, open_embedder
from palindiff.cli.naming_option import GuidanceOption, SeedOption, StepsOption, TopOption, best_answers, options_of
from palindiff.cli.output_option import DryRunOption, JsonOption, print_json, print_plan, print_table
from palindiff.inference.defaults import NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.labels import LABEL_TEMPLATES, check_labels

if TYPE_CHECKING:
    from palindiff.inference.embedder import Embedder


LabelsOption = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...",
        help='Labels to choose from, separated by commas; quote "A, B" if it is one.',
        show_default="the classes that the model was trained on",
    ),
]


def classify(
    images: ImagesArgument,
    labels: LabelsOption = None,
    labels_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text file with more labels, one per line.")
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            help="Caption with {} in place of the label; the mean of several is used. Repeatable.",
            show_default="the label alone, or the model's own for its classes",
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
    """Classify images: the probability of each label for each image.

    Without labels, a model that was trained on classes answers with these. The model is a palindiff checkpoint or a
    CLIP, which takes no steps, guidance scale or seed.

    \b
    Examples:
      palindiff classify apple.png
      palindiff classify apple.png car.jpg --labels "red apple,automobile,cat face"
      palindiff classify photos --labels-file names.txt --template "a photo of a {}" --template "a drawing of a {}"
      palindiff classify apple.png --labels apple,pear --model runs/first/checkpoint --steps 4 --json
    """  # fmt: skip
    names = [*_split(labels), *read_lines(labels_file, "--labels")]
    is_given = labels is not None or labels_file is not None
    chosen = templates or (list(LABEL_TEMPLATES) if is_given else [])
    if is_given:
        check_labels(names, chosen, "Use --labels or --labels-file.")
    given = open_inputs(images, on_bad)
    options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    settings = {"model": model, **options}
    if dry_run:
        print_plan(settings | {"templates": chosen, "labels": names, "images": given.names}, as_json)
        return
    embedder = open_embedder(model, device)
    options = options_of(embedder, model, options)
    settings = {"model": model, **options}
    if not is_given:
        names, chosen = _own_labels(embedder, model, chosen)
    e = embedder.encode_labels(names, chosen)
    probabilities = embedder.probabilities(given.embed(embedder, options), e)
    answers = list(zip(given.names, best_answers(probabilities, names, top), strict=True))
    if as_json:
        print_json(settings | {"templates": chosen, "images": [_as_json(*answer) for answer in answers]})
        return
    rows = [(file, *(f"{label} {share:.1%}" for label, share in ranked)) for file, ranked in answers]
    print_table("labels, with probability", ["image", *map(str, range(1, len(rows[0])))], rows)


def _as_json(file: str, ranked: list[tuple[str, float]]) -> dict[str, object]:
    return {"image": file, "labels": [{"label": label, "probability": share} for label, share in ranked]}


def _own_labels(embedder: "Embedder", model: str, templates: list[str]) -> tuple[list[str], list[str]]:
    """Return the labels that a model keeps, and the given templates or its own.

    Raises: ValueError if it keeps none.
    """
    from palindiff.inference.embedder import PipelineEmbedder

    vocabulary = embedder.pipeline.vocabulary if isinstance(embedder, PipelineEmbedder) else None
    if vocabulary is None:
        raise ValueError(
            f"No label was given, and the model `{model}` keeps no classes of its training. Expected labels to choose "
            "from. Use --labels or --labels-file."
        )
    return list(vocabulary.labels), templates or list(vocabulary.templates)


def _split(labels: str | None) -> list[str]:
    """Split labels like a row of a CSV file: a label in quotes may have commas.

    Raises: ValueError if a quote is not closed, or is followed by text.
    """
    if labels is None:
        return []
    try:
        rows = list(csv.reader(labels.splitlines(), skipinitialspace=True, strict=True)) or [[""]]
    except csv.Error as error:
        raise ValueError(
            f'--labels cannot be split ({error}). Expected commas between labels, and " only around a whole label. '
            "Use --labels-file for such labels, one per line."
        ) from error
    return [label.strip() for row in rows for label in row]
