"""The demo: the emoji set, a model (bundled, or trained now), its evaluation, and one page.

Here: the order of these. Not here: what is measured (`result_rows.py`) and shown (`demo_groups.py`,
`demo_sections.py`).
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from palindiff.atomic import atomic_text
from palindiff.data.emoji import STYLES
from palindiff.data.emoji_set import build_emoji_set
from palindiff.evaluation.results import Row, read_results, write_results
from palindiff.evaluation.thumbnails import CAPTION_TO_GENERATED
from palindiff.experiments import demo_sections as sections
from palindiff.experiments.bundled_vendor import image_credits
from palindiff.experiments.demo_groups import Group, page_groups
from palindiff.experiments.demo_page import page
from palindiff.experiments.emoji_protocol import EvaluatedModel, Report
from palindiff.experiments.emoji_subsets import COMPOSITION, has_split
from palindiff.experiments.measured import read_measured
from palindiff.experiments.naming_protocol import EmbeddedConcepts, embed_compositions, embed_unseen
from palindiff.experiments.plots import Line
from palindiff.experiments.result_rows import cheap_rows, further_rows
from palindiff.inference.bundled import load
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.pretrained.bundled import bundled_folder
from palindiff.training.loop.loop import backward_step
from palindiff.training.loop.run_log import LOG_FILE, read_log, training_cost
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.yaml_files import RECIPE_FILE, load_recipe, prepare_run_dir
from palindiff.training.trainer import make_trainer, train_recipe

TRAINED_RECIPE = "emoji-quick"  # what `--train` trains; only its number of steps is set here
SHARE_OF_TIME_FOR_STEPS = 0.93  # of the minutes asked for; the rest goes to evaluation
TIMED_STEPS = 5  # the first is left out


@dataclass(frozen=True)
class DemoOptions:
    """What the user asked for."""

    output: Path
    data_dir: Path
    minutes: float | None  # train so long first; None shows the bundled model
    seed: int
    results: Path | None  # measure generation too and write all rows there


def run_demo(options: DemoOptions, command: str, report: Report) -> Path:
    """Write the page, and the result file if `options.results` names one.

    Returns: the page's path.
    """
    started = time.perf_counter()
    if not options.data_dir.exists():
        report("drawing the emoji set")
        build_emoji_set(options.data_dir)
    model, log = bundled_model() if options.minutes is None else train_now(options, report)
    report("naming unseen images")
    unseen = [embed_unseen(model.pipeline, options.data_dir, style) for style in STYLES]
    styles = STYLES if has_split(options.data_dir, COMPOSITION) else ()
    compositions = [embed_compositions(model.pipeline, options.data_dir, style) for style in styles]
    naming = cheap_rows(model, unseen, compositions)
    if options.results is None:
        further = measured_before(model)
    else:
        further = further_rows(model, unseen, options.data_dir, report)
        write_rows(options, naming + further, command, time.perf_counter() - started)
    report("generating and naming the images of the page")
    groups = page_groups(model.pipeline, options.data_dir, options.seed, unseen, compositions, naming + further)
    report("writing the page")
    options.output.mkdir(parents=True, exist_ok=True)
    target = options.output / "index.html"
    atomic_text(target, render(model, groups, unseen, naming, log, options))
    return target


def render(
    model: EvaluatedModel,
    groups: list[Group],
    unseen: list[EmbeddedConcepts],
    naming: list[Row],
    log: list[Line],
    options: DemoOptions,
) -> str:
    """Put the page together; `naming` are the rows of its table."""
    return page(
        model=model,
        image_size_px=model.pipeline.image_size_px,
        groups=groups,
        retrieved=[each for concepts in unseen for each in sections.retrieved_images(concepts)],
        recall=naming,
        denoised_caption=sections.DENOISED_CAPTION,
        denoised=sections.denoised_images(model.pipeline, sections.DENOISED_CAPTION, options.seed),
        naming=sections.naming_steps(model.pipeline, unseen[0]),
        plots=sections.training_curves(log),
        credits=image_credits(options.data_dir),
    )


def measured_before(model: EvaluatedModel) -> list[Row]:
    """Rows that were measured of the bundled weights, without those of naming, which each page measures."""
    if model.name != "bundled":
        return []
    rows = read_measured(bundled_folder("emoji"), model.steps, model.seconds)
    return [row for row in rows if row.get("direction") == CAPTION_TO_GENERATED or "vendor" in row]


def bundled_model() -> tuple[EvaluatedModel, list[Line]]:
    """Load the bundled emoji model with its training log."""
    return _with_log("bundled", load("emoji"), bundled_folder("emoji"))


def train_now(options: DemoOptions, report: Report) -> tuple[EvaluatedModel, list[Line]]:
    """Train for so many minutes on this machine, or resume an earlier call."""
    run = options.output / "run"
    recipe = timed_recipe(options, run, report)
    num_steps = recipe.loop.num_steps
    prepare_run_dir(recipe, run, f"{TRAINED_RECIPE}, loop.num_steps={num_steps} for {options.minutes:g} minutes")
    report(f"training {num_steps} steps")
    return _with_log("trained", train_recipe(recipe, run), run)


def timed_recipe(options: DemoOptions, run: Path, report: Report) -> DiffDisRecipe:
    """Choose the number of steps that fit the minutes, from the time of some steps on this machine.

    A run that was begun keeps its number.
    """
    fixed = [f"data.path={json.dumps(str(options.data_dir))}", f"loop.seed={options.seed}"]
    if (run / RECIPE_FILE).exists():
        num_steps = load_recipe(DiffDisRecipe, str(run / RECIPE_FILE)).loop.num_steps
    else:
        report("computing features, and timing some steps")
        seconds = 60 * (options.minutes or 0) * SHARE_OF_TIME_FOR_STEPS
        num_steps = max(int(seconds / seconds_per_step(load_recipe(DiffDisRecipe, TRAINED_RECIPE, fixed), run)), 1)
    steps = [f"loop.num_steps={num_steps}", f"optimizer.decay_steps={max(num_steps // 3, 1)}"]
    return load_recipe(DiffDisRecipe, TRAINED_RECIPE, [*fixed, *steps])


def seconds_per_step(recipe: DiffDisRecipe, run: Path) -> float:
    """Time some steps of a recipe, the first left out; only the cached features stay."""
    trainer = make_trainer(recipe, run).prepare()
    accelerator = trainer.accelerator
    objective = accelerator.prepare(trainer.objective.to(accelerator.device).train())
    seconds = []
    for step in range(TIMED_STEPS):
        started = time.perf_counter()
        backward_step(trainer, objective, accelerator, step)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def write_rows(options: DemoOptions, rows: list[Row], command: str, elapsed_s: float) -> None:
    """Write the rows of this model, keeping those of the other one that the file holds already."""
    assert options.results is not None, "called where a result file is wanted"
    kept: list[Row] = []
    origins: dict[str, object] = {}  # of the kept rows: all that their own file says beside the rows
    if options.results.exists():
        before = read_results(options.results)
        kept = [row for row in before.rows if row["model"] != rows[0]["model"]]
        earlier = before.settings.pop("rows_measured_before", None)
        file = before.model_dump(exclude={"rows"})
        known = earlier if isinstance(earlier, dict) else {}
        origins = {str(row["model"]): known.get(str(row["model"]), file) for row in kept}
    settings = {"minutes": options.minutes, "rows_measured_before": origins}
    write_results(options.results, [*kept, *rows], command, settings, options.seed, elapsed_s)


def _with_log(name: str, pipeline: PalindiffPipeline, folder: Path) -> tuple[EvaluatedModel, list[Line]]:
    log = read_log(folder / LOG_FILE)
    return EvaluatedModel(name, pipeline, *training_cost(log)), log
