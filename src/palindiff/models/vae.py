"""The small VAE for 64 px images: a diffusers `AutoencoderKL`, so every Stable Diffusion pipeline takes it.

Here: its configuration, encoding, and latents normalised to unit variance. Not here: its loss (`objectives/vae.py`).
"""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from pydantic import BaseModel, Field
from torch import Tensor


class VaeConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Shape of the VAE; each width after the first halves the image's side once."""

    widths: tuple[int, ...] = (16, 48, 96, 128)  # channels at each size; all divisible by `norm_groups`
    layers_per_block: int = Field(1, gt=0)
    latent_channels: int = Field(16, gt=0)
    norm_groups: int = Field(8, gt=0)
    image_size_px: int = Field(64, gt=0)


def build_vae(config: VaeConfig) -> AutoencoderKL:
    """Build the VAE with random weights: x (b, 3, H, W) in [-1, 1] <=> z (b, ch, H/8, W/8) for four widths."""
    num_blocks = len(config.widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * num_blocks,
        up_block_types=("UpDecoderBlock2D",) * num_blocks,
        block_out_channels=config.widths,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        sample_size=config.image_size_px,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def posterior_mean(vae: AutoencoderKL | AutoencoderTiny, x: Tensor) -> Tensor:
    """Encode pixels: the posterior's mean, or what a VAE without posterior gives, times the VAE's factor.

    Shapes: x (b, 3, H, W) float in [-1, 1], on the VAE's device and of its type -> z (b, ch, h, w).
    """
    encoded = vae.encode(x)
    z: Tensor = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode()
    return z * vae.config.scaling_factor


@torch.no_grad()
def normalize_latents(vae: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Normalise each latent channel to mean 0 and deviation 1, in place, without changing any reconstruction.

    Stock pipelines support only one `scaling_factor`, so the change goes into the two 1 x 1 convolutions around the
    latent.

    Source: ours.
    Shapes: mean, deviation (ch,) of the latents over the training images; deviation > 0.
    """
    ch = len(mean)
    quant, post_quant = vae.quant_conv, vae.post_quant_conv
    quant.weight[:ch] /= deviation[:, None, None, None]
    quant.bias[:ch] = (quant.bias[:ch] - mean) / deviation
    quant.bias[ch:] -= 2 * deviation.log()  # log-variances
    post_quant.bias += (post_quant.weight[:, :, 0, 0] * mean).sum(dim=1)  # uses the old weight: z * deviation + mean
    post_quant.weight *= deviation[None, :, None, None]
