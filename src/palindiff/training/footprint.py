"""What training takes in memory before a batch comes: weights, gradients, Adam's two moments and the average."""

import torch

from palindiff.models.codec import build_codec
from palindiff.training.codec import CodecRecipe

NUMBERS_PER_WEIGHT = 5  # the weight, its gradient, two moments, its average
BYTES_PER_NUMBER = 4  # float32, under bf16 autocast too


def training_bytes(num_trained: int) -> int:
    """Units: trained parameters -> bytes, activations and frozen parts not counted."""
    return num_trained * NUMBERS_PER_WEIGHT * BYTES_PER_NUMBER


def describe_codec(recipe: CodecRecipe) -> dict[str, int]:
    """Count what a codec recipe builds, without data: parameters by part, `trained`, and `training_bytes`."""
    with torch.device("meta"):
        num_parameters = build_codec(recipe.codec).num_parameters()
    return {"vae": num_parameters, "trained": num_parameters, "training_bytes": training_bytes(num_parameters)}
