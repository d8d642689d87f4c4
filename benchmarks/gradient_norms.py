"""Norms of each task's gradient while both are trained, and what clipping one common norm does to each of them.

Run: python benchmarks/gradient_norms.py --output DIR [--recipe emoji-quick] [--set KEY=VALUE ...] [--every 10]
     [--results FILE.json]

Every few steps the gradients of generation and of alignment are computed alone, on the batch and the draws of that
step, before the step itself. See `docs/decisions.md`, row 24.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from palindiff.evaluation.results import script_command, write_results
from palindiff.training.loop.distributed import distribute
from palindiff.training.loop.loop import backward_step, train_step
from palindiff.training.loop.run_log import RunLog
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.yaml_files import load_recipe
from palindiff.training.trainer import make_trainer

TASKS = ("generation", "alignment")


def measure(recipe: DiffDisRecipe, output: Path, every: int) -> list[dict[str, float]]:
    """Train by a recipe -> the norms of each task's and of the common gradient at every `every`-th step."""
    trainer = make_trainer(recipe, output).prepare()
    trainer.run_log = RunLog(output, show_progress=False)
    accelerator, objective, config = trainer.accelerator, trainer.objective, recipe.objective
    distributed = distribute(objective, trainer.parameter_groups(), recipe.optimizer, recipe.machine, accelerator)
    trainer.run_log.start(0, recipe.loop, accelerator)
    rows = []
    for step in range(recipe.loop.num_steps):
        norms = {}
        if step % every == 0:
            for task in TASKS:
                objective.config = config.model_copy(update={"task": task})
                backward_step(trainer, distributed.objective, accelerator, step)
                norms[task] = gradient_norm(objective)
                distributed.optimizer.zero_grad()
            objective.config = config
        numbers = train_step(trainer, distributed, accelerator, step)
        trainer.run_log.step(step + 1, numbers)
        if norms:
            rows.append({"step": step + 1, "common": float(numbers["gradient_norm"])} | norms)
    trainer.run_log.finish()
    return rows


def gradient_norm(module: nn.Module) -> float:
    """The norm over all parameters."""
    return float(torch.nn.utils.get_total_norm([w.grad for w in module.parameters() if w.grad is not None]))


def summary(rows: list[dict[str, float]], clip_norm: float) -> list[dict[str, float | str]]:
    """Quartiles of the norms in each third of a run, the share of clipped steps, and who is rescaled by whom.

    `rescaled_by_the_other` is the mean factor by which a task's gradient shrinks beyond what its own norm asks for.
    """
    found = []
    for third in range(3):
        part = rows[third * len(rows) // 3 : (third + 1) * len(rows) // 3]
        for name in (*TASKS, "common"):
            low, median, high = statistics.quantiles([row[name] for row in part], n=4)
            own = [min(1.0, clip_norm / row[name]) for row in part]
            common = [min(1.0, clip_norm / row["common"]) for row in part]
            found.append({
                "gradient": name, "first_step": part[0]["step"], "last_step": part[-1]["step"],
                "norm_25": round(low, 4), "norm_50": round(median, 4), "norm_75": round(high, 4),
                "share_clipped": round(statistics.mean(factor < 1 for factor in common), 3),
                "rescaled_by_the_other": round(statistics.mean(c / o for c, o in zip(common, own, strict=True)), 3),
            })  # fmt: skip
    return found


def main() -> None:
    """Measure, print the summary, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the run's log")
    parser.add_argument("--recipe", default="emoji-quick", help="of both tasks (default: emoji-quick)")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="KEY=VALUE of it; repeatable")
    parser.add_argument("--every", type=int, default=10, help="steps between measurements (default: 10)")
    parser.add_argument("--results", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    recipe, began = load_recipe(DiffDisRecipe, args.recipe, args.overrides), time.perf_counter()
    rows = summary(measure(recipe, args.output, args.every), recipe.optimizer.clip_norm)
    for row in rows:
        print(row)
    if args.results:
        settings = {"recipe": args.recipe, "overrides": args.overrides, "every": args.every}
        command = script_command(__file__)
        write_results(args.results, rows, command, settings, recipe.loop.seed, time.perf_counter() - began)


if __name__ == "__main__":
    main()
