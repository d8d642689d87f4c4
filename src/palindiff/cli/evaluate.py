"""`palindiff evaluate`: measure a checkpoint on data sets."""

import json
import time
from functools import cache, partial
from itertools import groupby, product
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from palindiff.atomic import check_writable
from palindiff.cli.inputs import OnBadOption
from palindiff.cli.model_option import (
    DEFAULT_MODEL,
    DeviceOption,
    ModelOption,
    launched_process,
    open_embedder,
    open_generator,
)
from palindiff.cli.naming_option import options_of
from palindiff.cli.output_option import DryRunOption, JsonOption, command_line, print_json, print_plan, print_table
from palindiff.cli.recipe_option import Progress
from palindiff.data.on_bad import OnBad
from palindiff.inference.defaults import IMAGES_AT_ONCE, NAMING_GUIDANCE_SCALE, NAMING_STEPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from palindiff.evaluation.named_data import NamedData
    from palindiff.evaluation.records import Record
    from palindiff.evaluation.tasks import NamingSetting, Setting
    from palindiff.inference.embedder import Embedder

TASKS = ("classification", "retrieval", "class_retrieval", "chain_use", "collapse", "linear_probe", "controls")
OF_GENERATION = ("generation", "diffusion_classifier")  # tasks of any Stable Diffusion
Number = TypeVar("Number", int, float)


