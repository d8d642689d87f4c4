"""Text-to-image generation: the noisy latents of a batch, what the U-Net is to predict, and dropped captions.

Here: Stable Diffusion's training loss, which DiffDis and UniDiff share. Not here: which network predicts
(`diffdis.py`, `unidiff.py`), the noise schedule (a diffusers scheduler).
"""

from collections.abc import Mapping

import torch
from diffusers import SchedulerMixin
from torch import Tensor


def posterior_draw(mean: Tensor, deviation: Tensor, eps: Tensor) -> Tensor:
    """Draw latents of the VAE's posterior. Shapes: (b, ch, h, w) each -> the same, float32."""
    return mean.float() + deviation.float() * eps


def drop_captions(c: Tensor, c_empty: Tensor, draws: Mapping[str, Tensor], rate: float) -> Tensor:
    """Replace a share of the conditions by the empty caption's, as classifier-free guidance needs.

    Source: Stable Diffusion's training (decisions row 10).
    Shapes: c (b, l, d_c); c_empty (1, l, d_c); draws["text_uniform"] (b,) in [0, 1) -> (b, l, d_c) float32.
    """
    is_dropped = draws["text_uniform"] < rate
    return torch.where(is_dropped[:, None, None], c_empty.to(c.dtype), c).float()


def generation_target(scheduler: SchedulerMixin, z_0: Tensor, eps_z: Tensor, t_z: Tensor) -> Tensor:
    """What the U-Net is to predict of noisy latents, by the scheduler's prediction type.

    Source: DiffDis eq. 4 for the noise; diffusers' schedulers for v.
    Shapes: z_0, eps_z (b, ch, h, w); t_z (b,) int64 -> (b, ch, h, w).
    Raises: ValueError for another prediction type.
    """
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return eps_z
    if prediction_type == "v_prediction":
        target: Tensor = scheduler.get_velocity(z_0, eps_z, t_z)
        return target
    raise ValueError(
        f"The scheduler has `prediction_type` = '{prediction_type}'. Expected 'epsilon' or 'v_prediction'. Set one of "
        "them in the scheduler's configuration."
    )
