"""The page's section of controls: what is reached without reading an image, and what the noisy query changes.

Here: from the rows of `controls` and of the tables to Markdown. Not here: measuring (`evaluation/control_task.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from palindiff.evaluation.results import Results, Row
from palindiff.experiments.reproduction.markdown import heading, markdown_table, wrapped
from palindiff.experiments.reproduction.plan import Plan
from palindiff.experiments.reproduction.plan_sections import WAYS, NamingPlan

ABOUT = (
    "In percent, of one seed. `shuffled images`: each image is taken for another one. `nearest training image`: the "
    "embedding of its caption replaces the prediction, and its class is the answer; where no class of the test was "
    "trained on, that is never right. Blank: not measured."
)
ABOUT_MODELS = (
    "`this model`: the mean of its seeds, without guidance, from the tables {tables}. A model below the nearest "
    "training image names no better than that image's caption."
)
ABOUT_CHAIN = (
    "What the noisy query changes, on {n:,} images. `chain_cosine_noise_tT`: cosine between the predictions from the "
    "image's own noisy query and from noise, at step T; `other`: from another image's query. At 1 the query is "
    "ignored. `recall_K_from_noise`: recall with predictions from noise alone. `recall_10_own_tT`: the model is given "
    "the noisy embedding of the right caption, a leak that shows whether it is read, not a result."
)
CONTROL_NAMES = {
    "shuffled_images": "shuffled images", "zeroed_images": "an image of zeros",
    "largest_class": "the most frequent class", "nearest_thumbnail": "nearest training image, by thumbnail",
    "nearest_efflite0": "nearest training image, by EfficientNet-Lite0",
}  # fmt: skip
CHAIN = "chain_"


@dataclass(frozen=True)
class Level:
    """What a row of a table reaches by a metric."""

    row: str  # its label
    table: str  # its heading
    num_seeds: int
    value: float


def controls_section(plan: Plan, found: Results, tables: Mapping[str, Results], plot: str | None) -> str:
    """Write the section.

    tables: results of the scale's tables. plot: file of the figure on the noisy query.
    """
    variants = list(dict.fromkeys(str(row["variant"]) for row in found.rows))
    lines = ["### Controls\n", f"{wrapped(ABOUT)}\n"]
    for name in plan.controlled_data:
        of_data = [row for row in found.rows if row["data"] == name]
        rows, best, used = list[list[str]](), list[str](), dict[str, None]()
        for title, metrics in _metrics(plan, name).items():
            levels = _levels(plan, tables, name, metrics)
            own = {variant: levels[variant] for variant in variants if variant in levels}
            of_metric = _control_rows(title, of_data, metrics, variants, own)
            rows += of_metric
            used |= dict.fromkeys(level.table for level in own.values()) if of_metric else {}
            if of_metric and levels:
                highest = max(levels.values(), key=lambda level: level.value)
                best.append(f"{title} {100 * highest.value:.1f} ({highest.row}, {highest.table})")
        if not rows:
            continue
        on_data = "" if len(plan.controlled_data) == 1 else f" on {name}"
        lines.append(f"{markdown_table([f'control{on_data}', *variants], rows)}\n")
        if best:
            about = ABOUT_MODELS.format(tables=", ".join(used)) if used else ""
            about += f" Highest{on_data} of all models in the tables below: {'; '.join(best)}."
            lines.append(f"{wrapped(about)}\n")
        lines += _chain(of_data, variants, on_data)
    if plot is not None:
        lines.append(f"![Use of the noisy query]({plot})\n")
    return "\n".join(lines)


def _metrics(plan: Plan, name: str) -> dict[str, tuple[str, ...]]:
    """What the controls of a data set are shown by: titles, and the metrics whose mean they are."""
    data = plan.naming[name]
    found: dict[str, tuple[str, ...]] = {}
    if "retrieval" in data.tasks:
        for k in sorted({1, data.recall_k}, reverse=True):
            found[f"recall@{k}"] = tuple(f"{way}_retrieval_recall@{k}" for way in WAYS)
    if "classification" in data.tasks:
        found["accuracy"] = ("acc1",)
    return found


def _control_rows(
    title: str, rows: Sequence[Row], metrics: Sequence[str], variants: Sequence[str], own: Mapping[str, Level]
) -> list[list[str]]:
    """Rows of a metric: each control that was measured, then the model itself."""
    found: dict[str, dict[str, float]] = {}
    for control, name in CONTROL_NAMES.items():
        prefixed = [f"{control}_{metric}" for metric in metrics]
        of_variant = {variant: _mean(rows, variant, prefixed) for variant in variants}
        found[name] = {variant: value for variant, value in of_variant.items() if value is not None}
    if any(found.values()):
        found["this model"] = {variant: level.value for variant, level in own.items()}
    return [
        [f"{name}: {title}", *(f"{100 * of[variant]:.1f}" if variant in of else "" for variant in variants)]
        for name, of in found.items()
        if of
    ]


def _mean(rows: Iterable[Row], variant: str, metrics: Sequence[str]) -> float | None:
    values = [float(str(row["value"])) for row in rows if row["variant"] == variant and str(row["metric"]) in metrics]
    return mean(values) if len(values) == len(metrics) else None


def _levels(plan: Plan, tables: Mapping[str, Results], data: str, metrics: Sequence[str]) -> dict[str, Level]:
    """What each variant reaches in the tables, without guidance: of several rows, that of the most seeds."""
    found: dict[str, Level] = {}
    for target, results in tables.items():
        for row in plan.tables[target].rows:
            if row.naming != NamingPlan() or row.interpolation is not None or row.diffusion_classifier is not None:
                continue
            of_row = [
                each for each in results.rows
                if each["row"] == row.label and each["seed"] is not None and each.get("data") == data
                and each["metric"] in metrics
            ]  # fmt: skip
            num_seeds = len({each["seed"] for each in of_row})
            if not of_row or len(of_row) != num_seeds * len(metrics):
                continue
            level = Level(row.label, heading(target), num_seeds, mean(float(str(each["value"])) for each in of_row))
            found[row.variant] = max(found.get(row.variant, level), level, key=lambda each: each.num_seeds)
    return found


def _chain(rows: Sequence[Row], variants: Sequence[str], on_data: str) -> list[str]:
    """The rows of `chain_use`, if there are any."""
    of_metric: dict[str, dict[str, Row]] = {}
    for row in rows:
        if str(row["metric"]).startswith(CHAIN):
            of_metric.setdefault(str(row["metric"]), {})[str(row["variant"])] = row
    if not of_metric:
        return []
    numbers = [
        [metric, *(f"{float(str(of[variant]['value'])):.3f}" if variant in of else "" for variant in variants)]
        for metric, of in of_metric.items()
    ]
    n = max(int(str(row["n"])) for of in of_metric.values() for row in of.values())
    return [
        f"{wrapped(ABOUT_CHAIN.format(n=n))}\n",
        f"{markdown_table([f'use of the noisy query{on_data}', *variants], numbers)}\n",
    ]
