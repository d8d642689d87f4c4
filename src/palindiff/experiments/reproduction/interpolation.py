"""Weights between those that a UniDiff started from and what it became.

Here: the interpolation. Not here: how its share is chosen (`measured_runs.py`), loading
(`pretrained/unidiff_folders.py`).
"""

import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from palindiff.pretrained.clip_folders import ClipParts
from palindiff.training.recipes.build_unidiff import UniDiffParts


def interpolate(start: UniDiffParts, clip: ClipParts, pipeline: StableDiffusionPipeline, share: float) -> None:
    """Replace the weights of both models by (1 - α) of the start's and α of their own, in place.

    Source:  WiSE-FT, Wortsman et al., CVPR 2022 (arXiv 2109.01903), equation 1; here of the U-Net too.
    Units:   share is α, from 0 (the start) to 1 (the result).
    Raises:  ValueError if a model lacks a weight of its start.
    """
    before = start.clip
    _interpolate(before.image_encoder, clip.image_encoder, share, "image encoder")
    _interpolate(before.text_encoder, clip.text_encoder, share, "text encoder")
    _interpolate(before.text_encoder.model, pipeline.text_encoder, share, "text encoder")
    _interpolate(start.unet, pipeline.unet, share, "U-Net")
    if before.text_encoder.projection is not None and clip.text_encoder.projection is not None:
        clip.text_encoder.projection.weight.data.lerp_(before.text_encoder.projection.weight.data, 1 - share)
    clip.log_logit_scale.data.lerp_(before.log_logit_scale.data, 1 - share)


@torch.no_grad()
def _interpolate(start: nn.Module, model: nn.Module, share: float, name: str) -> None:
    before, after = dict(start.named_parameters()), dict(model.named_parameters())
    if lacking := sorted(before.keys() - after.keys()):
        raise ValueError(
            f"The {name} has no weight `{lacking[0]}`, which its start has. Expected the same weights. Use the model "
            "that training started from."
        )
    for weight_name, weight in before.items():  # stock loading may add an unused pooler to a text encoder
        after[weight_name].lerp_(weight, 1 - share)
