"""provenance.py: the commit of the checkout that holds the package, and whether it has changes."""

import subprocess

import pytest

from palindiff.evaluation.provenance import git_state


def make_checkout(folder):
    """A checkout with one tracked file in package/ and one in results/."""

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    for name in ("package/a.py", "results/a.json"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    return git("rev-parse", "HEAD")


def test_git_state_is_the_commit_and_clean(tmp_path):
    commit = make_checkout(tmp_path)
    assert git_state(tmp_path / "package") == (commit, False)


@pytest.mark.parametrize(
    ("name", "is_dirty"),
    [("package/a.py", True), ("package/new.py", True), ("new.py", True), ("results/a.json", False)],
)
def test_git_state_is_dirty_with_any_change_but_results(tmp_path, name, is_dirty):
    commit = make_checkout(tmp_path)
    (tmp_path / name).write_text("2\n")
    assert git_state(tmp_path / "package") == (commit, is_dirty)


def test_git_state_is_none_where_the_package_is_not_tracked(tmp_path):
    assert git_state(tmp_path) == (None, None)
    make_checkout(tmp_path)
    (tmp_path / "venv").mkdir()
    assert git_state(tmp_path / "venv") == (None, None)
