"""The pages of the documentation as prose, and the result files beside them."""

import re
from pathlib import Path

from palindiff.evaluation.results import Results, read_results

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}


def prose(page: str) -> str:
    """A page without code blocks, quoted tables and line breaks."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    return " ".join(re.sub(r"<!-- results/.*?<!-- end -->", "", text, flags=re.DOTALL).split())


def results(name: str) -> Results:
    """The result file `results/NAME.json`."""
    return read_results(ROOT / "results" / f"{name}.json")
