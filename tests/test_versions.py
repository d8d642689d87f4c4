"""Lower bounds of pyproject.toml: each was tried, and both constraints files meet all of them."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from palindiff.evaluation.results import read_results

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [
    Requirement(each) for each in (*PROJECT["dependencies"], *(name for extra in EXTRAS.values() for name in extra))
]
CHECKERS = {"import-linter", "mypy", "ruff", "types-pyyaml"}  # `make check` runs them on the source; no test does
TRIED = [each for each in DECLARED if canonicalize_name(each.name) not in CHECKERS]
OLDEST = ROOT / "constraints-oldest.txt"


def pins_of(path):
    lines = re.findall(r"^([\w-]+)==(\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in lines}


def lower_bound(requirement):
    (version,) = [each.version for each in requirement.specifier if each.operator in {">=", "=="}]
    return version


@pytest.mark.parametrize("requirement", TRIED, ids=str)
def test_a_lower_bound_is_the_oldest_version_that_was_tried(requirement):
    assert lower_bound(requirement) == pins_of(OLDEST)[canonicalize_name(requirement.name)]


@pytest.mark.parametrize("requirement", DECLARED, ids=str)
def test_the_pinned_version_meets_the_requirement(requirement):
    assert requirement.specifier.contains(pins_of(ROOT / "constraints.txt")[canonicalize_name(requirement.name)])


def test_the_recorded_run_had_these_versions_and_no_failure():
    rows = read_results(ROOT / "results" / "oldest_versions.json").rows
    packages = {canonicalize_name(row["package"]): row["version"] for row in rows if row["kind"] == "package"}
    assert packages == pins_of(OLDEST)
    tests = [row for row in rows if row["kind"] == "tests"]
    assert sum(row["passed"] for row in tests) > 1000
    assert not [row["folder"] for row in tests if row["failed"]]


def test_a_rejected_version_is_older_than_the_lower_bound_and_named_in_the_decisions():
    bounds = {canonicalize_name(each.name): each for each in TRIED}
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    rejected = [
        row for row in read_results(ROOT / "results" / "oldest_versions.json").rows if row["kind"] == "rejected"
    ]
    for row in rejected:
        assert row["failed"]
        assert not bounds[canonicalize_name(row["package"])].specifier.contains(row["version"])
        assert f"{row['package']} {row['version']}" in text
