"""A toy pipeline, for the tests of the pipeline."""

import pytest

from toys.models import toy_pipeline


@pytest.fixture(scope="module")
def pipeline(encoder_folder):
    """A toy pipeline of one file's tests."""
    return toy_pipeline(encoder_folder)
