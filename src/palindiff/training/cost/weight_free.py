"""What a run of a recipe holds, built from configs alone, and features of ones: no weights, data or network.

Under torch's `FakeTensorMode` nothing is allocated: tensors have shapes, dtypes and a device, and no numbers. Not
here: what is counted on them (`estimate.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.unet_encoder import square_side
from palindiff.objectives.diffdis import DiffDisObjective
from palindiff.objectives.unidiff import UniDiffObjective
from palindiff.training.recipes.build_models import build_models, build_objective
from palindiff.training.recipes.build_unidiff import build_unidiff, build_unidiff_objective
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe

PARTS = ("unet", "query_stream", "vae", "text_encoder")
NUM_ROWS = 10_000  # of a training set; none is stored


class RepeatedRow:
    """A training set whose rows are all the same, as `FeatureSet` reads them but for the caption's number."""

    def __init__(self, row: dict[str, Tensor]) -> None:
        self.row = row

    def __len__(self) -> int:
        return NUM_ROWS

    def read(self, rows: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        """Shapes: as `FeatureSet.read`."""
        batch = {name: each.repeat(len(rows), *[1] * each.ndim) for name, each in self.row.items()}
        return batch | {"caption_id": rows}


@dataclass(frozen=True)
class WeightFreeRun:
    """All that one process of a run holds: what is trained, the frozen parts, which the pipeline has too, and data."""

    objective: DiffDisObjective
    pipeline: PalindiffPipeline
    features: RepeatedRow

    @property
    def parts(self) -> dict[str, nn.Module]:
        """All models by name, the frozen ones too."""
        return {name: getattr(self.pipeline, name) for name in PARTS}


@dataclass(frozen=True)
class WeightFreeUniDiff:
    """The same of a run of UniDiff."""

    objective: UniDiffObjective
    parts: dict[str, nn.Module]
    features: RepeatedRow


@contextmanager
def fake_run(recipe: DiffDisRecipe) -> Iterator[WeightFreeRun]:
    """Build a run from tensors without numbers; until the end of the block, all that is computed has none either.

    Raises: as `weight_free_run`.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # schedulers hold real numbers
        run = weight_free_run(recipe)
        without_numbers(run.objective, mode)
        yield run


@contextmanager
def fake_unidiff(recipe: UniDiffRecipe) -> Iterator[WeightFreeUniDiff]:
    """`fake_run` of a recipe of UniDiff.

    Raises: as `weight_free_unidiff`.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        run = weight_free_unidiff(recipe)
        without_numbers(run.objective, mode)
        yield run


def without_numbers(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace real weights, such as those of LoRA, by tensors of their shape and type."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if not isinstance(weight, FakeTensor):
                setattr(module, name, nn.Parameter(mode.from_tensor(weight.detach()), weight.requires_grad))


def weight_free_run(recipe: DiffDisRecipe) -> WeightFreeRun:
    """Build what `prepare` builds, on the device in force, from configs alone.

    Raises: FileNotFoundError, ModuleNotFoundError, ValueError if a config of a frozen part cannot be had.
    """
    pipeline = build_models(recipe, recipe.loop.seed, with_weights=False)
    encoder, config, is_live = pipeline.caption_encoder, pipeline.unet.config, recipe.text.is_live
    c_empty = None if is_live else torch.zeros(1, encoder.max_length, encoder.d_c)
    objective = build_objective(recipe, pipeline, encoder, c_empty)
    latent = _latent(config)
    row = {"z_mean": latent, "z_std": latent}
    if recipe.views.crops or recipe.views.flip == "naming":
        row |= {"z_named_mean": latent, "z_named_std": latent}
    if is_live:
        ids = torch.ones(encoder.max_length, dtype=torch.int64)
        row |= {"ids": ids, "mask": ids.bool()}
    else:
        row |= {"c": torch.ones(encoder.max_length, encoder.d_c).half(), "e_0": torch.ones(encoder.d_e)}
        row |= {"e_query": row["e_0"]} if recipe.objective.query_caption == "any" else {}
    return WeightFreeRun(objective, pipeline, RepeatedRow(row))


def weight_free_unidiff(recipe: UniDiffRecipe) -> WeightFreeUniDiff:
    """`weight_free_run` of a recipe of UniDiff.

    Raises: as `load_start`; ValueError if LoRA is asked for on a layer that is missing.
    """
    models = build_unidiff(recipe, with_weights=False)
    image, text = models.clip.image_encoder, models.clip.text_encoder
    objective = build_unidiff_objective(recipe, models)
    x = torch.zeros(3, image.image_size_px, image.image_size_px, dtype=torch.uint8)
    latent, ids = _latent(models.unet.config), torch.ones(text.max_length, dtype=torch.int64)
    row = {"x": x, "z_mean": latent, "z_std": latent, "ids": ids, "mask": ids.bool()}
    parts = {"image_encoder": image, "text_encoder": text, "unet": models.unet, "vae": models.vae}
    return WeightFreeUniDiff(objective, parts, RepeatedRow(row))


def _latent(config: Any) -> Tensor:
    """Shapes: of a U-Net's config -> (ch, h, w) float16."""
    side = square_side(config.sample_size)
    return torch.ones(config.in_channels, side, side).half()
