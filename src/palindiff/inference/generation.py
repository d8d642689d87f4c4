"""Generation of many images with stock diffusers, each from its own seed: batches change none beyond rounding."""

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from palindiff.inference.defaults import GENERATION_BATCH_SIZE, GENERATION_GUIDANCE_SCALE, GENERATION_STEPS


def generate_images(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance_scale: float = GENERATION_GUIDANCE_SCALE,
    num_inference_steps: int = GENERATION_STEPS,
    batch_size: int = GENERATION_BATCH_SIZE,
    size_px: int | None = None,
) -> list[Image.Image]:
    """Generate one image per prompt.

    Source: DiffDis Algorithm 2, which is diffusers' `__call__`; guidance_scale = 1 + w.
    Units:  size_px is the side of the square images; None: the model's own.
    Raises: ValueError if the numbers of prompts and seeds differ.
    """
    if len(prompts) != len(seeds):
        raise ValueError(
            f"{len(prompts)} prompts and {len(seeds)} seeds were given to `generate_images`. Expected one seed per "
            "prompt. Pass lists of one length."
        )
    pipeline.set_progress_bar_config(disable=True)
    generated: list[Image.Image] = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        generated += pipeline(
            list(prompts[part]),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            height=size_px,
            width=size_px,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
        ).images
    return generated
