"""The models of a recipe with new weights, and random features to train them on: no weights, no data, no network.

Under torch's `FakeTensorMode` nothing is allocated: tensors have shapes, types and a device, and no numbers. Not here:
what is counted on them (`estimate.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from palindiff.inference.bundled import BUNDLED_VAE, bundled_folder
from palindiff.models.query_stream import QueryStream
from palindiff.models.text_diffusion import text_diffusion_scheduler
from palindiff.models.text_encoder import EncodedCaptions
from palindiff.models.tower_shape import TowerShape, read_tower_shape
from palindiff.objectives.diffdis import DiffDisObjective
from palindiff.training.cost.base_shape import read_base_shape
from palindiff.training.recipes.build_models import (
    TRAIN_STEPS,
    BaseConfig,
    build_unet,
    image_scheduler,
    training_scheduler,
)
from palindiff.training.recipes.schema import DiffDisRecipe

Parts = tuple[UNet2DConditionModel, AutoencoderKL, DDPMScheduler, TowerShape, QueryStream | None]

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
        """Side of the images."""
        halvings = len(self.vae.config.block_out_channels) - 1
        return int(self.objective.unet.config.sample_size) * 2**halvings


class RandomFeatures:
    """A training set of random numbers in the shapes and types that `FeatureSet` reads."""

    def __init__(self, latent_shape: tuple[int, int, int], tower: TowerShape, num_views: int, is_live: bool):
        """num_views: 2 where naming sees another view of an image than generation; is_live: captions come as tokens."""
        self.latent_shape, self.num_views, self.is_live = latent_shape, num_views, is_live
        self.num_tokens, self.d_c, self.d_e = tower.num_tokens, tower.d_c, tower.d_e

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
def fake_skeleton(recipe: DiffDisRecipe) -> Iterator[Skeleton]:
    """Build the models of a recipe from tensors without numbers, and let what is run on them meanwhile be such too.

    Raises: as `build_skeleton`.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):  # schedulers hold real numbers
        yield build_skeleton(recipe)


def build_skeleton(recipe: DiffDisRecipe) -> Skeleton:
    """Build what `prepare` builds, on the device in force, from configs alone.

    Raises: FileNotFoundError, ModuleNotFoundError, ValueError if a config of a frozen part cannot be had.
    """
    unet, vae, scheduler, tower, stream = _of_base(recipe, recipe.base) if recipe.base else _from_scratch(recipe)
    if stream is None:
        config = recipe.query_stream
        stream = QueryStream.for_unet(unet, tower.d_e, config, tower.pooling, tower.projection, tower.tail)
    if recipe.machine.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    tower.text_encoder.requires_grad_(False)
    c_empty = None if recipe.text.is_live else torch.zeros(1, tower.num_tokens, tower.d_c)
    encoder: Any = CaptionEncoderShape(recipe, tower) if recipe.text.is_live else None
    query_scheduler = text_diffusion_scheduler(TRAIN_STEPS)
    objective = DiffDisObjective(unet, stream, scheduler, query_scheduler, c_empty, recipe.objective, encoder)
    return Skeleton(objective, vae, tower.text_encoder, _features(recipe, objective, tower))


class CaptionEncoderShape(nn.Module):
    """What `CaptionEncoder` computes of a batch and of the empty caption, without a tokenizer and its checks."""

    empty_ids: Tensor
    empty_mask: Tensor

    def __init__(self, recipe: DiffDisRecipe, tower: TowerShape) -> None:
        super().__init__()
        self.text_encoder = tower.text_encoder.requires_grad_(recipe.text.is_trained).eval()
        self.is_trained, self.kept = recipe.text.is_trained, [tower]
        if recipe.machine.gradient_checkpointing and recipe.text.is_trained:
            self.text_encoder.activation_checkpointing_enable()
        empty = torch.zeros(1, tower.num_tokens, dtype=torch.int64)
        self.register_buffer("empty_ids", empty, persistent=False)
        self.register_buffer("empty_mask", empty.bool(), persistent=False)

    def forward(self, ids: Tensor, mask: Tensor) -> EncodedCaptions:
        """Shapes: as `CaptionEncoder`."""
        tower = self.kept[0]
        ids, mask = torch.cat([ids, self.empty_ids]), torch.cat([mask, self.empty_mask])
        with torch.set_grad_enabled(self.is_trained and torch.is_grad_enabled()):
            output = self.text_encoder(ids, output_hidden_states=tower.tail is not None)
            behind = output[0] if tower.tail is None else tower.tail(output.hidden_states[-1])
            pooled = behind[:, 0] if tower.projection is None else F.linear(behind[:, 0], tower.projection)
            return EncodedCaptions(output[0], mask, F.normalize(pooled.float(), dim=-1))


def _from_scratch(recipe: DiffDisRecipe) -> Parts:
    source, vae, unet_config, schedule = recipe.text.source, recipe.vae, recipe.unet, recipe.scheduler
    assert source is not None and vae is not None, "as the recipe has checked"  # noqa: PT018
    assert schedule is not None and unet_config is not None, "as the recipe has checked"  # noqa: PT018
    tower, vae = read_tower_shape(source, recipe.text.max_length), vae_without_weights(vae)
    unet = build_unet(unet_config, vae, tower.d_c)
    return unet, vae, training_scheduler(image_scheduler(schedule)), tower, None


def _of_base(recipe: DiffDisRecipe, base: BaseConfig) -> Parts:
    shape = read_base_shape(base, recipe.text)
    unet = UNet2DConditionModel.from_config(shape.unet)
    vae: AutoencoderKL = AutoencoderKL.from_config(shape.vae).requires_grad_(False).eval()
    if base.image_size_px is not None:
        unet.register_to_config(sample_size=base.image_size_px // 2 ** (len(vae.config.block_out_channels) - 1))
    stream = None if shape.query_stream is None else QueryStream.from_config(shape.query_stream)
    return unet, vae, shape.scheduler, shape.tower, stream


def vae_without_weights(source: str) -> AutoencoderKL:
    """Build the frozen VAE of a recipe with new weights, from its config."""
    folder = bundled_folder(BUNDLED_VAE) if source == "bundled" else source
    vae: AutoencoderKL = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
    return vae.requires_grad_(False).eval()


def _features(recipe: DiffDisRecipe, objective: DiffDisObjective, tower: TowerShape) -> RandomFeatures:
    config = objective.unet.config
    num_views = 2 if recipe.views.crops or recipe.views.flip == "naming" else 1
    latent_shape = (config.in_channels, config.sample_size, config.sample_size)
    return RandomFeatures(latent_shape, tower, num_views, recipe.text.is_live)
