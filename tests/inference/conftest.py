"""Toy text towers, a toy pipeline on one of them, and stock Stable Diffusion, for the tests of the pipeline."""

import pytest

from toy_other_pipelines import OTHER_PIPELINES
from toy_stable_diffusion import write_sd1, write_sd2
from toy_towers import write_towers
from toys import toy_pipeline


@pytest.fixture(scope="session")
def towers(tmp_path_factory):
    """A folder of toy text towers, which nobody writes into."""
    folder = tmp_path_factory.mktemp("towers")
    write_towers(folder)
    return folder


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory):
    """A folder with `sd1`, `sd2` and the CLIPs they came from, `clip_1` and `clip_2`, which nobody writes into."""
    folder = tmp_path_factory.mktemp("stable_diffusion")
    write_sd1(folder, with_safety_checker=True)
    write_sd2(folder)
    return folder


@pytest.fixture(scope="session")
def other_pipelines(tmp_path_factory):
    """A folder with one folder for each of `OTHER_PIPELINES`, which nobody writes into."""
    folder = tmp_path_factory.mktemp("other_pipelines")
    for write in OTHER_PIPELINES.values():
        write(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(towers):
    """A toy pipeline of one file's tests."""
    return toy_pipeline(towers)
