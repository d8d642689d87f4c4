"""Estimated memory and computation of each preset on its GPU, for the full-size model of the paper.

Run: python benchmarks/presets.py [--recipe diffdis-cc3m] [--results results/presets.json]. Nothing is measured: the
rows are those of `palindiff estimate --recipe RECIPE --preset PRESET`, on one GPU.
"""

import argparse
import time
from pathlib import Path

from palindiff.evaluation.results import Row, render_table, write_results
from palindiff.training.cost.estimate import Hardware, estimate
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.yaml_files import load_recipe, preset_names

COLUMNS = ("preset", "card_gb:.1f", "peak_gb:.1f", "activations_gb:.1f", "rows_at_once", "step_tflop:.0f")


def rows_of(recipe_name: str) -> list[Row]:
    """Return one row per preset, smallest GPU first; 1 GB = 10^9 bytes, and a GPU's name gives its memory in GiB."""
    rows: list[Row] = []
    for preset in sorted(preset_names(), key=card_gib):
        recipe = load_recipe(DiffDisRecipe, recipe_name, preset=preset)
        found = estimate(recipe, Hardware())
        memory = found.memory_bytes
        rows.append(
            {
                "preset": preset,
                "card_gb": card_gib(preset) * 2**30 / 1e9,
                "peak_gb": memory.peak / 1e9,
                "activations_gb": memory.activations / 1e9,
                "batch_size": recipe.loop.batch_size,
                "negatives": recipe.loop.batch_size // recipe.loop.accumulation - 1,
                "rows_at_once": recipe.loop.grad_cache_size or recipe.loop.batch_size // recipe.loop.accumulation,
                "step_tflop": found.tflop.whole_step,
            }
        )
    return rows


def card_gib(preset: str) -> int:
    """Read the memory of a preset's GPU from its name."""
    return int(preset.removesuffix("gb"))


def main() -> None:
    """Print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="diffdis-cc3m", help="(default: %(default)s)")
    parser.add_argument("--results", type=Path, help="file to write; without it the table is only printed")
    args = parser.parse_args()
    began = time.perf_counter()
    rows = rows_of(args.recipe)
    print(render_table(rows, COLUMNS))
    if args.results:
        command = f"python benchmarks/presets.py --recipe {args.recipe} --results results/{args.results.name}"
        write_results(args.results, rows, command, {"recipe": args.recipe}, 0, time.perf_counter() - began)


if __name__ == "__main__":
    main()
