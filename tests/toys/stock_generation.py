"""What stock Stable Diffusion generates, and whether two pipelines hold the same tensors."""

import numpy as np
import torch

from toys.stable_diffusion import IMAGE_PX

PROMPTS = ["a red apple", "b"]


def stock_generation(pipeline, num_inference_steps=3):
    """Generate with float32 pixels, which show what 8 bits would hide; two prompts, of one noise."""
    pipeline.set_progress_bar_config(disable=True)
    for part in models_of(pipeline).values():  # products with a file's unaligned bytes sum in another order
        for weight in part.parameters():
            weight.data = weight.data.clone()
    return pipeline(
        PROMPTS, num_inference_steps=num_inference_steps, guidance_scale=4, height=IMAGE_PX, width=IMAGE_PX,
        generator=[torch.Generator().manual_seed(0) for _ in PROMPTS], output_type="np",
    ).images  # fmt: skip


def models_of(pipeline):
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def differing(pipeline, other, dtype=None):
    """Name the tensors of U-Net, VAE and text encoder that are not `other`'s, cast to a `dtype` if one is given."""
    found = []
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(each, part).state_dict() for each in (pipeline, other))
        assert ours.keys() == theirs.keys()
        for name, weight in ours.items():
            expected = theirs[name] if dtype is None else theirs[name].to(dtype)
            if weight.is_meta or weight.dtype != expected.dtype or not torch.equal(weight, expected):
                found.append(f"{part}.{name}")
    return found


def dtypes_of(pipeline):
    return {name: part.dtype for name, part in models_of(pipeline).items()}


def is_image(pixels):
    return bool(np.isfinite(pixels).all()) and pixels.std() > 0.05  # no grey square