DataOption = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="[NAME=]PATH",
        help="Data set: folder, tars, parquet files, a Hub name, or what `embed` wrote. CIFAR10=PATH and the like "
        "take the class names and templates of that set. Repeatable.",
    ),
]
TaskOption = Annotated[list[str], typer.Option("--task", help=f"{', '.join((*TASKS, *OF_GENERATION))}. Repeatable.")]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="KEY=PATTERN",
        help="Keep rows whose column, label, caption or image_path matches PATTERN; KEY!=PATTERN: does not match. "
        "Repeatable.",
        show_default="all rows",
    ),
]
StepsOption = Annotated[
    str, typer.Option("--steps", metavar="N,N,...", help="Denoising steps to embed an image, separated by commas.")
]
GuidanceOption = Annotated[
    str,
    typer.Option(
        "--guidance-scale", metavar="X,X,...", help="Guidance scale to embed an image, the paper's w + 1; 1: off."
    ),
]
SeedsOption = Annotated[
    str, typer.Option("--seeds", metavar="N,N-N,...", help="Seeds of the noise, also of generation, such as 0-9.")
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        help="Caption with {} for a class name. Repeatable.",
        show_default="those of the class set, else the name alone",
    ),
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
    train_split: Annotated[
        str, typer.Option(help="Split that linear_probe trains on, and controls find the nearest images in.")
    ] = "train",
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

    The model is a palindiff checkpoint or a CLIP; for generation and the Diffusion Classifier any Stable Diffusion.
    Every image is read once for all steps, guidance scales and seeds. Writes a JSON record for each data set, task and
    setting, which CLIP_benchmark's `build` reads. Records of equal settings are reused.

    \b
    Examples:
      palindiff evaluate --data data/emoji --task retrieval --output evaluations
      palindiff evaluate --data OxfordPets=data/pets --task classification --output evaluations
      palindiff evaluate --data data/emoji --task retrieval --model openai/clip-vit-base-patch32 --output evaluations
      palindiff evaluate --data data/emoji --task retrieval --steps 1,4,8 --guidance-scale 1,3 --seeds 0-9 --output DIR
      palindiff evaluate --data data/emoji --task generation --set generation.num_images=1000 --output evaluations
    """
    sets = [_named(text, split, on_bad, where or []) for text in data]
    chosen = _settings(steps, guidance_scales, seeds)
    if unknown := [task for task in tasks if task not in (*TASKS, *OF_GENERATION)]:
        known = ", ".join((*TASKS, *OF_GENERATION))
        raise ValueError(f"--task is {unknown[0]}. Expected one of {known}. Use one of these.")
    changes = [*(overrides or []), *([f"templates={json.dumps(templates)}"] if templates else [])]
    is_first = launched_process()[0] == 0
    if results is not None:
        check_writable(results.absolute().parent, "Results", "Use another --results.")
    if dry_run and not is_first:
        return
    if dry_run:
        plan = {"data": [f"{each.name}: {each.config.path}" for each in sets], "tasks": tasks}
        print_plan({"model": model, **plan, "settings": [each.label for each in chosen], "output": output}, as_json)
        return
    began = time.perf_counter()
    records = _run(model, device, sets, tasks, chosen, output, changes, train_split, batch_size, num_workers)
    if results and records:
        _write_results(results, records, time.perf_counter() - began)
    if as_json and is_first:
        print_json({"records": [record.model_dump() for record in records]})
    elif records:
        _print(records)


def _run(
    model: str, device: str, sets: "Sequence[NamedData]", tasks: "Sequence[str]", settings: "Sequence[NamingSetting]",
    output: Path, changes: list[str], train_split: str, batch_size: int, num_workers: int,
) -> "list[Record]":  # fmt: skip
    from palindiff.evaluation.launch import Launch
    from palindiff.evaluation.run import Evaluation
    from palindiff.evaluation.run_diffusion_classifier import check_classifier_data, evaluate_diffusion_classifier
    from palindiff.evaluation.run_generation import check_generation_data, evaluate_generation
    from palindiff.evaluation.task_options import TaskOptions
    from palindiff.training.recipes.yaml_files import load_options

    options = load_options(TaskOptions, changes)
    if "seed" in options.generation.model_fields_set:
        raise ValueError("--set has generation.seed. Expected the seeds of all tasks in --seeds. Use --seeds.")
    if "generation" in tasks:
        check_generation_data(sets, options.generation)
    if "diffusion_classifier" in tasks:
        check_classifier_data(sets, options.classifier)
    cost, warn = cache(partial(_training_tflop, model)), partial(typer.echo, err=True)
    launch = Launch(num_workers, *launched_process(), Progress(), warn, cost)
    naming = [task for task in tasks if task not in OF_GENERATION]
    pipeline: Any = open_generator(model, device) if len(naming) < len(tasks) else None
    records: list[Record] = []
    if naming:
        embedder, chosen = _embedder(model, device, settings, pipeline)
        records += Evaluation(
            embedder, model, sets,
            naming,  # type: ignore[arg-type]  # checked by the caller
            chosen, output, options, train_split, batch_size, launch,
        ).run()  # fmt: skip
    if pipeline is not None:
        given = pipeline, model, sets, list(dict.fromkeys(setting.seed for setting in settings)), output
        if "generation" in tasks:
            records += evaluate_generation(*given, options.generation, launch)
        if "diffusion_classifier" in tasks:
            records += evaluate_diffusion_classifier(*given, options.classifier, launch)
    return records


def _embedder(
    model: str, device: str, settings: "Sequence[NamingSetting]", pipeline: Any
) -> "tuple[Embedder, Sequence[Setting]]":
    """Load the model that embeds, unless it is loaded for generation, and choose the settings that it has.

    Raises: ValueError if a setting cannot work, or a contrastive model is given several.
    """
    from palindiff.evaluation.tasks import Setting
    from palindiff.inference.embedder import PipelineEmbedder
    from palindiff.inference.pipeline import PalindiffPipeline

    embedder: Embedder
    is_loaded = isinstance(pipeline, PalindiffPipeline)
    embedder = PipelineEmbedder(pipeline) if is_loaded else open_embedder(model, device)
    has_options = [bool(options_of(embedder, model, setting.options)) for setting in settings]
    return embedder, settings if all(has_options) else [Setting()]


def _training_tflop(model: str) -> float | None:
    """What the training of a model took, if its recipe and log are beside it; why not, if they cannot be read."""
    from palindiff.pretrained.bundled import bundled_folder, bundled_models
    from palindiff.training.training_cost import training_tflop

    try:
        return training_tflop(bundled_folder(model) if model in bundled_models() else Path(model))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        typer.echo(f"The cost of training `{model}` is not in the records: {error}", err=True)
        return None


def _named(text: str, split: str, on_bad: OnBad, where: list[str]) -> "NamedData":
    from palindiff.data.conditions import Condition
    from palindiff.data.sources import DataConfig
    from palindiff.evaluation.class_sets import find_class_set
    from palindiff.evaluation.named_data import NamedData

    name, equals, path = text.partition("=")
    if not equals or "/" in name:
        name, path = Path(text.removesuffix("/").removesuffix("/{split}")).name, text
    conditions = [str(Condition.parse(each)) for each in where]
    label = f"{name}/{split}" + "".join(f" {each}" for each in conditions)
    config = DataConfig(path=path, split=split, on_bad=on_bad, where=conditions)
    return NamedData(label, config, find_class_set(name))


def _settings(steps: str, guidance_scales: str, seeds: str) -> "list[NamingSetting]":
    """Combine all steps, guidance scales and seeds, each combination once."""
    from pydantic import ValidationError

    from palindiff.evaluation.tasks import NamingSetting

    scales = [_number(part, float, "--guidance-scale") for part in guidance_scales.split(",")]
    combined = product(_whole_numbers(steps, "--steps"), scales, _whole_numbers(seeds, "--seeds"))
    try:
        found = [NamingSetting(num_inference_steps=n, guidance_scale=scale, seed=seed) for n, scale, seed in combined]
    except ValidationError as error:
        problem = error.errors()[0]
        raise ValueError(
            f"`{problem['loc'][0]}` is {problem['input']} in --steps, --guidance-scale or --seeds. Expected a step or "
            "more, a guidance scale of 1 or more, and seeds from 0 on. Fix it."
        ) from error
    return list(dict.fromkeys(found))


def _whole_numbers(text: str, option: str) -> list[int]:
    """Read `0,3-5` as 0, 3, 4, 5."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        start = _number(first or part, int, option)
        span = range(start, _number(last, int, option) + 1) if first and last else [start]
        if not span:
            raise ValueError(f"{option} has `{part}`. Expected FIRST-LAST, the smaller number first. Fix it.")
        found += span
    return found


def _number(text: str, kind: type[Number], option: str) -> Number:
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"{option} has `{text}`. Expected numbers, separated by commas. Fix it.") from error


def _print(records: "Sequence[Record]") -> None:
    """Print a table for each data set and task: the metrics of one setting with intervals, or settings down."""
    by_table = attrgetter("dataset", "task")
    for (dataset, task), group in groupby(sorted(records, key=by_table), key=by_table):
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


def _write_results(path: Path, records: "Sequence[Record]", elapsed_s: float) -> None:
    from palindiff.evaluation.results import write_results

    rows = [row for record in records for row in record.flat_rows()]
    settings = {"model": records[0].model, "data": sorted({record.dataset for record in records})}
    write_results(path, rows, command_line(), settings, records[0].seed, elapsed_s)
