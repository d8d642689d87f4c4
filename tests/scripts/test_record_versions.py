"""scripts/record_versions.py: tests are counted by folder; other versions or a report without failures are refused."""

from importlib.metadata import version

import pytest

from palindiff.evaluation.results import read_results
from toys.by_path import load_by_path

record_versions = load_by_path("scripts/record_versions.py")

PASSED = '<testcase classname="tests.cli.test_init" name="a" time="1.0" />'
SKIPPED = '<testcase classname="tests.cli.test_init" name="b" time="0.0"><skipped message="no GPU" /></testcase>'
FAILED = '<testcase classname="tests.training.loop.test_ema" name="c"><failure message="no">no</failure></testcase>'
BROKEN = '<testcase classname="tests.test_docs" name="d"><error message="in teardown">no</error></testcase>'


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a report, and constraints of which pytest is one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "constraints-oldest.txt").write_text(f"# the oldest\npytest=={version('pytest')}\n")

    def write(name, *cases):
        path = tmp_path / name
        path.write_text(f'<testsuites><testsuite time="2.5">{"".join(cases)}</testsuite></testsuites>')
        return str(path)

    return write


def test_tests_are_counted_by_folder(write, tmp_path):
    report, rejected = (
        write("report.xml", PASSED, PASSED, SKIPPED, FAILED, BROKEN),
        write("rejected.xml", PASSED, FAILED),
    )
    record_versions.main([report, f"--rejected=torch==1.0={rejected}"])
    results = read_results(tmp_path / "results" / "oldest_versions.json")
    assert results.elapsed_s == 2.5
    assert results.rows == [
        {"kind": "tests", "folder": "tests", "passed": 0, "failed": 1, "skipped": 0},
        {"kind": "tests", "folder": "tests/cli", "passed": 2, "failed": 0, "skipped": 1},
        {"kind": "tests", "folder": "tests/training", "passed": 0, "failed": 1, "skipped": 0},
        {
            "kind": "rejected",
            "package": "torch",
            "version": "1.0",
            "folder": "tests/cli, tests/training",
            "passed": 1,
            "failed": 1,
            "skipped": 0,
        },
        {"kind": "package", "package": "pytest", "version": version("pytest")},
    ]


def test_another_installed_version_is_refused(write, tmp_path):
    (tmp_path / "constraints-oldest.txt").write_text("pytest==0.1\nno-such-package==1.0\n")
    with pytest.raises(ValueError, match=r"2 of 2 packages .*pytest \S+, pinned 0\.1; no-such-package not installed"):
        record_versions.main([write("report.xml", PASSED)])


def test_a_report_without_tests_is_refused(write):
    with pytest.raises(ValueError, match="has no tests"):
        record_versions.main([write("report.xml")])


@pytest.mark.parametrize("requirement", ["torch==1.0", "torch"])
def test_a_rejected_version_without_a_failure_is_refused(write, requirement):
    report, passed = (
        write("report.xml", PASSED),
        write("passed.xml", PASSED if requirement == "torch==1.0" else FAILED),
    )
    with pytest.raises(ValueError, match="names no version with a failed test"):
        record_versions.main([report, f"--rejected={requirement}={passed}"])
