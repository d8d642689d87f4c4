"""The page's section of controls: what is reached without reading an image, and what the noisy query changes.

Here: from the rows of `controls` and of the tables to Markdown. Not here: measuring (`evaluation/control_task.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean

from palindiff.evaluation.results import Results, Row
from palindiff.experiments.reproduction.markdown import heading, markdown_table, wrapped
from palindiff.experiments.reproduction.plan import Plan
from palindiff.experiments.reproduction.plan_sections import WAYS, NamingPlan

ABOUT = (
    "In percent, of one seed. `shuffled images`: each image is taken for another one. `nearest training image`: its "
    "caption stands for the image, embedded by the model's own text encoder. `this model`: its row in a table below, "
    "mean of its seeds. A model below the nearest training image names no better than copying that image's caption "
    "would."
)
ABOUT_CHAIN = (
    "What the noisy query changes, on {n:,} images. `chain_cosine_noise_tT`: cosine between the predictions from the "
    "image's own noisy query and from noise, at step T; `other`: from another image's query. At 1 the query is "
    "ignored. `recall_K_from_noise`: recall with predictions from noise alone. `recall_10_own_tT`: the model is given "
    "the noisy embedding of the right caption, a leak that shows whether it is read, not a result."
)
CONTROLS = {
    "shuffled_images": "shuffled images", "zeroed_images": "an image of zeros",
    "largest_class": "the most frequent class", "nearest_thumbnail": "nearest training image, by thumbnail",
    "nearest_efflite0": "nearest training image, by EfficientNet-Lite0",
}  # fmt: skip
CHAIN = "chain_"
Level = tuple[str, float]
"""Label of a table's row, and its value"""


def controls_section(plan: Plan, found: Results, tables: Mapping[str, Results], plot: str | None) -> str:
    """Write the section.

    tables: results of the scale's tables. plot: file of the figure on the noisy query.
    """
    variants = list(dict.fromkeys(str(row["variant"]) for row in found.rows))
    lines = ["### Controls\n", f"{wrapped(ABOUT)}\n"]
    for name in plan.controlled_data:
        of_data = [row for row in found.rows if row["data"] == name]
        rows, best = list[list[str]](), list[str]()
        for title, metrics in _metrics(plan, name).items():
            levels = _levels(plan, tables, name, metrics)
            own = {variant: value for variant, (_, value) in levels.items()}
            rows += _control_rows(title, of_data, metrics, variants, own)
            if levels:
                label, value = max(levels.values(), key=lambda level: level[1])
                best.append(f"{title} {100 * value:.1f} ({label})")
        on_data = "" if len(plan.controlled_data) == 1 else f" on {name}"
        lines.append(f"{markdown_table([f'control{on_data}', *variants], rows)}\n")
        if best:
            lines.append(
                f"{wrapped(f'Highest{on_data} of all models in the tables below: ' + '; '.join(best) + '.')}\n"
            )
        lines += _chain(of_data, variants, on_data)
    if plot is not None:
        lines.append(f"![Use of the noisy query]({plot})\n")
    return "\n".join(lines)


def _metrics(plan: Plan, name: str) -> dict[str, tuple[str, ...]]:
    """What the controls of a data set are shown by: titles, and the metrics whose mean they are."""
    data = plan.naming[name]
    found: dict[str, tuple[str, ...]] = {}
    if "retrieval" in data.tasks:
        found[f"recall@{data.recall_k}"] = data.recall_metrics
        found["R@1"] = tuple(f"{way}_retrieval_recall@1" for way in WAYS)
    if "classification" in data.tasks:
        found["accuracy"] = ("acc1",)
    return found


def _control_rows(
    title: str, rows: Sequence[Row], metrics: Sequence[str], variants: Sequence[str], own: Mapping[str, float]
) -> list[list[str]]:
    """Rows of a metric: each control, then the model itself."""
    found: dict[str, dict[str, float]] = {}
    for control, name in CONTROLS.items():
        of_variant = {
            variant: _mean(rows, variant, [f"{control}_{metric}" for metric in metrics]) for variant in variants
        }
        known = {variant: value for variant, value in of_variant.items() if value is not None}
        is_possible = not control.startswith("nearest") or any(known.values())  # no class of it was in training
        if known and is_possible:
            found[name] = known
    if found:
        found["this model"] = dict(own)
    return [
        [f"{name}: {title}", *(f"{100 * of[variant]:.1f}" if variant in of else "" for variant in variants)]
        for name, of in found.items()
        if any(variant in of for variant in variants)
    ]


def _mean(rows: Iterable[Row], variant: str, metrics: Sequence[str]) -> float | None:
    values = [float(str(row["value"])) for row in rows if row["variant"] == variant and str(row["metric"]) in metrics]
    return mean(values) if len(values) == len(metrics) else None


def _levels(plan: Plan, tables: Mapping[str, Results], data: str, metrics: Sequence[str]) -> dict[str, Level]:
    """What each variant reaches in the tables, without guidance: of several rows, that of the most seeds."""
    found: dict[str, tuple[int, Level]] = {}
    for target, results in tables.items():
        table = plan.tables[target]
        titles = [
            column.title
            for column in (plan.columns[name] for name in table.columns)
            if column.data == (data,) and set(column.metrics) == set(metrics)
        ]
        plain = {
            row.label: row
            for row in table.rows
            if row.naming == NamingPlan() and row.interpolation is None and row.diffusion_classifier is None
        }
        for row in results.rows:
            if row["seed"] is None and row["row"] in plain and row["column"] in titles:
                of_plan, seeds = plain[str(row["row"])], int(str(row["num_seeds"]))
                if seeds > found.get(of_plan.variant, (0,))[0]:
                    level = (f"{of_plan.shown or of_plan.label}, {heading(target)}", float(str(row["value"])))
                    found[of_plan.variant] = (seeds, level)
    return {variant: level for variant, (_, level) in found.items()}


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
