"""Generation many captions with stock diffusers, each from its own seed: a batch changes none beyond rounding."""

from collections.abc import Callable, Sequence

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from palindiff.inference.defaults import GENERATION_GUIDANCE_SCALE, GENERATION_STEPS

BATCH_SIZE = 16


def generate_images(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance_scale: float = GENERATION_GUIDANCE_SCALE,
    num_inference_steps: int = GENERATION_STEPS,
    batch_size: int = BATCH_SIZE,
    tell: Callable[[int], None] | None = None,
) -> list[Image.Image]:
    """Generate one image a prompt; `tell` hears how many are done.

    Source: DiffDis Algorithm 2, which is diffusers' `__call__`; guidance_scale = 1 + w.
    Raises: ValueError if prompts and seeds are not as many.
    """
    if len(prompts) != len(seeds):
        raise ValueError(
            f"{len(prompts)} prompts and {len(seeds)} seeds were given to `generate`. Expected as many: a seed an image."
        )
    pipeline.set_progress_bar_config(disable=True)
    generated: list[Image.Image] = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        generated += pipeline(
            list(prompts[part]),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=generators,
        ).images
        if tell is not None:
            tell(len(generated))
    return generated
