"""Toy text encoders, and a toy pipeline on one of them, for the tests of the pipeline."""

import pytest

from toys.models import toy_pipeline
from toys.text_encoders import write_text_encoders


@pytest.fixture(scope="session")
def towers(tmp_path_factory):
    """A folder of toy text encoders, which nobody writes into."""
    folder = tmp_path_factory.mktemp("towers")
    write_text_encoders(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(towers):
    """A toy pipeline of one file's tests."""
    return toy_pipeline(towers)
