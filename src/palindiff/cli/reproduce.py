"""`palindiff reproduce`: measure a table of the paper again, at one of several scales."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palindiff.cli.model_option import DeviceOption, check_is_alone, find_device
from palindiff.cli.output_option import DryRunOption, command_line, next_line, print_table
from palindiff.cli.recipe_option import SetOption

if TYPE_CHECKING:
    from palindiff.experiments.reproduction.model_runs import ModelRun


TARGETS = (
    "table1 to table9, figure4, diffusing, fusion, rates, unidiff, unidiff-rates, unidiff-weights, controls, claims, "
    "exploratory-claims, unidiff-claims; which of them exist depends on the scale."
)


def reproduce(
    target: Annotated[str, typer.Argument(metavar="TABLE", help=TARGETS)],
    scale: Annotated[str, typer.Option(metavar="NAME|FILE.yaml", help="Scale: emoji, photos or paper.")] = "emoji",
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder with the data sets of the scale.")] = Path("data"),
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs, one folder each.")] = Path("runs"),
    results: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Result file.", show_default="results/TABLE-SCALE.json")
    ] = None,
    overrides: SetOption = None,
    finished_only: Annotated[
        bool, typer.Option("--finished-only", help="Measure the models that are trained; train none.")
    ] = False,
    device: DeviceOption = "auto",
    num_workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that decode images.")] = 0,
    dry_run: DryRunOption = False,
) -> None:
    """Train and evaluate what a table of the paper shows.

    Rerun the same command to resume: finished models are not trained again, and nothing is measured twice. Several
    calls may run at once: each trains what no other one is training. --device is that of the evaluation. Rows whose
    runs are not there stay as the result file has them, if the plan is still the same.

    \b
    Examples:
      palindiff reproduce table4 --scale emoji --dry-run
      palindiff reproduce table4 --scale emoji --data data
      palindiff reproduce claims --scale emoji --data data --finished-only
      palindiff reproduce unidiff --scale emoji --data data
    """
    check_is_alone("reproduce", "Start the command several times to train several runs at once.")
    from palindiff.experiments.reproduction.plan import load_plan
    from palindiff.experiments.reproduction.reproduce import ReproduceOptions, Reproduction

    stem = Path(scale).stem
    options = ReproduceOptions(
        target, scale, data, runs, results or Path("results") / load_plan(scale).result_file(target, stem),
        tuple(overrides or ()), finished_only, find_device(device), num_workers,
    )  # fmt: skip
    reproduction = Reproduction(options, lambda sentence: typer.echo(sentence))
    if dry_run:
        rows = [_plan_row(run, reproduction.plan.hours) for run in reproduction.model_runs()]
        print_table(f"runs of {target}, {stem}", ["run", "steps", "TFLOP", "hours", "state"], rows)
        hours = [reproduction.plan.hours.get(run.variant) for run in reproduction.model_runs()]
        typer.echo(f"{len(rows)} runs, {sum(filter(None, hours)):.1f} hours of those whose hours are known")
        return
    if reproduction.run(command_line()):
        typer.echo(f"written: {options.results}")
        typer.echo(next_line("python -m palindiff.experiments.reproduction.report docs/tables.md"))
    else:
        typer.echo("nothing is finished, so nothing was written")


def _plan_row(run: "ModelRun", hours: dict[str, float]) -> tuple[str, str, str, str, str]:
    """Return name, steps, cost, hours and state of a run; costs of runs from an untrained start are not known."""
    steps, tflop = ("not known", "not known")
    if run.is_countable:
        steps, tflop = f"{run.recipe.loop.num_steps:,}", f"{run.train_tflop:,.0f}"
    known = f"{hours[run.variant]:.2f}" if run.variant in hours else "not known"
    return run.name, steps, tflop, known, "finished" if run.is_finished else "not finished"
