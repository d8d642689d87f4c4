"""The best of several generated images, judged by the model's own naming: it reads what it has generated.

Here: candidates, their scores, and the choice. Not here: naming (`pipeline.py`), files (`image_files.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from palindiff.inference.defaults import (
    GENERATION_BATCH_SIZE,
    GENERATION_GUIDANCE_SCALE,
    GENERATION_STEPS,
    NAMING_STEPS,
)


class Generator(Protocol):
    """What is used of a pipeline of ours."""

    vae: Any
    image_processor: Any

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Generate images, or with `output_type="latent"` their latents."""

    def set_progress_bar_config(self, **options: Any) -> None:
        """Turn the progress bar on or off."""

    def encode_image(self, images: Any, *args: Any, **options: Any) -> Tensor:
        """Shapes: latents z (b, ch, h, w) -> e_0_hat (b, d_e) float32, unit length."""

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Shapes: b captions -> e (b, d_e) float32, unit length."""


@dataclass(frozen=True)
class BestImage:
    """The chosen image of a prompt, and how its candidates were scored."""

    image: Image.Image
    prompt: str
    seed: int  # of the chosen one
    cosines: dict[int, float]  # by seed: of the predicted embedding and the prompt's

    @property
    def cosine(self) -> float:
        """Cosine of the chosen one."""
        return self.cosines[self.seed]


@torch.no_grad()
def best_of(
    pipeline: Generator,
    prompts: Sequence[str],
    num_candidates: int,
    seeds: Sequence[int],
    guidance_scale: float = GENERATION_GUIDANCE_SCALE,
    num_inference_steps: int = GENERATION_STEPS,
    batch_size: int = GENERATION_BATCH_SIZE,
    naming_steps: int = NAMING_STEPS,
) -> Iterator[BestImage]:
    """Generate candidates of each prompt, and yield the one whose predicted embedding is closest to the prompt's.

    Candidate j of prompt i has the seed `seeds[i] + j`, and is the image that the pipeline generates from it. Latents
    are read as they are generated, so a candidate costs one reading, and only the chosen one is decoded. Of equal
    cosines, the first.

    Source: ours; CLIP reranks the images of DALL-E in this way (Ramesh et al., 2021, §2.6).
    Raises: ValueError if there are fewer than two candidates, or the numbers of prompts and seeds differ; what
            `encode_image` raises for an option.
    """
    if num_candidates < 2 or len(prompts) != len(seeds):
        raise ValueError(
            f"{num_candidates} candidates of {len(prompts)} prompts with {len(seeds)} seeds were asked for in "
            "`best_of`. Expected two or more candidates, and one seed per prompt. Pass lists of one length."
        )
    pipeline.set_progress_bar_config(disable=True)
    for prompt, first in zip(prompts, seeds, strict=True):
        own = range(first, first + num_candidates)
        parts = [own[start : start + batch_size] for start in range(0, num_candidates, batch_size)]
        z = torch.cat(
            [candidate_latents(pipeline, prompt, part, guidance_scale, num_inference_steps) for part in parts]
        )
        cosines = prompt_cosines(pipeline, z, prompt, naming_steps)
        best = int(cosines.argmax())
        (image,) = decode_latents(pipeline, z[best : best + 1])
        yield BestImage(image, prompt, own[best], dict(zip(own, cosines.tolist(), strict=True)))


def prompt_cosines(pipeline: Generator, z: Tensor, prompt: str, naming_steps: int = NAMING_STEPS) -> Tensor:
    """Score candidates of a prompt: the cosine of the embedding read from each, and the prompt's.

    Shapes: z (b, ch, h, w), latents as they are generated -> (b,) float32.
    Raises: ValueError if latents or cosines are not finite.
    """
    cosines = (pipeline.encode_image(z, naming_steps) @ pipeline.encode_text([prompt]).T)[:, 0]  # (b, 1) -> (b,)
    if not (z.isfinite().all() and cosines.isfinite().all()):
        raise ValueError(
            f"The candidates of `{prompt}` are not finite in {z.dtype}. Expected numbers. Use float32 or bfloat16."
        )
    return cosines


@torch.no_grad()
def decode_latents(pipeline: Generator, z: Tensor) -> list[Image.Image]:
    """Decode generated latents as the pipeline does. Shapes: z (b, ch, h, w) -> b images."""
    decoded = pipeline.vae.decode(z / pipeline.vae.config.scaling_factor).sample
    images: list[Image.Image] = pipeline.image_processor.postprocess(decoded, do_denormalize=[True] * len(z))
    return images


def candidate_latents(
    pipeline: Generator,
    prompt: str,
    seeds: Sequence[int],
    guidance_scale: float = GENERATION_GUIDANCE_SCALE,
    num_inference_steps: int = GENERATION_STEPS,
) -> Tensor:
    """Generate one prompt from several seeds, without decoding. Shapes: -> z (b, ch, h, w), one from each seed."""
    z: Tensor = pipeline(
        [prompt] * len(seeds),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="latent",
    ).images
    return z
