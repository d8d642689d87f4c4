"""What the tests of several rooms stand on."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a forked child of a process with more threads may hang

import pytest

from toy_recipe import write_toy_parts


@pytest.fixture(scope="session")
def toy_parts(tmp_path_factory):
    """A folder with a text tower, a codec and drawn pictures, as `toy_recipe.recipe_tree` names them."""
    return write_toy_parts(tmp_path_factory.mktemp("parts"))
