"""Text of the page of tables: headings, wrapped paragraphs and Markdown tables."""

import textwrap
from collections.abc import Sequence

WIDTH = 119
TITLES = {
    "unidiff-claims": "Claims of UniDiff", "exploratory-claims": "Exploratory claims",
    "rates": "Learning rates", "unidiff-rates": "Learning rates of UniDiff",
    "unidiff-weights": "Weights of UniDiff's consistency",
    "unidiff": "UniDiff",
}  # fmt: skip


def heading(target: str) -> str:
    """`table4` -> "Table 4", `unidiff-claims` -> "Claims of UniDiff"."""
    kind = target.rstrip("0123456789")
    words = TITLES.get(kind, kind.capitalize())
    return f"{words} {target.removeprefix(kind)}".strip()


def wrapped(text: str) -> str:
    """Break a paragraph into lines of at most WIDTH characters."""
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table, a line for each row."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
