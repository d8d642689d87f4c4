"""A plan at toy size, and its parts."""

import json

import pytest

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
