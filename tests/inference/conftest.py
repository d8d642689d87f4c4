"""Toy text towers, and a toy pipeline on one of them, for the tests of the pipeline."""

import pytest

from toy_towers import write_towers
from toys import toy_pipeline


@pytest.fixture(scope="session")
def towers(tmp_path_factory):
    """A folder of toy text towers, which nobody writes into."""
    folder = tmp_path_factory.mktemp("towers")
    write_towers(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(towers):
    """A toy pipeline of one file's tests."""
    return toy_pipeline(towers)
