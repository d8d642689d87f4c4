"""The page of the paper's tables: its numbers beside ours, and a verdict on each claim, from result files alone.

Here: docs/tables.md. Not here: the numbers (`reproduce.py`).

Run: python -m palindiff.experiments.reproduction.report [docs/tables.md]
"""

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from palindiff.atomic import atomic_text
from palindiff.evaluation.results import RESULTS_FOLDER, Results, Row, read_results
from palindiff.experiments.reproduction.plan import Plan, load_plan, plan_names

PAGE = Path("docs/tables.md")
WIDTH = 119
OURS = {  # metric -> column, and whether it is a share
    "recall": ("recall@10, both ways", True),
    "text_retrieval_recall@1": ("R@1 image to text", True),
    "image_retrieval_recall@1": ("R@1 text to image", True),
    "acc1": ("accuracy", True),
    "kd_efflite0": ("KD-EffLite0", False),
    "caption_to_generated_recall_10": ("recall@10 of generated", True),
}
INTRODUCTION = """# The paper's tables, measured again

After reading this page you know which claims of DiffDis hold at the scales that were run here. Measure a table again:

```
palindiff reproduce table4 --scale emoji --data data
```

The paper's numbers are of its own data and models, so only the direction of a difference compares. Ours are means
over seeds, with 95 % bootstrap intervals over seeds and items where they are means of items, and the lowest and
highest seed elsewhere. What counts as a result is fixed in [protocol.md](protocol.md): the eight claims and their
verdicts. All else is exploratory. `python -m palindiff.experiments.reproduction.report` writes this page from
`results/`.
"""


def page(results: Path) -> str:
    """Write the whole page.

    results: the folder of the result files.
    """
    parts = [INTRODUCTION]
    for scale in plan_names():
        plan = load_plan(scale)
        parts.append(f"## Scale `{scale}`\n\n{_wrapped(plan.about)}\n")
        claims = _read(results, "claims", scale)
        parts.append(_claims(plan, claims))
        parts += [_table(target, scale, plan, _read(results, target, scale)) for target in plan.tables]
    return "\n".join(parts)


def _read(results: Path, target: str, scale: str) -> Results | None:
    file = results / f"{target}-{scale}.json"
    return read_results(file) if file.is_file() else None


def _claims(plan: Plan, found: Results | None) -> str:
    if not plan.claims:
        return "No primary comparison is made at this scale.\n"
    by_claim: dict[str, dict[str, Row]] = {}
    for row in found.rows if found is not None else ():
        by_claim.setdefault(str(row["claim"]), {})[str(row["budget"])] = row
    rows = []
    for name, claim in plan.claims.items():
        of_claim = by_claim.get(name, {})
        budgets = ("steps", "flop") if claim.has_budgets else ("steps",)
        rows += [[name, claim.text, f"equal {budget}", *_verdict(of_claim.get(budget))] for budget in budgets]
    header = ["claim", "A is better than B", "budget", "A - B", "interval that decides", "seeds", "verdict"]
    return f"### Claims\n\n{_markdown(header, rows)}\n"


def _verdict(row: Row | None) -> list[str]:
    if row is None:
        return ["", "", "", "not run"]
    digits = 2 if row["metric"] == "recall" else 5
    low, high, difference = (
        f"{float(str(row[key])):.{digits}f}" for key in ("judged_low", "judged_high", "difference")
    )
    unit = "points" if row["metric"] == "recall" else "KD"
    return [f"{difference} {unit}", f"{low} to {high}", str(row["num_seeds"]), str(row["verdict"])]


def _table(target: str, scale: str, plan: Plan, found: Results | None) -> str:
    table = plan.tables[target]
    lines = [f"### {_heading(target)}: {table.title}\n"]
    if table.paper_says:
        lines.append(f"{_wrapped(table.paper_says)}\n")
    if found is None:
        lines.append("Not run.\n")
        return "\n".join(lines)
    over_seeds = [row for row in found.rows if row["seed"] is None]
    columns = list(dict.fromkeys(column for row in table.rows for column in row.paper))
    data = {plan.primary, *([table.generation] if table.generation else [])}
    metrics = [m for m in OURS if any(row["metric"] == m and row["data"] in data for row in over_seeds)]
    header = ["", *(f"paper: {column}" for column in columns), *(OURS[metric][0] for metric in metrics), "seeds"]
    rows = []
    for row in table.rows:
        own = {str(each["metric"]): each for each in over_seeds if each["row"] == row.label and each["data"] in data}
        seeds = max((int(str(each["num_seeds"])) for each in own.values()), default=0)
        paper = [f"{row.paper[column]:g}" if column in row.paper else "" for column in columns]
        rows.append([row.label, *paper, *(_number(own.get(metric), metric) for metric in metrics), str(seeds)])
    if unfinished := found.settings.get("unfinished"):
        names = ", ".join(map(str, unfinished))  # type: ignore[arg-type]
        lines.append(f"{_wrapped(f'Not run: {names}.')}\n")
    lines.append(f"{_markdown(header, rows)}\n")
    if table.sheet_captions:
        lines.append(f"![{table.title}](../results/{target}-{scale}.png)\n")
    return "\n".join(lines)


def _heading(target: str) -> str:
    """`table4` -> "Table 4"."""
    kind = target.rstrip("0123456789")
    return f"{kind.capitalize()} {target.removeprefix(kind)}".strip()


def _number(row: Mapping[str, object] | None, metric: str) -> str:
    """Write a mean with its interval, or with its lowest and highest seed."""
    if row is None:
        return ""
    is_share = OURS[metric][1]
    ends = [row["ci_low"], row["ci_high"]] if row["ci_low"] is not None else [row["lowest"], row["highest"]]
    shown = [
        f"{100 * float(str(each)):.1f}" if is_share else f"{float(str(each)):.4f}" for each in (row["value"], *ends)
    ]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


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
    atomic_text(args.page, page(args.results))
    print(args.page)


if __name__ == "__main__":
    main()
