"""What a run of a recipe holds, built from configs alone, and random features to train on: no weights, data, network.

Under torch's `FakeTensorMode` nothing is allocated: tensors have shapes, dtypes and a device, and no numbers. Not
here: what is counted on them (`estimate.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from palindiff.models.text_encoder import TextEncoder
from palindiff.objectives.diffdis import DiffDisObjective
from palindiff.training.recipes.build_models import build_models
from palindiff.training.recipes.build_objective import build_objective
from palindiff.training.recipes.schema import DiffDisRecipe

NUM_ROWS = 10_000  # of random features; none is kept


@dataclass(frozen=True)
class WeightFreeRun:
    """All that one process of a run holds: what is trained, and the frozen parts besides."""

    objective: DiffDisObjective
    vae: AutoencoderKL
    text_encoder: PreTrainedModel
    features: "RandomFeatures"
    image_size_px: int


class RandomFeatures:
    """A training set of random numbers in the shapes and dtypes that `FeatureSet` reads."""

    def __init__(self, recipe: DiffDisRecipe, latent_shape: tuple[int, int, int], encoder: TextEncoder) -> None:
        self.latent_shape, self.num_tokens = latent_shape, encoder.max_length
        self.d_c, self.d_e, self.is_live = encoder.d_c, encoder.d_e, recipe.text.is_live
        self.num_views = 2 if recipe.views.crops or recipe.views.flip == "naming" else 1

    def __len__(self) -> int:
        return NUM_ROWS

    def read(self, rows: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        """Shapes: as `FeatureSet.read`."""
        b = len(rows)
        names = ("z_mean", "z_std", "z_named_mean", "z_named_std")[: 2 * self.num_views]
        latents = {name: torch.randn(b, *self.latent_shape).half() for name in names}
        if self.is_live:
            ids = torch.ones(b, self.num_tokens, dtype=torch.int64)
            return latents | {"ids": ids, "mask": ids.bool(), "caption_id": rows}
        texts = {"c": torch.randn(b, self.num_tokens, self.d_c).half(), "e_0": torch.randn(b, self.d_e)}
        return latents | texts | {"caption_id": rows}


@contextmanager
def fake_run(recipe: DiffDisRecipe) -> Iterator[WeightFreeRun]:
    """Build a run from tensors without numbers; until the end of the block, all that is computed has none either.

    Raises: as `weight_free_run`.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):  # schedulers hold real numbers
        yield weight_free_run(recipe)


def weight_free_run(recipe: DiffDisRecipe) -> WeightFreeRun:
    """Build what `prepare` builds, on the device in force, from configs alone.

    Raises: FileNotFoundError, ModuleNotFoundError, ValueError if a config of a frozen part cannot be had.
    """
    pipeline = build_models(recipe, recipe.loop.seed, with_weights=False)
    encoder, config = pipeline.caption_encoder, pipeline.unet.config
    c_empty = None if recipe.text.is_live else torch.zeros(1, encoder.max_length, encoder.d_c)
    features = RandomFeatures(recipe, (config.in_channels, config.sample_size, config.sample_size), encoder)
    image_size_px = config.sample_size * pipeline.vae_scale_factor
    objective = build_objective(recipe, pipeline, encoder, c_empty)
    return WeightFreeRun(objective, pipeline.vae, pipeline.text_encoder, features, image_size_px)
