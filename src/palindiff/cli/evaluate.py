"""`palindiff evaluate`: measure a checkpoint on data sets."""

import os
from itertools import groupby, product
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from palindiff.cli.inputs import OnBadOption
from palindiff.cli.model_option import DEFAULT_MODEL, DeviceOption, ModelOption, open_model
from palindiff.cli.output_option import DryRunOption, JsonOption, command_line, print_json, print_plan, print_table
from palindiff.cli.recipe_option import Progress
from palindiff.data.on_bad import OnBad
from palindiff.inference.defaults import IMAGES_AT_ONCE, NAMING_GUIDANCE_SCALE, NAMING_STEPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from palindiff.evaluation.records import Record
    from palindiff.evaluation.run import NamedData, NamingSetting

TASKS = ("classification", "retrieval")
Number = TypeVar("Number", int, float)


def evaluate(
    data: Annotated[
        list[str],
        typer.Option(metavar="[NAME=]PATH", help="Data set: folder, tars, parquet files or a Hub name. Repeatable."),
    ],
    tasks: Annotated[list[str], typer.Option("--task", help=f"{' or '.join(TASKS)}. Repeatable.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the records; rerun to resume.")],
    model: ModelOption = DEFAULT_MODEL,
    split: Annotated[str, typer.Option(help="Split of the data sets; unsplit data are train.")] = "test",
    steps: Annotated[str, typer.Option(metavar="N,N,...", help="Denoising steps, several in one run.")] = str(
        NAMING_STEPS
    ),
    guidance_scales: Annotated[
        str, typer.Option("--guidance-scale", metavar="X,X,...", help="1 + w of the paper; 1 turns it off.")
    ] = f"{NAMING_GUIDANCE_SCALE:g}",
    seeds: Annotated[str, typer.Option(metavar="N,N-N,...", help="Seeds of the first noise, such as 0-9.")] = "0",
    templates: Annotated[
        list[str] | None,
        typer.Option(
            "--template", help="Caption with {} for a class name. Repeatable.", show_default="the name alone"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images embedded together.")] = IMAGES_AT_ONCE,
    num_workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that decode images.")] = 0,
    results: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all rows to a result file too.")] = None,
    device: DeviceOption = "auto",
    on_bad: OnBadOption = "refuse",
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Evaluate a model: zero-shot classification and image-text retrieval on any data.

    Every image is read once for all steps, guidance scales and seeds. Writes a JSON record for each data set, task and
    setting, which CLIP_benchmark's `build` reads. Records of equal settings are reused.

    \b
    Examples:
      palindiff evaluate --data data/emoji --task retrieval --output evaluations
      palindiff evaluate --data pets=data/pets --task classification --template "a photo of a {}" --output evaluations
      palindiff evaluate --data data/emoji --task retrieval --steps 1,4,8 --guidance-scale 1,3 --seeds 0-9 --output DIR
    """
    sets = [_named(text, split, on_bad) for text in data]
    chosen = _settings(steps, guidance_scales, seeds)
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ValueError(f"--task is {unknown[0]}. Expected {' or '.join(TASKS)}. Use one of these.")
    if dry_run:
        plan = {"data": [f"{each.name}: {each.config.path}" for each in sets], "tasks": tasks}
        print_plan({"model": model, **plan, "settings": [each.label for each in chosen], "output": output}, as_json)
        return
    records = _run(model, device, sets, tasks, chosen, output, templates, batch_size, num_workers)
    if results and records:
        _write_results(results, records)
    if as_json:
        print_json({"records": [record.model_dump() for record in records]})
    elif records:
        _print(records)


def _run(
    model: str, device: str, sets: "Sequence[NamedData]", tasks: "Sequence[str]", settings: "Sequence[NamingSetting]",
    output: Path, templates: list[str] | None, batch_size: int, num_workers: int,
) -> "list[Record]":  # fmt: skip
    from palindiff.evaluation.run import Evaluation, EvaluationOptions
    from palindiff.inference.embedder import PipelineEmbedder

    pipeline = open_model(model, device)
    for setting in settings:
        pipeline.check_options(**setting.model_dump())
    evaluation = Evaluation(
        PipelineEmbedder(pipeline),
        model,
        sets,
        tasks,  # type: ignore[arg-type]  # checked by the caller
        settings,
        output,
        EvaluationOptions(templates=tuple(templates)) if templates else EvaluationOptions(),
        num_workers,
        batch_size,
        Progress(),
        int(os.environ.get("RANK", 0)),
        int(os.environ.get("WORLD_SIZE", 1)),
    )
    return list(evaluation.run())


def _named(text: str, split: str, on_bad: OnBad) -> "NamedData":
    from palindiff.data.sources import DataConfig
    from palindiff.evaluation.run import NamedData

    name, equals, path = text.partition("=")
    if not equals or "/" in name:
        name, path = Path(text).name, text
    return NamedData(f"{name}/{split}", DataConfig(path=path, split=split, on_bad=on_bad))


def _settings(steps: str, guidance_scales: str, seeds: str) -> "list[NamingSetting]":
    """Combine all steps, guidance scales and seeds."""
    from palindiff.evaluation.run import NamingSetting

    scales = [_number(part, float, "--guidance-scale") for part in guidance_scales.split(",")]
    combined = product(_whole_numbers(steps, "--steps"), scales, _whole_numbers(seeds, "--seeds"))
    return [NamingSetting(num_inference_steps=n, guidance_scale=scale, seed=seed) for n, scale, seed in combined]


def _whole_numbers(text: str, option: str) -> list[int]:
    """Read `0,3-5` as 0, 3, 4, 5."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        start = _number(first, int, option)
        found += range(start, _number(last, int, option) + 1) if last else [start]
    return found


def _number(text: str, kind: type[Number], option: str) -> Number:
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"{option} has `{text}`. Expected numbers, separated by commas. Fix it.") from error


def _print(records: "Sequence[Record]") -> None:
    """Print a table for each data set and task: settings down, metrics across, chance below."""
    for (dataset, task), group in groupby(records, key=attrgetter("dataset", "task")):
        of_task = list(group)
        metrics = list(of_task[0].metrics)
        rows = [[each.pretrained, *(f"{each.metrics[name]:.4f}" for name in metrics)] for each in of_task]
        chance = [of_task[0].chance[name] for name in metrics]
        below = ["chance", *("" if share is None else f"{share:.4f}" for share in chance)]
        heads = [name.replace("_retrieval_recall", " R").replace("_retrieval", "") for name in metrics]
        print_table(f"{task} of {of_task[0].model} on {dataset}", ["setting", *heads], rows, [below])


def _write_results(path: Path, records: "Sequence[Record]") -> None:
    from palindiff.evaluation.results import write_results

    rows = [row for record in records for row in record.flat_rows()]
    settings = {"model": records[0].model, "data": sorted({record.dataset for record in records})}
    write_results(path, rows, command_line(), settings, records[0].seed, sum(r.cost["seconds"] for r in records))
