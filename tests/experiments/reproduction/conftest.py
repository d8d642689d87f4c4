"""A plan at toy size, and its parts."""

import json

import pytest

from palindiff.experiments.reproduction.reproduce import ReproduceOptions, Reproduction
from toys.plan import toy_plan, write_plan_parts
from toys.run import one_thread


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """The folder of --data."""
    return write_plan_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def plan_tree(parts):
    """A plan, to be changed."""
    return toy_plan(parts)


@pytest.fixture
def write_plan(tmp_path):
    """Write a plan's tree and return its path."""

    def write(tree):
        path = tmp_path / "toy-plan.yaml"
        path.write_text(json.dumps(tree))
        return str(path)

    return write


@pytest.fixture
def reproduction(parts, plan_tree, write_plan, tmp_path):
    """Make a reproduction of a target, with changes of the plan."""

    def make(target, change=lambda tree: None, **options):
        change(plan_tree)
        given = {"data": parts, "runs": tmp_path / "runs", "results": tmp_path / f"{target}.json", **options}
        said = []
        made = Reproduction(ReproduceOptions(target, write_plan(plan_tree), **given), said.append)
        made.said = said
        return made

    return make
