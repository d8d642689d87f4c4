"""The text diffusion: noise is added to a text query and removed again, by a stock diffusers scheduler.

Here: what the paper adds around the scheduler (γ, guidance, the first noise). Not here: diffusion arithmetic, which is
the scheduler's, and the network (`query_stream.py`).
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor

from palindiff.seeds import seeded_generator

TRAIN_STEPS = 1000  # of the text diffusion and of the image diffusion, as in Stable Diffusion
STABLE_DIFFUSION_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Of the text diffusion and of the image diffusion."""

Predict = Callable[[Any, Any], Tensor]
"""(e_t (b, d), t_e (b,)) -> e_0_hat (b, d); both None in a regression"""


def text_diffusion_scheduler(num_train_timesteps: int = TRAIN_STEPS) -> DDIMScheduler:
    """Build the scheduler: Stable Diffusion's noise schedule, prediction of the clean sample, first step at T - 1.

    Source: DiffDis Algorithm 3 as `DDIMScheduler.step`; "trailing" is decisions row 12.
    """
    sampling = {"prediction_type": "sample", "clip_sample": False, "set_alpha_to_one": True}
    sampling["timestep_spacing"] = "trailing"
    return DDIMScheduler(num_train_timesteps=num_train_timesteps, **STABLE_DIFFUSION_NOISE, **sampling)


def noisy_query(scheduler: SchedulerMixin, e_0: Tensor, eps_e: Tensor, t_e: Tensor, signal_scale: float) -> Tensor:
    """e_t = γ √ᾱ_t e_0 + √(1-ᾱ_t) ε_e, in float32.

    Source: DiffDis eq. 5 and 6; `signal_scale` is γ, or γ √d with `query_scale: sqrt_d`.
    Shapes: e_0, eps_e (b, d); t_e (b,) int64 -> (b, d).
    """
    return scheduler.add_noise(signal_scale * e_0.float(), eps_e.float(), t_e)


def leak(scheduler: SchedulerMixin, gamma: float) -> Tensor:
    """How well the noisy query alone identifies its caption: z-score γ √(ᾱ_t / (1-ᾱ_t)) at each step.

    Source: ours.
    Shapes: -> (T,) float32.
    """
    alphas = scheduler.alphas_cumprod
    return gamma * (alphas / (1 - alphas)).sqrt()


def first_noise(seeds: list[int], d_e: int) -> Tensor:
    """Draw e_T of each image from its own seed, so that an answer does not depend on the batch (decisions row 19).

    Shapes: -> (b, d_e) float32 on the CPU.
    """
    return torch.stack([torch.randn(d_e, generator=seeded_generator("e_T", seed)) for seed in seeds])


@dataclass(frozen=True)
class DenoisingStep:
    """One step: its number, the query before it, and the clean query predicted from it, of unit length."""

    t_e: int
    e_t: Tensor
    e_0_hat: Tensor


def guided(predict: Predict, predict_uncond: Predict, guidance_scale: float) -> Predict:
    """(1 + w) times the prediction minus w times the prediction without the image.

    Source: DiffDis Algorithm 3; guidance_scale = 1 + w: 1 turns guidance off, the paper's w = 3 is 4.
    """
    if guidance_scale == 1:
        return predict
    return lambda e_t, t_e: guidance_scale * predict(e_t, t_e) + (1 - guidance_scale) * predict_uncond(e_t, t_e)


def denoise(
    predict: Predict, scheduler: SchedulerMixin, e_t: Tensor, num_steps: int, signal_scale: float
) -> Iterator[DenoisingStep]:
    """Denoise a query from noise to a caption's embedding; the last step's `e_0_hat` is the answer.

    Works with any deterministic diffusers scheduler that supports `prediction_type="sample"` (noise drawn by the
    scheduler would make an answer depend on the batch); with DDIM it is Algorithm 3.

    Source: DiffDis Algorithm 3, with γ (decisions row 3).
    Shapes: e_t (b, d).
    Departs: DDIM's last step returns its predicted clean sample, so the answer is that prediction, normalised.
    """
    scheduler = copy.deepcopy(scheduler)  # the caller's keeps its timesteps
    scheduler.set_timesteps(num_steps, device=e_t.device)
    e_t = e_t * scheduler.init_noise_sigma  # 1 for DDIM
    for t in scheduler.timesteps:
        t_e, scaled = t.expand(len(e_t)), scheduler.scale_model_input(e_t, t)
        e_0_hat = predict(scaled, t_e)
        yield DenoisingStep(int(t), scaled, F.normalize(e_0_hat, dim=-1))
        e_t = scheduler.step(signal_scale * e_0_hat, t, e_t).prev_sample
