"""The VAE's objective: log squared error of each image plus a weighted KL term."""

from collections.abc import Mapping
from typing import Literal

import torch
from diffusers import AutoencoderKL
from pydantic import BaseModel, Field
from torch import Tensor, nn


class VaeObjectiveConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Weights of the VAE's losses."""

    name: Literal["vae"] = "vae"  # chooses the trainer
    kl_weight: float = Field(2e-3, ge=0)  # of the mean nats per latent number; 0 turns it off
    error_floor: float = Field(5e-4, gt=0)  # squared error below which an image counts little (5e-4 is 33 dB)


class VaeObjective(nn.Module):
    """Images in, `loss`, `psnr_db` and `kl_nats` out."""

    def __init__(self, vae: AutoencoderKL, config: VaeObjectiveConfig) -> None:
        super().__init__()
        self.vae, self.config = vae, config

    def draw(self, b: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the posterior's noise, (b, ch, h, w)."""
        size = self.vae.config.sample_size // 2 ** (len(self.vae.config.block_out_channels) - 1)
        return {"eps": torch.randn(b, self.vae.config.latent_channels, size, size, generator=generator)}

    def forward(self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gaussian likelihood with the optimal variance of each image: up to sign and scale, the images' mean PSNR.

        Source: sigma-VAE (Rybkin et al., ICML 2021, eq. 5), with the variance per image and a weighted KL term.
        Shapes: batch["x"] (b, 3, H, W) in [-1, 1]; draws["eps"] (b, ch, h, w) -> () float32 each.
        Units:  psnr_db in decibel on images in [0, 1]; kl_nats per latent number.
        Departs: `error_floor` keeps images with small errors from dominating the gradient.
        """
        x = batch["x"]
        posterior = self.vae.encode(x).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        x_hat = self.vae.decode(mean + deviation * draws["eps"]).sample.float()
        error = squared_error(x, x_hat)  # (b,)
        kl = 0.5 * (mean.square() + deviation.square() - 1 - 2 * deviation.log()).mean()
        loss = (error + self.config.error_floor).log().mean() + self.config.kl_weight * kl
        return {"loss": loss, "psnr_db": psnr_db(error).mean().detach(), "kl_nats": kl.detach()}


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """Shapes: x, x_hat (b, 3, H, W) in [-1, 1] -> (b,) float32, mean squared error on the scale [0, 1]."""
    return (x.float() - x_hat.float()).square().mean(dim=(1, 2, 3)) / 4


def psnr_db(error: Tensor) -> Tensor:
    """Units: squared error on the scale [0, 1] -> decibel."""
    return -10 * error.clamp(min=1e-10).log10()
