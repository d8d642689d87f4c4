"""Plots beside the tables: a column along a setting of naming, and what the noisy query changes at each step.

Here: from result files to SVG. Not here: drawing (`experiments/plots.py`), the page (`report.py`).
"""

import re
from collections.abc import Mapping
from pathlib import Path

from palindiff.atomic import atomic_text
from palindiff.evaluation.results import Results
from palindiff.experiments.plots import line_plot
from palindiff.experiments.reproduction.plan import Plan, Target

COSINE = re.compile(r"chain_cosine_(noise|other)_t(\d+)")


def table_plot(plan: Plan, target: Target, found: Results) -> str | None:
    """Plot a table's first column along its setting -> SVG; None if the table has no plot, or too few points."""
    table = plan.tables[target]
    if table.x is None:
        return None
    title = plan.columns[table.columns[0]].title
    value = {str(row["row"]): row["value"] for row in found.rows if row["seed"] is None and row["column"] == title}
    points: dict[float, dict[str, float]] = {}
    curves: dict[str, int] = {}
    for row in table.rows:
        if row.curve is not None and row.x is not None and row.label in value:
            points.setdefault(row.x, {table.x: row.x})[row.curve] = 100 * float(str(value[row.label]))
            curves[row.curve] = curves.get(row.curve, 0) + 1
    if not any(number > 1 for number in curves.values()):
        return None
    return line_plot([points[x] for x in sorted(points)], list(curves), f"{title}, in percent", table.x)


def chain_plot(found: Results) -> str | None:
    """Plot the cosine between predictions from the image's own query and from noise, at each step of the diffusion."""
    points: dict[int, dict[str, float]] = {}
    variants: dict[str, None] = {}
    for row in found.rows:
        matched = COSINE.fullmatch(str(row["metric"]))
        if matched is not None and matched[1] == "noise":
            variant, t = str(row["variant"]), int(matched[2])
            points.setdefault(t, {"t_e": t})[variant] = float(str(row["value"]))
            variants[variant] = None
    if len(points) < 2:
        return None
    title = "cosine of predictions from the own query and from noise"
    return line_plot([points[t] for t in sorted(points)], list(variants), title, "t_e")


def write_figures(figures: Mapping[str, str], folder: Path) -> None:
    """Write SVG files, by their names."""
    for name, svg in figures.items():
        atomic_text(folder / name, svg + "\n")
