"""`palindiff evaluate`: measure a checkpoint on data sets."""

import json
import os
from itertools import groupby, product
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from palindiff.cli.inputs import OnBadOption
from palindiff.cli.model_option import DEFAULT_MODEL, DeviceOption, ModelOption, open_generator, open_model
from palindiff.cli.output_option import DryRunOption, JsonOption, command_line, print_json, print_plan, print_table
from palindiff.cli.recipe_option import Progress
from palindiff.data.on_bad import OnBad
from palindiff.inference.defaults import IMAGES_AT_ONCE, NAMING_GUIDANCE_SCALE, NAMING_STEPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from palindiff.evaluation.records import Record
    from palindiff.evaluation.run import NamedData
    from palindiff.evaluation.tasks import NamingSetting

TASKS = ("classification", "retrieval", "chain_use", "collapse", "linear_probe")
GENERATION = "generation"
Number = TypeVar("Number", int, float)


DataOption = Annotated[
    list[str],
    typer.Option(
        "--data", metavar="[NAME=]PATH", help="Data set: folder, tars, parquet files or a Hub name. Repeatable."
    ),
]
TaskOption = Annotated[list[str], typer.Option("--task", help=f"{', '.join(TASKS)} or {GENERATION}. Repeatable.")]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="KEY=PATTERN",
        help="Only rows with such a column (or KEY!=PATTERN), such as label!=flag*. Repeatable.",
        show_default="all rows",
    ),
]
StepsOption = Annotated[str, typer.Option("--steps", metavar="N,N,...", help="Denoising steps, several in one run.")]
GuidanceOption = Annotated[
    str, typer.Option("--guidance-scale", metavar="X,X,...", help="1 + w of the paper; 1 turns it off.")
]
SeedsOption = Annotated[
    str, typer.Option("--seeds", metavar="N,N-N,...", help="Seeds of the first noise, such as 0-9.")
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option("--template", help="Caption with {} for a class name. Repeatable.", show_default="the name alone"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change an option of a task, such as generation.num_images=1000. Repeatable.",
        show_default="none",
    ),
]
ResultsOption = Annotated[
    Path | None, typer.Option("--results", metavar="FILE", help="Write all rows to a result file too.")
]


