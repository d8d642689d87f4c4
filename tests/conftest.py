"""What the tests of several rooms stand on."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a forked child of a process with more threads may hang

import pytest

from toys.recipe import write_toy_parts


@pytest.fixture(scope="session")
def toy_parts(tmp_path_factory):
    """A folder with a text encoder, a VAE and drawn images, as `toy_recipe.recipe_tree` names them."""
    return write_toy_parts(tmp_path_factory.mktemp("parts"))
