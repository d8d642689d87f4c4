"""Diffusion Classifier: zero-shot classification by the error with which a U-Net predicts the noise under each class.

Here: the classifier, for our pipeline and any Stable Diffusion, and its cost. Not here: classification by the query
stream (`PalindiffPipeline.classify`), accuracies (`naming_tasks.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from diffusers import DDPMScheduler, SchedulerMixin, StableDiffusionPipeline
from torch import Tensor

from palindiff.evaluation.cost import count_tflop
from palindiff.inference.defaults import CAPTIONS_AT_ONCE, IMAGES_AT_ONCE
from palindiff.models.unet_encoder import square_side
from palindiff.seeds import seeded_generator


class Stage(NamedTuple):
    """How many draws of step and noise each class has had when the stage ends, and how many classes stay."""

    num_draws: int  # of all stages so far
    num_kept: int  # of the last stage: without effect, the best one is chosen


STAGES = (Stage(50, 5), Stage(500, 1))  # of the authors' command for CIFAR10


@dataclass(frozen=True)
class DiffusionClassification:
    """What was measured for n images and k classes."""

    errors: Tensor  # (n, k) float32: mean ε-error over the draws that a class had, and over the numbers of a latent
    num_draws: Tensor  # (n, k) int64: how many those are; fewer for a class that was eliminated
    scores: Tensor  # (n, k) float32: minus the class's place, 0 for the chosen one; finite for eliminated ones too

    @property
    def chosen(self) -> Tensor:
        """The class of each image, (n,) int64."""
        return self.scores.argmax(dim=1)

    @property
    def num_calls(self) -> int:
        """Latents that went through the U-Net, over all images."""
        return int(self.num_draws.sum())


@torch.no_grad()
def classify_by_diffusion(
    pipeline: StableDiffusionPipeline,
    z: Tensor,
    prompts: Sequence[str],
    stages: Sequence[Stage] = STAGES,
    seed: int = 0,
    batch_size: int = IMAGES_AT_ONCE,
    progress: Callable[[str, int, int], None] | None = None,
) -> DiffusionClassification:
    """Classify images by the mean of ‖ε - ε_θ(z_t, t, c_class)‖² over draws of (t, ε), the same for all classes.

    A stage draws until every class that is left has had `num_draws`, and keeps the `num_kept` with the least error.
    Places: classes of a later stage come before those that were eliminated earlier, then those with less error; of
    equal ones the first prompt. Draw i depends on `seed` and i alone, so an answer depends neither on the batch nor on
    the other images. With v-prediction, ε_θ = √ᾱ_t v_θ + √(1-ᾱ_t) z_t. No guidance.

    Source:  Diffusion Classifier (Li et al., arXiv 2303.16203), Algorithms 1 and 2.
    Shapes:  z (n, ch, h, w), the posterior's mean times the VAE's factor, as `encode_pixels` and `encode_latents` of
             a pipeline return it; k prompts, one a class -> errors, num_draws, scores (n, k).
    Units:   squared error of ε, mean over the numbers of a latent.
    Raises:  ValueError if latents, prompts, stages or the U-Net's prediction cannot be used.
    Departs: t follows the van der Corput sequence over the training steps, so that the draws of every stage are evenly
             spread; Algorithm 1 draws it uniformly. All images share the draws.
    """
    scheduler = _noise_schedule(pipeline.scheduler)
    _check(pipeline, z, prompts, stages, batch_size)
    t, eps = _draws(stages[-1].num_draws, tuple(z.shape[1:]), scheduler.config.num_train_timesteps, seed)
    c = encode_prompts(pipeline, prompts)
    errors = torch.empty(len(z), len(prompts))
    num_draws = torch.zeros(len(z), len(prompts), dtype=torch.int64)
    for row, latent in enumerate(z):
        total, kept, start = torch.zeros(len(prompts), dtype=torch.float64), torch.arange(len(prompts)), 0
        for stage in stages:
            part = slice(start, stage.num_draws)
            total[kept] += _errors(pipeline, scheduler, latent, t[part], eps[part], c[kept], batch_size).sum(dim=0)
            num_draws[row, kept], start = stage.num_draws, stage.num_draws
            kept = kept[total[kept].sort(stable=True).indices[: stage.num_kept]].sort().values
        errors[row] = total / num_draws[row]
        if progress is not None:
            progress("images", row + 1, len(z))
    return DiffusionClassification(errors, num_draws, -places(errors, num_draws).float())


def places(errors: Tensor, num_draws: Tensor) -> Tensor:
    """The place of each class: by draws, the most first, then by error, the least first; 0 is the best.

    Shapes: (n, k) twice -> (n, k) int64.
    """
    by_error = errors.sort(dim=1, stable=True).indices
    by_draws = num_draws.gather(1, by_error).sort(dim=1, descending=True, stable=True).indices
    return by_error.gather(1, by_draws).argsort(dim=1)  # from classes in order to the place of each class


def classifier_tflop(pipeline: StableDiffusionPipeline, num_classes: int, stages: Sequence[Stage] = STAGES) -> float:
    """TFLOP of the U-Net for one image: `calls_per_image` times one call, which runs once and is counted.

    VAE and text encoder are left out: an image is encoded once, and prompts once for all images.
    """
    unet = pipeline.unet
    side = square_side(unet.config.sample_size)
    z = torch.zeros(1, unet.config.in_channels, side, side, device=unet.device, dtype=unet.dtype)
    c = encode_prompts(pipeline, [""])
    t = torch.zeros(1, dtype=torch.int64, device=unet.device)
    with torch.no_grad():
        return calls_per_image(num_classes, stages) * count_tflop(lambda: unet(z, t, c.to(unet.dtype)))


def calls_per_image(num_classes: int, stages: Sequence[Stage] = STAGES) -> int:
    """How many latents go through the U-Net for one image."""
    calls, start, kept = 0, 0, num_classes
    for stage in stages:
        calls += (stage.num_draws - start) * kept
        start, kept = stage.num_draws, min(kept, stage.num_kept)
    return calls


@torch.no_grad()
def encode_prompts(pipeline: StableDiffusionPipeline, prompts: Sequence[str]) -> Tensor:
    """Encode captions as generation does: k prompts -> c (k, l, d_c) on the pipeline's device."""
    parts = [list(prompts[start : start + CAPTIONS_AT_ONCE]) for start in range(0, len(prompts), CAPTIONS_AT_ONCE)]
    return torch.cat([pipeline.encode_prompt(part, pipeline._execution_device, 1, False)[0] for part in parts])


