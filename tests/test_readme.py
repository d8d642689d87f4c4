"""README.md and the docs: the example runs, and every quoted table is what its result file says."""

import re
import subprocess
from pathlib import Path

import pytest

from palindiff.evaluation.results import render_document

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def example() -> str:
    found = re.search(r"<!-- example -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert found, "README.md has no example"
    return found.group(1)


def test_readme_is_short_and_has_the_words_that_people_search_for():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    generating = ["text-to-image", "diffusers", "DiffDis", "Stable Diffusion", "LoRA", "Hub"]
    naming = ["zero-shot", "retrieval", "CLIP"]
    training = ["EMA", "resume", "checkpoint", "gradient accumulation", "recipe", "FSDP", "data augmentation"]
    assert len(text.splitlines()) <= 120
    assert not [word for word in (*generating, *naming, *training) if word not in text]
    assert text.rindex("\n## ") == text.index("\n## Results")


def test_example_is_short():
    code = [line for line in example().splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(code) <= 12


def test_example_runs(capsys):
    exec(compile(example(), "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert sum(int(line.rpartition(" ")[2].rstrip("%")) for line in lines) in (99, 100, 101)  # rounded shares


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_quoted_tables_equal_their_result_files(page):
    text = page.read_text(encoding="utf-8")
    assert render_document(text, ROOT / "results") == text


def test_tracked_files_hold_no_large_file_but_the_bundled_weights():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if not name.startswith("src/palindiff/checkpoints/") and (ROOT / name).is_file():
            assert (ROOT / name).stat().st_size < 2_000_000, name
