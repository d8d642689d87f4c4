"""What training holds for each trained weight, whatever the batch: itself, its gradient, Adam's moments, the average.

Not here: activations, frozen parts and work (`estimate.py`).
"""

from dataclasses import astuple, dataclass

import torch

from palindiff.models.codec import build_codec
from palindiff.training.codec import CodecRecipe


@dataclass(frozen=True)
class BytesPerWeight:
    """Bytes for one trained weight; float32 under bf16 autocast too."""

    weight: int = 4
    gradient: int = 4
    optimizer: int = 8  # AdamW's two moments
    ema: int = 4

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return sum(astuple(self))


def training_bytes(num_trained: int) -> int:
    """Units: trained parameters -> bytes, activations and frozen parts not counted."""
    return num_trained * BytesPerWeight().total


def describe_codec(recipe: CodecRecipe) -> dict[str, int]:
    """Count what a codec recipe builds, without data: parameters by part, `trained`, and `training_bytes`."""
    with torch.device("meta"):
        num_parameters = build_codec(recipe.codec).num_parameters()
    return {"vae": num_parameters, "trained": num_parameters, "training_bytes": training_bytes(num_parameters)}
