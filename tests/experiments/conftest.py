"""A model with random weights, the emoji set's layout, and the unseen concepts embedded, once for the whole room."""

import pytest
import torch

from palindiff.data.emoji import STYLES
from palindiff.experiments.emoji_protocol import EvaluatedModel
from palindiff.experiments.naming_protocol import embed_unseen
from palindiff.training.recipes.build_models import build_models
from toys.emoji import write_emoji_set, write_vendor
from toys.recipe import toy_recipe


@pytest.fixture(scope="session")
def emoji_dir(tmp_path_factory):
    return write_emoji_set(tmp_path_factory.mktemp("emoji") / "set")


@pytest.fixture(scope="session")
def vendor_dir(tmp_path_factory):
    """The same set with the split of an unseen vendor."""
    return write_vendor(write_emoji_set(tmp_path_factory.mktemp("vendor") / "set"))


@pytest.fixture(scope="session")
def model(toy_parts):
    recipe = toy_recipe(toy_parts)
    pipeline = build_models(recipe, recipe.loop.seed)
    with torch.no_grad():  # as if trained: or all images would be named alike
        pipeline.query_stream.predictor.weight *= 10
    return EvaluatedModel("bundled", pipeline, steps=1234, seconds=567.8)


@pytest.fixture(scope="session")
def embedded(model, emoji_dir):
    return [embed_unseen(model.pipeline, emoji_dir, style) for style in STYLES]
