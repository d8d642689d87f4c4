"""The text diffusion: noise is added to a text query and removed again, by a stock diffusers scheduler.

Here: what surrounds the scheduler (γ, guidance, the first noise, the steps of training, the scale of the network's
input). Not here: diffusion arithmetic, which is the scheduler's, and the network (`query_stream.py`).
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, SchedulerMixin
from pydantic import BaseModel
from torch import Tensor

from palindiff.seeds import seeded_generator

TRAIN_STEPS = 1000  # of the text diffusion and of the image diffusion, as in Stable Diffusion
STABLE_DIFFUSION_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Of the text diffusion and of the image diffusion."""

Predict = Callable[[Any, Any], Tensor]
"""(e_t (b, d), t_e (b,)) -> e_0_hat (b, d); both None in a regression"""


class QuerySchedulerConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The noise schedule of the text diffusion, which a checkpoint keeps in the folder `query_scheduler`."""

    rescale_betas_zero_snr: bool = False  # True: the last step is pure noise, as denoising starts from


def text_diffusion_scheduler(
    num_train_timesteps: int = TRAIN_STEPS,
    config: QuerySchedulerConfig = QuerySchedulerConfig(),  # noqa: B008  # frozen
) -> DDIMScheduler:
    """Build the scheduler: Stable Diffusion's noise schedule, prediction of the clean sample, first step at T - 1.

    With zero terminal SNR, ᾱ is 0 at T - 1: the query is noise alone, and a step from there takes its noise from
    e_{T-1} and divides by √(1-ᾱ) = 1, never by √ᾱ, because the network predicts the clean sample.

    Source: DiffDis Algorithm 3 as `DDIMScheduler.step`; "trailing" is decisions row 12; zero terminal SNR: Lin et al.
            (arXiv 2305.08891), Algorithm 1, as diffusers computes it.
    """
    sampling = {"prediction_type": "sample", "clip_sample": False, "set_alpha_to_one": True}
    sampling["timestep_spacing"] = "trailing"
    noise = STABLE_DIFFUSION_NOISE | config.model_dump()
    return DDIMScheduler(num_train_timesteps=num_train_timesteps, **noise, **sampling)


def noisy_query(scheduler: SchedulerMixin, e_0: Tensor, eps_e: Tensor, t_e: Tensor, signal_scale: float) -> Tensor:
    """e_t = γ √ᾱ_t e_0 + √(1-ᾱ_t) ε_e, in float32.

    Source: DiffDis eq. 5 and 6; `signal_scale` is γ, or γ √d with `query_scale: sqrt_d`.
    Shapes: e_0, eps_e (b, d); t_e (b,) int64 -> (b, d).
    """
    return scheduler.add_noise(signal_scale * e_0.float(), eps_e.float(), t_e)


def draw_steps(b: int, num_train_timesteps: int, power: float, generator: torch.Generator) -> Tensor:
    """Draw a step of the text diffusion for each query: t_e = ⌊T (1 - u^k)⌋ with u uniform in [0, 1) and k = `power`.

    A step of at least t is drawn with probability (1 - t/T)^(1/k): with k = 1 all steps are equally likely, with k = 4
    84 % of the draws are in the noisier half.

    Source: ours.
    Shapes: -> (b,) int64 in [0, T).
    """
    if power == 1:
        return torch.randint(num_train_timesteps, (b,), generator=generator)
    t_e = num_train_timesteps * (1 - torch.rand(b, generator=generator) ** power)
    return t_e.long().clamp(max=num_train_timesteps - 1)  # u = 0 gives T


def input_scale(scheduler: SchedulerMixin, t_e: Tensor, signal_scale: float, d_e: int) -> Tensor:
    """c_in: the factor that gives every dimension of a noisy query a mean square of 1, at every step.

    EDM scales x = y + σ n by c_in = 1 / √(σ_data² + σ²). Here e_t = √ᾱ_t (s e_0 + σ ε) with s = `signal_scale` and
    σ² = (1-ᾱ_t)/ᾱ_t, and a unit e_0 has a mean square of 1/d over its d dimensions, so σ_data² = s²/d and

        c_in (s e_0 + σ ε) = e_t / √(ᾱ_t s²/d + 1-ᾱ_t).

    ᾱ_t s²/d is ᾱ_t γ²/d with `query_scale: unit` (s = γ) and ᾱ_t γ² with `sqrt_d` (s = γ √d).

    Source: Karras et al. 2022 (arXiv 2206.00364), Table 1, c_in of EDM.
    Shapes: t_e (b,), whole numbers of any type -> (b, 1) float32.
    """
    alphas = scheduler.alphas_cumprod.to(t_e.device)[t_e.long(), None]  # (T,) -> (b, 1)
    return (alphas * (signal_scale**2 / d_e) + 1 - alphas).rsqrt()


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