def evaluate(
    data: DataOption,
    tasks: TaskOption,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the records; rerun to resume.")],
    model: ModelOption = DEFAULT_MODEL,
    split: Annotated[str, typer.Option(help="Split of the data sets; unsplit data are train.")] = "test",
    train_split: Annotated[str, typer.Option(help="Split that linear_probe trains on.")] = "train",
    where: WhereOption = None,
    steps: StepsOption = str(NAMING_STEPS),
    guidance_scales: GuidanceOption = f"{NAMING_GUIDANCE_SCALE:g}",
    seeds: SeedsOption = "0",
    templates: TemplateOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images embedded together.")] = IMAGES_AT_ONCE,
    num_workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that decode images.")] = 0,
    overrides: SetOption = None,
    results: ResultsOption = None,
    device: DeviceOption = "auto",
    on_bad: OnBadOption = "refuse",
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Evaluate a model on any data: zero-shot classification, image-text retrieval, generation and more.

    Every image is read once for all steps, guidance scales and seeds. Writes a JSON record for each data set, task and
    setting, which CLIP_benchmark's `build` reads. Records of equal settings are reused.

    \b
    Examples:
      palindiff evaluate --data data/emoji --task retrieval --output evaluations
      palindiff evaluate --data pets=data/pets --task classification --template "a photo of a {}" --output evaluations
      palindiff evaluate --data data/emoji --task retrieval --steps 1,4,8 --guidance-scale 1,3 --seeds 0-9 --output DIR
      palindiff evaluate --data data/emoji --task generation --set generation.num_images=1000 --output evaluations
    """
    sets = [_named(text, split, on_bad, where or []) for text in data]
    chosen = _settings(steps, guidance_scales, seeds)
    if unknown := [task for task in tasks if task not in (*TASKS, GENERATION)]:
        known = ", ".join((*TASKS, GENERATION))
        raise ValueError(f"--task is {unknown[0]}. Expected one of {known}. Use one of these.")
    changes = [*(overrides or []), *([f"templates={json.dumps(templates)}"] if templates else [])]
    if dry_run:
        plan = {"data": [f"{each.name}: {each.config.path}" for each in sets], "tasks": tasks}
        print_plan({"model": model, **plan, "settings": [each.label for each in chosen], "output": output}, as_json)
        return
    records = _run(model, device, sets, tasks, chosen, output, changes, train_split, batch_size, num_workers)
    if results and records:
        _write_results(results, records)
    if as_json:
        print_json({"records": [record.model_dump() for record in records]})
    elif records:
        _print(records)


def _run(
    model: str, device: str, sets: "Sequence[NamedData]", tasks: "Sequence[str]", settings: "Sequence[NamingSetting]",
    output: Path, changes: list[str], train_split: str, batch_size: int, num_workers: int,
) -> "list[Record]":  # fmt: skip
    from palindiff.evaluation.run import Evaluation
    from palindiff.evaluation.run_generation import TaskOptions, evaluate_generation
    from palindiff.inference.embedder import PipelineEmbedder
    from palindiff.training.recipes.yaml_files import load_options

    options = load_options(TaskOptions, changes)
    share = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    naming = [task for task in tasks if task != GENERATION]
    pipeline: Any = open_model(model, device) if naming else open_generator(model, device)
    records: list[Record] = []
    if naming:
        for setting in settings:
            pipeline.check_options(**setting.model_dump())
        records += Evaluation(
            PipelineEmbedder(pipeline), model, sets,
            naming,  # type: ignore[arg-type]  # checked by the caller
            settings, output, options.naming, train_split, num_workers, batch_size, Progress(), *share,
        ).run()  # fmt: skip
    if GENERATION in tasks:
        seeds = list(dict.fromkeys(setting.seed for setting in settings))
        records += evaluate_generation(
            pipeline, model, sets, seeds, output, options.generation, num_workers, Progress(), *share
        )
    return records


def _named(text: str, split: str, on_bad: OnBad, where: list[str]) -> "NamedData":
    from palindiff.data.conditions import Condition
    from palindiff.data.sources import DataConfig
    from palindiff.evaluation.run import NamedData

    name, equals, path = text.partition("=")
    if not equals or "/" in name:
        name, path = Path(text).name, text
    conditions = tuple(Condition.parse(each) for each in where)
    label = f"{name}/{split}" + "".join(f" {each}" for each in conditions)
    return NamedData(label, DataConfig(path=path, split=split, on_bad=on_bad), conditions)


def _settings(steps: str, guidance_scales: str, seeds: str) -> "list[NamingSetting]":
    """Combine all steps, guidance scales and seeds."""
    from palindiff.evaluation.tasks import NamingSetting

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
    """Print a table for each data set and task: the metrics of one setting with intervals, or settings down."""
    for (dataset, task), group in groupby(records, key=attrgetter("dataset", "task")):
        of_task = list(group)
        title, first = f"{task} of {of_task[0].model} on {dataset}", of_task[0]
        if len(of_task) == 1:
            rows = [
                [name, f"{value:.4f}", *(_interval(first.intervals[name])), _number_or_blank(first.chance[name]),
                 f"{first.num_items[name]:,}"]
                for name, value in first.metrics.items()
            ]  # fmt: skip
            print_table(f"{title}, {first.pretrained}", ["metric", "value", "95 % from", "to", "chance", "n"], rows)
            continue
        rows = [[each.pretrained, *(f"{value:.4f}" for value in each.metrics.values())] for each in of_task]
        below = ["chance", *(_number_or_blank(first.chance[name]) for name in first.metrics)]
        heads = [name.replace("_retrieval_recall", " R").replace("_retrieval_mrr", " MRR") for name in first.metrics]
        print_table(title, ["setting", *heads], rows, [below])


def _interval(ends: tuple[float, float] | None) -> list[str]:
    return ["", ""] if ends is None else [f"{end:.4f}" for end in ends]


def _number_or_blank(number: float | None) -> str:
    return "" if number is None else f"{number:.4f}"


def _write_results(path: Path, records: "Sequence[Record]") -> None:
    from palindiff.evaluation.results import write_results

    rows = [row for record in records for row in record.flat_rows()]
    settings = {"model": records[0].model, "data": sorted({record.dataset for record in records})}
    write_results(path, rows, command_line(), settings, records[0].seed, sum(r.cost["seconds"] for r in records))
