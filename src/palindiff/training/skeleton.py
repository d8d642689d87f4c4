"""The models of a recipe with new weights, and random features to train them on: no weights, no data, no network.

Under torch's `FakeTensorMode` nothing is allocated: tensors have shapes, types and a device, and no numbers. Not here:
what is counted on them (`estimate.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from palindiff.inference.shipped import SHIPPED_CODEC, shipped_folder
from palindiff.models.query_stream import QueryStream
from palindiff.models.text_chain import text_chain_scheduler
from palindiff.models.tower_shape import TowerShape, read_tower_shape
from palindiff.objectives.diffdis import DiffDisObjective
from palindiff.training.diffdis import TRAIN_STEPS, Recipe, build_unet, picture_scheduler

NUM_ROWS = 10_000  # of random features; none is kept


@dataclass(frozen=True)
class Skeleton:
    """All that one process of a run holds: what is trained, and the frozen parts beside it."""

    objective: DiffDisObjective
    vae: AutoencoderKL
    text_encoder: PreTrainedModel
    features: "RandomFeatures"

    @property
    def image_size_px(self) -> int:
        """Side of the pictures."""
        halvings = len(self.vae.config.block_out_channels) - 1
        return int(self.objective.unet.config.sample_size) * 2**halvings


class RandomFeatures:
    """A training set of random numbers in the shapes and types that `FeatureSet` reads."""

    def __init__(self, latent_shape: tuple[int, int, int], num_tokens: int, d_c: int, d_e: int, num_views: int):
        """num_views: 2 where naming sees another view of a picture than painting."""
        self.latent_shape, self.num_views = latent_shape, num_views
        self.num_tokens, self.d_c, self.d_e = num_tokens, d_c, d_e

    def __len__(self) -> int:
        return NUM_ROWS

    def read(self, rows: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        """Shapes: as `FeatureSet.read`."""
        b = len(rows)
        names = ("z_mean", "z_std", "z_named_mean", "z_named_std")[: 2 * self.num_views]
        latents = {name: torch.randn(b, *self.latent_shape).half() for name in names}
        texts = {"c": torch.randn(b, self.num_tokens, self.d_c).half(), "e_0": torch.randn(b, self.d_e)}
        return latents | texts | {"caption_id": rows}


@contextmanager
def fake_skeleton(recipe: Recipe) -> Iterator[Skeleton]:
    """Build the models of a recipe from tensors without numbers, and let what is run on them meanwhile be such too.

    Raises: as `build_skeleton`.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):  # schedulers hold real numbers
        yield build_skeleton(recipe)


def build_skeleton(recipe: Recipe) -> Skeleton:
    """Build what `prepare` builds, on the device in force, from configs alone.

    Raises: FileNotFoundError, ModuleNotFoundError, ValueError if a config of a frozen part cannot be had.
    """
    tower, vae = read_tower_shape(recipe.text.source, recipe.text.max_length), codec_without_weights(recipe.codec)
    unet = build_unet(recipe.unet, vae, tower.d_c)
    stream = QueryStream.for_unet(unet, tower.d_e, recipe.query_stream, tower.pooling, tower.projection)
    if recipe.machine.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    tower.text_encoder.requires_grad_(False)
    objective = DiffDisObjective(
        unet,
        stream,
        picture_scheduler(recipe.scheduler),
        text_chain_scheduler(TRAIN_STEPS),
        torch.zeros(1, tower.num_tokens, tower.d_c),
        recipe.objective,
    )
    return Skeleton(objective, vae, tower.text_encoder, _features(recipe, objective, tower))


def codec_without_weights(source: str) -> AutoencoderKL:
    """Build the frozen autoencoder of a recipe with new weights, from its config."""
    folder = shipped_folder(SHIPPED_CODEC) if source == "shipped" else source
    vae: AutoencoderKL = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
    return vae.requires_grad_(False).eval()


def _features(recipe: Recipe, objective: DiffDisObjective, tower: TowerShape) -> RandomFeatures:
    config = objective.unet.config
    num_views = 2 if recipe.views.crops or recipe.views.flip == "naming" else 1
    latent_shape = (config.in_channels, config.sample_size, config.sample_size)
    return RandomFeatures(latent_shape, tower.num_tokens, tower.d_c, tower.d_e, num_views)
