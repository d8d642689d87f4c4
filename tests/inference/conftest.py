"""Toy text encoders, a toy pipeline on one of them, and stock Stable Diffusion, for the tests of the pipeline."""

import pytest

from palindiff.pretrained.stable_diffusion import load_base
from toys.models import toy_pipeline
from toys.other_pipelines import OTHER_PIPELINES
from toys.stable_diffusion import write_sd1, write_sd2
from toys.text_encoders import write_text_encoders


@pytest.fixture(scope="session")
def towers(tmp_path_factory):
    """A folder of toy text encoders, which nobody writes into."""
    folder = tmp_path_factory.mktemp("towers")
    write_text_encoders(folder)
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


@pytest.fixture(scope="session")
def refused():
    """Load a base that cannot work, and read the sentence that says why."""

    def load(error, *told, **call):
        with pytest.raises(error) as found:
            load_base(**call)
        sentence = str(found.value)
        assert "\n" not in sentence
        for part in told:
            assert part in sentence, sentence

    return load
