"""Record a run of the tests with the oldest supported versions: tests passed, failed and skipped in each folder.

Run: python scripts/record_versions.py REPORT.xml [--rejected PACKAGE==VERSION=REPORT.xml ...]
     [--constraints constraints-oldest.txt] [--results results/oldest_versions.json]

REPORT.xml is what `pytest --junit-xml` wrote in this environment. The script installs nothing and runs no tests; it
stops if an installed version is not the one of the constraints file.
"""

import argparse
import shlex
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

from palindiff.evaluation.results import Row, write_results

OUTCOMES = {"failure": "failed", "error": "failed", "skipped": "skipped"}  # tags of a report; a test without: passed


def read_pins(path: Path) -> dict[str, str]:
    """Read the lines PACKAGE==VERSION of a constraints file; a local label such as `+cpu` is no part of a version."""
    lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return {name: pin for name, _, pin in (line.partition("==") for line in lines if line)}


def package_rows(pins: dict[str, str]) -> list[Row]:
    """Return one row for each pinned package.

    Raises: ValueError if one is missing or has another version.
    """
    other = []
    for name, pin in pins.items():
        try:
            found = version(name).partition("+")[0]
        except PackageNotFoundError:
            found = "not installed"
        if found != pin:
            other.append(f"{name} {found}, pinned {pin}")
    if other:
        raise ValueError(
            f"{len(other)} of {len(pins)} packages are not those of the constraints file ({'; '.join(other[:5])}). "
            "Expected the same versions. Install with `--constraint`, and run the tests again."
        )
    return [{"kind": "package", "package": name, "version": pin} for name, pin in pins.items()]


def count_tests(report: Path) -> tuple[dict[str, Counter[str]], float]:
    """Count the outcomes in each folder of tests.

    Returns: outcomes by folder, such as `tests/cli`; seconds of the run.
    Raises: ValueError if the report has no tests.
    """
    root = ElementTree.parse(report).getroot()
    folders: dict[str, Counter[str]] = {}
    for case in root.iter("testcase"):
        parts = case.attrib["classname"].split(".")  # tests.cli.test_init, tests.test_docs
        folder = "/".join(parts[: 2 if len(parts) > 2 else 1])
        outcomes = {OUTCOMES[child.tag] for child in case if child.tag in OUTCOMES}
        outcome = "failed" if "failed" in outcomes else "skipped" if outcomes else "passed"
        folders.setdefault(folder, Counter())[outcome] += 1
    if not folders:
        raise ValueError(f"`{report}` has no tests. Expected a report of `pytest --junit-xml`. Run the tests again.")
    return folders, sum(float(suite.attrib["time"]) for suite in root.iter("testsuite"))


def outcomes_row(outcomes: Counter[str]) -> Row:
    """Return the three numbers, zeros included."""
    return {outcome: outcomes[outcome] for outcome in ("passed", "failed", "skipped")}


def rejected_row(text: str) -> Row:
    """Return the row of a version with which tests failed; text is PACKAGE==VERSION=REPORT.xml."""
    requirement, _, report = text.rpartition("=")
    name, _, older = requirement.partition("==")
    folders, _ = count_tests(Path(report))
    row = outcomes_row(sum(folders.values(), Counter[str]()))
    if not older or not row["failed"]:
        raise ValueError(
            f"`{text}` names no version with a failed test. Expected PACKAGE==VERSION=REPORT.xml, with a report of a "
            "run that failed. Fix the option."
        )
    return {"kind": "rejected", "package": name, "version": older, "folder": ", ".join(sorted(folders))} | row


def main(arguments: list[str] | None = None) -> None:
    """Write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report of all tests")
    parser.add_argument(
        "--rejected", action="append", default=[], metavar="PACKAGE==VERSION=REPORT.xml",
        help="report of a run with one package older than the constraints file has it; repeatable",
    )  # fmt: skip
    parser.add_argument("--constraints", type=Path, default=Path("constraints-oldest.txt"))
    parser.add_argument("--results", type=Path, default=Path("results/oldest_versions.json"))
    args = parser.parse_args(arguments)
    folders, elapsed_s = count_tests(args.report)
    rows: list[Row] = [
        {"kind": "tests", "folder": folder} | outcomes_row(folders[folder]) for folder in sorted(folders)
    ]
    rows += [*map(rejected_row, args.rejected), *package_rows(read_pins(args.constraints))]
    command = shlex.join(["python", "scripts/record_versions.py", *(sys.argv[1:] if arguments is None else arguments)])
    write_results(args.results, rows, command, {"constraints": args.constraints}, 0, elapsed_s)


if __name__ == "__main__":
    main()
