"""The text diffusion: noise put on a text query and walked away again, by a stock diffusers scheduler.

Here: what the paper adds around the scheduler (γ, guidance, the first noise). Not here: diffusion arithmetic, which is
the scheduler's, and the network (`query_stream.py`).
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor

from palindiff.seeds import seeded_generator

TRAIN_STEPS = 1000  # of the noise schedules of image and text, as in Stable Diffusion
STABLE_DIFFUSION_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # of both chains


def text_diffusion_scheduler(num_train_timesteps: int = TRAIN_STEPS) -> DDIMScheduler:
    """Build the scheduler of the text diffusion: Stable Diffusion's noise, clean sample predicted, first step at T - 1.

    Source: DiffDis Algorithm 3 as `DDIMScheduler.step`; "trailing" is decisions row 12.
    """
    return DDIMScheduler(
        num_train_timesteps=num_train_timesteps,
        **STABLE_DIFFUSION_NOISE,
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )


def noisy_query(scheduler: SchedulerMixin, e_0: Tensor, eps_e: Tensor, t_e: Tensor, signal_scale: float) -> Tensor:
    """e_t = γ √ᾱ_t e_0 + √(1-ᾱ_t) ε_e, in float32.

    Source: DiffDis eq. 5 and 6; `signal_scale` is γ, or γ √d with `query_scale: sqrt_d`.
    Shapes: e_0, eps_e (b, d); t_e (b,) int64 -> (b, d).
    """
    return scheduler.add_noise(signal_scale * e_0.float(), eps_e.float(), t_e)


def leak(scheduler: SchedulerMixin, gamma: float) -> Tensor:
    """How surely the noisy query alone tells its own caption: z-score γ √(ᾱ_t / (1-ᾱ_t)) at each step.

    Source: ours.
    Shapes: -> (T,) float32.
    """
    alphas = scheduler.alphas_cumprod
    return gamma * (alphas / (1 - alphas)).sqrt()


def first_noise(seeds: list[int], d_e: int) -> Tensor:
    """Draw e_T for each image from its own seed, so that no batch changes an answer (decisions row 19).

    Shapes: -> (b, d_e) float32 on the CPU.
    """
    return torch.stack([torch.randn(d_e, generator=seeded_generator("e_T", seed)) for seed in seeds])


@dataclass(frozen=True)
class DenoisingStep:
    """One step of a walk: the step's number, the query before it, and the clean query predicted there, unit length."""

    t_e: int
    e_t: Tensor
    e_0_hat: Tensor


def walk(
    predict: Callable[[Tensor, Tensor], Tensor],
    predict_uncond: Callable[[Tensor, Tensor], Tensor],
    scheduler: SchedulerMixin,
    e_t: Tensor,
    num_steps: int,
    guidance_scale: float,
    signal_scale: float,
) -> Iterator[DenoisingStep]:
    """Walk a query from noise to a caption's embedding; the last step's `e_0_hat` is the answer.

    Any deterministic diffusers scheduler that takes `prediction_type="sample"` serves (one that draws noise of its own
    would let a batch change an answer); DDIM makes it Algorithm 3.

    Source: DiffDis Algorithm 3, with γ (decisions row 3); guidance_scale = 1 + w: 1 is off, the paper's w = 3 is 4.
    Shapes: e_t (b, d); predict, predict_uncond: (e_t (b, d), t_e (b,)) -> e_0_hat (b, d).
    Departs: DDIM's last step returns its predicted clean sample, so the answer is that prediction, normalised.
    """
    scheduler = copy.deepcopy(scheduler)  # a walk changes nobody's timesteps
    scheduler.set_timesteps(num_steps, device=e_t.device)
    e_t = e_t * scheduler.init_noise_sigma  # 1 for DDIM
    for t in scheduler.timesteps:
        t_e, seen = t.expand(len(e_t)), scheduler.scale_model_input(e_t, t)
        e_0_hat = predict(seen, t_e)
        if guidance_scale != 1:
            e_0_hat = guidance_scale * e_0_hat + (1 - guidance_scale) * predict_uncond(seen, t_e)
        yield DenoisingStep(int(t), seen, F.normalize(e_0_hat, dim=-1))
        e_t = scheduler.step(signal_scale * e_0_hat, t, e_t).prev_sample
