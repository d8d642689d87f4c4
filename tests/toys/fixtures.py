"""Fixtures that tests of several rooms share; `tests/conftest.py` loads them."""

import pytest
from torch import nn

from toys.other_pipelines import OTHER_PIPELINES
from toys.recipe import write_toy_parts
from toys.stable_diffusion import FEW_LAYERS, write_sd1, write_sd2
from toys.text_encoders import write_text_encoders

REGISTER_PARAMETER = nn.Module.register_parameter


@pytest.fixture(autouse=True)
def models_have_weights():
    """Fail the test that leaves a patch of `init_empty_weights` behind, not those after it."""
    yield
    left, nn.Module.register_parameter = nn.Module.register_parameter, REGISTER_PARAMETER
    assert left is REGISTER_PARAMETER, "models were loaded in two threads at once"


@pytest.fixture(scope="session")
def toy_parts(tmp_path_factory):
    """A folder with a text encoder, a VAE and drawn images, as `toy_recipe.recipe_tree` names them."""
    return write_toy_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory):
    """A folder with the toy text encoders `clip`, `clip_2` and `sentence`, which nobody writes into."""
    folder = tmp_path_factory.mktemp("text_encoders")
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
def shallow(tmp_path_factory):
    """`sd1` and `clip_1` of `stable_diffusion`, with a U-Net of few layers."""
    folder = tmp_path_factory.mktemp("shallow")
    write_sd1(folder, unet=FEW_LAYERS)
    return folder


@pytest.fixture(scope="session")
def other_pipelines(tmp_path_factory):
    """A folder with one folder for each of `OTHER_PIPELINES`, which nobody writes into."""
    folder = tmp_path_factory.mktemp("other_pipelines")
    for write in OTHER_PIPELINES.values():
        write(folder)
    return folder
