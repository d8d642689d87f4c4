"""What training holds for each trained weight, whatever the batch: itself, its gradient, Adam's moments, the average.

Not here: activations, frozen parts and work (`estimate.py`).
"""

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import torch

from palindiff.models.vae import build_vae
from palindiff.training.recipes.schema import VaeRecipe

if TYPE_CHECKING:
    from palindiff.training.recipes.schema import DiffDisRecipe

EIGHT_BIT_MOMENTS = 2 * (1 + 4 / 256)  # bytes; each block of 256 has a scale in float32


@dataclass(frozen=True)
class BytesPerWeight:
    """Bytes for one trained weight; float32 under bf16 autocast too."""

    weight: int = 4
    gradient: int = 4
    optimizer: float = 8  # AdamW's two moments
    ema: int = 4

    @property
    def total(self) -> float:
        """Bytes of all of them."""
        return sum(astuple(self))


def bytes_per_weight(recipe: "DiffDisRecipe", device: str) -> BytesPerWeight:
    """Progress what a recipe keeps on the device that trains; on a CPU an average on the CPU is there all the same."""
    is_eight_bit = recipe.optimizer.kind == "adamw_8bit"
    is_elsewhere = recipe.machine.ema_device == "cpu" and device != "cpu"
    return BytesPerWeight(
        optimizer=EIGHT_BIT_MOMENTS if is_eight_bit else BytesPerWeight.optimizer,
        ema=0 if is_elsewhere else BytesPerWeight.ema,
    )


def training_bytes(num_trained: int, each: BytesPerWeight | None = None) -> int:
    """Units: trained parameters -> bytes, activations and frozen parts not counted."""
    return round(num_trained * (each or BytesPerWeight()).total)


def describe_vae(recipe: VaeRecipe) -> dict[str, int]:
    """Count what a VAE recipe builds, without data: parameters by part, `trained`, and `training_bytes`."""
    with torch.device("meta"):
        num_parameters = build_vae(recipe.vae).num_parameters()
    return {"vae": num_parameters, "trained": num_parameters, "training_bytes": training_bytes(num_parameters)}
