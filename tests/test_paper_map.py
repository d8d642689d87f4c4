"""docs/paper_map.md and docs/decisions.md: every place they name exists, and nothing of the paper is left out.

Run: pytest tests/test_paper_map.py. Symbols are found in the syntax tree; nothing is imported.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
NUM_OPEN_QUESTIONS = 29

PLACE = re.compile(r"`([\w./-]+\.py):([\w.]+)`")
DECISION = re.compile(r"^(\d+)\. \*\*.+?(?=^\d+\. \*\*|^## )", re.MULTILINE | re.DOTALL)


def text_of(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def names_in(body):
    """Names that a module's or class's body defines, each with its node."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign):
            yield from ((target.id, node) for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node


@cache
def module_body(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8")).body


def has_symbol(path, symbol):
    """Whether a file defines a function, class or name, or a class of it the method or field after the dot."""
    if not (ROOT / path).is_file():
        return False
    body = module_body(path)
    for part in symbol.split("."):
        node = dict(names_in(body)).get(part)
        if node is None:
            return False
        body = getattr(node, "body", [])
    return True


PLACES = sorted({(page.name, *place) for page in PAGES for place in PLACE.findall(page.read_text(encoding="utf-8"))})


@pytest.mark.parametrize(("page", "path", "symbol"), PLACES)
def test_every_place_that_a_page_names_exists(page, path, symbol):
    assert has_symbol(path, symbol), f"docs/{page} names `{path}:{symbol}`, which does not exist"


@pytest.mark.parametrize(
    ("path", "symbol", "expected"),
    [
        ("src/palindiff/models/query_stream.py", "QueryStream.read_image", True),
        ("src/palindiff/models/query_stream.py", "QueryStreamConfig.gamma", True),
        ("src/palindiff/models/query_stream.py", "QueryStream.gamma", False),
        ("src/palindiff/models/query_stream.py", "read_image", False),
        ("src/palindiff/models/query_streams.py", "QueryStream", False),
    ],
)
def test_has_symbol_finds_what_a_file_defines_and_nothing_else(path, symbol, expected):
    assert has_symbol(path, symbol) is expected


def rows_of_paper_map():
    cells = [line.strip("|").split("|") for line in text_of("paper_map.md").splitlines() if line.startswith("|")]
    return {row[0].strip(): row for row in cells if re.match(r"(Eq\.|Algorithm|Fig\.|Table) \d", row[0].strip())}


def numbers_of(kind):
    """The numbers that rows of a kind speak of: "Eq. 5, 6" of two, "Eq. 1 to 3" of three."""
    found = []
    for name in rows_of_paper_map():
        if name.startswith(kind):
            numbers = [int(number) for number in re.findall(r"\d+", name)]
            found += range(numbers[0], numbers[1] + 1) if " to " in name else numbers
    return sorted(found)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("Eq.", range(1, 10)), ("Algorithm", range(1, 4)), ("Fig.", range(2, 4)), ("Table", range(1, 10))],
)
def test_paper_map_has_each_equation_algorithm_figure_and_table_once(kind, expected):
    assert numbers_of(kind) == list(expected)


@pytest.mark.parametrize(("name", "row"), rows_of_paper_map().items())
def test_a_row_of_the_paper_map_names_a_place_or_says_what_is_missing(name, row):
    is_placed = any(path.startswith("src/palindiff/") for path, _ in PLACE.findall(row[2]))
    is_missing = "not mapped" in row[1] or re.search(r"not yet: \S", row[-1]) is not None
    assert is_placed or is_missing
    if name.startswith("Table"):
        assert is_placed


def decisions():
    return {int(found[1]): found[0] for found in DECISION.finditer(text_of("decisions.md"))}


def test_decisions_answer_each_open_question_in_order():
    assert list(decisions()) == list(range(1, NUM_OPEN_QUESTIONS + 1))


@pytest.mark.parametrize("number", range(1, NUM_OPEN_QUESTIONS + 1))
def test_a_decision_says_where_why_and_what_else(number):
    decision = decisions()[number]
    where = decision.partition("- Where:")[2].partition("- Why:")[0]
    assert PLACE.search(where)
    assert re.search(r"- Why: \S", decision)
    assert re.search(r"(- Also|Not offered): \S", decision)


def test_docstrings_cite_existing_decisions_only():
    quoted = {
        int(number)
        for path in (ROOT / "src").rglob("*.py")
        for number in re.findall(r"decisions row (\d+)", path.read_text(encoding="utf-8"))
    }
    assert quoted
    assert quoted <= set(decisions())