def _draws(number: int, shape: tuple[int, ...], num_train_timesteps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Shapes: -> t (number,) int64; eps (number, ch, h, w) float32; a prefix of the draws of a larger number."""
    t = [int(num_train_timesteps * van_der_corput(i)) for i in range(1, number + 1)]
    eps = [torch.randn(shape, generator=seeded_generator("diffusion_classifier", seed, i)) for i in range(number)]
    return torch.tensor(t), torch.stack(eps)


def van_der_corput(i: int) -> float:
    """The binary digits of i mirrored at the point: 1/2, 1/4, 3/4, 1/8, ... for i = 1, 2, 3, 4, ...

    Source: van der Corput (1935).
    """
    digits = f"{i:b}"[::-1]
    return int(digits, 2) / 2 ** len(digits)


def _errors(
    pipeline: StableDiffusionPipeline,
    scheduler: DDPMScheduler,
    latent: Tensor,
    t: Tensor,
    eps: Tensor,
    c: Tensor,
    batch_size: int,
) -> Tensor:
    """The ε-error of every draw and class of one image.

    Shapes: latent (ch, h, w); t (m,), eps (m, ch, h, w); c (k, l, d_c) -> (m, k) float64 on the CPU.
    """
    unet, device, found = pipeline.unet, c.device, []
    latent, alphas = latent.to(device, torch.float32), scheduler.alphas_cumprod.to(device)
    pairs = torch.cartesian_prod(torch.arange(len(t)), torch.arange(len(c)))  # (m * k, 2)
    for draw, kept in (part.unbind(dim=1) for part in pairs.split(batch_size)):
        t_z, eps_z = t[draw].to(device), eps[draw].to(device)
        z_t = scheduler.add_noise(latent.expand_as(eps_z), eps_z, t_z)
        output = unet(z_t.to(unet.dtype), t_z, c[kept.to(device)].to(unet.dtype)).sample.float()
        if scheduler.config.prediction_type == "v_prediction":
            alpha = alphas[t_z, None, None, None]
            output = alpha.sqrt() * output + (1 - alpha).sqrt() * z_t
        found.append((eps_z - output).square().mean(dim=(1, 2, 3)).cpu().double())
    return torch.cat(found).unflatten(0, (len(t), len(c)))  # (m * k,) -> (m, k)


def _noise_schedule(scheduler: SchedulerMixin) -> DDPMScheduler:
    """The noise schedule of a generation scheduler, whatever its solver.

    Raises: ValueError.
    """
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    if not hasattr(scheduler, "alphas_cumprod") or prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"The scheduler {type(scheduler).__name__} has `prediction_type` {prediction_type!r}. Expected the noise "
            "schedule of DDPM and 'epsilon' or 'v_prediction', as Stable Diffusion 1.x and 2.x have. Use another "
            "model, or correct its scheduler_config.json."
        )
    return DDPMScheduler.from_config(scheduler.config)


def _check(
    pipeline: StableDiffusionPipeline, z: Tensor, prompts: Sequence[str], stages: Sequence[Stage], batch_size: int
) -> None:
    """Refuse what cannot be classified.

    Raises: ValueError.
    """
    ch = pipeline.unet.config.in_channels
    if z.ndim != 4 or z.shape[1] != ch or not z.is_floating_point() or not len(z):
        raise ValueError(
            f"Latents have shape {tuple(z.shape)} and type {z.dtype} in `classify_by_diffusion`. Expected (n, {ch}, "
            "h, w), floating point, n from 1 on. Pass the result of `encode_latents`."
        )
    if isinstance(prompts, str) or len(prompts) < 2 or len(set(prompts)) < len(prompts):
        found = "one string" if isinstance(prompts, str) else f"{len(prompts)} prompts, {len(set(prompts))} different"
        raise ValueError(f"`prompts` is {found}. Expected a different prompt for each of two or more classes. Fix it.")
    check_stages(stages)
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}. Expected at least 1. Pass a larger one.")


def check_stages(stages: Sequence[Stage]) -> None:
    """Refuse stages that do not narrow the classes down.

    Raises: ValueError.
    """
    draws, kept = [0, *(each.num_draws for each in stages)], [*(each.num_kept for each in stages), 1]
    is_growing = all(before < after for before, after in pairwise(draws))
    is_narrowing = all(before >= after for before, after in pairwise(kept))
    if not stages or not is_growing or not is_narrowing:
        raise ValueError(
            f"`stages` is {[tuple(each) for each in stages]}. Expected one or more (num_draws, num_kept): more "
            "draws in each stage than before, and no more classes kept, but at least 1. Pass for example "
            "[Stage(50, 5), Stage(500, 1)]."
        )
