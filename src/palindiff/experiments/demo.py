"""The demo: the emoji set, a model (bundled, or trained now), measures, and one page.

Here: the order of things. Not here: what is measured (`emoji_protocol.py`) and shown (`showing.py`).
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from palindiff.atomic import atomic_text
from palindiff.data.emoji import STYLES, build_emoji_set
from palindiff.evaluation.results import Results, read_results, write_results
from palindiff.evaluation.retrieval import Row
from palindiff.experiments.curves import Line
from palindiff.experiments.demo_page import page
from palindiff.experiments.demo_sections import chains, generations, named, search, training_curves
from palindiff.experiments.emoji_protocol import Embedded, Trained, embed_unseen, measure_generation, naming_rows
from palindiff.experiments.evaluators import evaluators
from palindiff.inference.bundled import load
from palindiff.pretrained.bundled import bundled_folder
from palindiff.training.loop.device import make_accelerator
from palindiff.training.loop.loop import Run, backward_step
from palindiff.training.loop.run_log import RunLog, read_log
from palindiff.training.recipes.yaml_files import load_recipe, prepare_run_dir
from palindiff.training.train_diffdis import Recipe, prepare, train_recipe

TRAINED_RECIPE = "emoji-quick"  # what `--train` trains; only its number of steps is set here
SHARE_OF_TIME_FOR_STEPS = 0.93  # of the minutes asked for; the rest goes to the looks on the way
TIMED_STEPS = 4

Progress = Callable[[str], None]


@dataclass(frozen=True)
class DemoOptions:
    """What the user asked for."""

    output: Path
    data_dir: Path
    minutes: float | None  # train so long first; None shows the bundled model
    seed: int
    results: Path | None  # measure generation too and write all rows there


def run_demo(options: DemoOptions, command: str, tell: Progress) -> Path:
    """Make the page, and the result file where one is wanted.

    Returns: the page's path.
    """
    started = time.perf_counter()
    if not options.data_dir.exists():
        tell("drawing the emoji set")
        build_emoji_set(options.data_dir)
    model, log = bundled_model() if options.minutes is None else train_now(options, tell)
    tell("reading unseen images")
    embedded = [embed_unseen(model.pipeline, options.data_dir, style) for style in STYLES]
    rows = [row for each in embedded for row in naming_rows(model, each)]
    if options.results is not None:
        rows += measure_generation(model, options.data_dir, tell)
        write_rows(options, rows, command, time.perf_counter() - started)
    tell("generation the page")
    options.output.mkdir(parents=True, exist_ok=True)
    target = options.output / "index.html"
    atomic_text(target, render(model, embedded, rows, log, options))
    return target


def render(model: Trained, embedded: list[Embedded], rows: list[Row], log: list[Line], options: DemoOptions) -> str:
    """Put the page together."""
    kind = "bundled with the package" if model.name == "bundled" else "trained just now"
    lead = (
        f"<p>One network, {kind}: {model.steps:,} steps, {model.seconds / 60:.0f} minutes of training. It "
        "generates from captions, names images it has never seen, and finds images by words. Images: Twemoji "
        "(CC BY 4.0) and OpenMoji (CC BY-SA 4.0).</p>"
    )
    naming = [row for row in rows if "split" not in row]
    return page(
        "palindiff",
        lead,
        [
            generations(model.pipeline, options.data_dir, options.seed),
            named(embedded),
            search(embedded, naming),
            chains(model.pipeline, embedded[0], options.seed),
            training_curves(log),
        ],
    )


def bundled_model() -> tuple[Trained, list[Line]]:
    """Load the emoji model that ships, with its training log."""
    log = read_log(bundled_folder("emoji") / "log.jsonl")
    return Trained("bundled", load("emoji"), *_cost(log)), log


def train_now(options: DemoOptions, tell: Progress) -> tuple[Trained, list[Line]]:
    """Train for so many minutes on this machine, going on where an earlier call was stopped."""
    run = options.output / "run"
    recipe = timed_recipe(options, run, tell)
    told = f"{TRAINED_RECIPE}, loop.num_steps={recipe.loop.num_steps} for {options.minutes:g} minutes"
    prepare_run_dir(recipe, run, told)
    tell(f"training {recipe.loop.num_steps} steps")
    pipeline = train_recipe(recipe, run, evaluators)
    log = read_log(run / "log.jsonl")
    return Trained("trained", pipeline, *_cost(log)), log


def timed_recipe(options: DemoOptions, run: Path, tell: Progress) -> Recipe:
    """Choose the number of steps that fit the minutes, from the time of some steps on this machine.

    A run that was begun keeps the number it was begun with.
    """
    fixed = [f"data.path={json.dumps(str(options.data_dir))}", f"loop.seed={options.seed}"]
    if (run / "recipe.yaml").exists():
        begun = load_recipe(Recipe, str(run / "recipe.yaml"))
        return load_recipe(Recipe, TRAINED_RECIPE, [*fixed, *_steps(begun.loop.num_steps)])
    recipe = load_recipe(Recipe, TRAINED_RECIPE, fixed)
    tell("computing features, and timing some steps")
    num_steps = int(60 * (options.minutes or 0) * SHARE_OF_TIME_FOR_STEPS / seconds_per_step(recipe, run))
    return load_recipe(Recipe, TRAINED_RECIPE, [*fixed, *_steps(max(num_steps, 1))])


def seconds_per_step(recipe: Recipe, run: Path) -> float:
    """Time some steps of a recipe, the first left out; nothing is kept but the cached features."""
    accelerator = make_accelerator(recipe.machine)
    parts = prepare(recipe, run, accelerator, lambda *_: None)
    objective = accelerator.prepare(parts.objective.to(accelerator.device).train())
    timed = Run(
        objective=parts.objective, parameter_groups=[], training_set=parts.training_set, loop=recipe.loop,
        optimizer=recipe.optimizer, machine=recipe.machine, run_log=RunLog(run), state_dir=str(run),
    )  # fmt: skip
    taken = []
    for step in range(TIMED_STEPS + 1):
        started = time.perf_counter()
        backward_step(timed, objective, accelerator, step)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return sorted(taken[1:])[TIMED_STEPS // 2]


def write_rows(options: DemoOptions, rows: list[Row], command: str, elapsed_s: float) -> None:
    """Write the rows of this model, keeping those of the other one that the file holds already."""
    assert options.results is not None
    mine = {str(row["model"]) for row in rows}
    kept: list[Row] = []
    origins: dict[str, object] = {}
    if options.results.exists():
        before = read_results(options.results)
        kept = [row for row in before.rows if row["model"] not in mine]
        origins = {str(row["model"]): _origin(before, str(row["model"])) for row in kept}
    settings = {"minutes": options.minutes, "rows_measured_before": origins}
    write_results(options.results, [*kept, *rows], command, settings, options.seed, elapsed_s)


def _origin(before: Results, model: str) -> object:
    """Where kept rows of a model come from: all that their own file told beside the rows."""
    earlier = before.settings.get("rows_measured_before")
    if isinstance(earlier, dict) and model in earlier:
        return earlier[model]
    return before.model_dump(exclude={"rows": True, "settings": {"rows_measured_before"}})


def _steps(num_steps: int) -> list[str]:
    """Number of steps, and a decay over the last third of them."""
    return [f"loop.num_steps={num_steps}", f"optimizer.decay_steps={max(num_steps // 3, 1)}"]


def _cost(log: list[Line]) -> tuple[int, float]:
    return int(max(line["step"] for line in log)), max(line.get("elapsed_s", 0.0) for line in log)
