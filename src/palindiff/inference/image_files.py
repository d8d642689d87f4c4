"""Generated images as PNG files with metadata that says how each was made; no file is replaced.

Here: names, metadata, writing. Not here: generation (`generation.py`).
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import palindiff
from palindiff.inference.arguments import check_steps
from palindiff.inference.best_of import best_of
from palindiff.inference.defaults import GENERATED_FILES_BATCH_SIZE, GENERATION_GUIDANCE_SCALE, GENERATION_STEPS
from palindiff.inference.generation import generate_images

MAX_NAME_LETTERS = 48  # letters of the prompt in a file's name: 192 bytes at most


@dataclass(frozen=True)
class GenerationOptions:
    """Options of `generate_files`."""

    num_images: int = 1  # of each prompt
    seed: int = 0  # of each prompt's first candidate; the second has seed + 1, ...
    num_candidates: int = 1  # of which the best is kept for each image (`best_of.py`); 1 keeps all images
    guidance_scale: float = GENERATION_GUIDANCE_SCALE  # 1 + w; 1 turns guidance off
    num_inference_steps: int = GENERATION_STEPS
    batch_size: int = GENERATED_FILES_BATCH_SIZE


@dataclass(frozen=True)
class GeneratedFile:
    """An image that was generated and saved."""

    path: Path
    prompt: str
    seed: int
    cosine: float | None = None  # of the predicted embedding and the prompt's, of the best of several


def generate_files(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], options: GenerationOptions, output: Path, model: str
) -> Iterator[GeneratedFile]:
    """Generate images of every prompt and write each batch as soon as it is done.

    Image i of a prompt has the seed `options.seed + i`, or one of `num_candidates` from `options.seed + i *
    num_candidates` on. Neither the other prompts nor the batch size change it, except for rounding, since sums may run
    in another order.

    pipeline: of ours, if there are several candidates.
    Raises: ValueError if the scheduler has fewer steps; OSError if a file cannot be written.
    """
    check_steps(options.num_inference_steps, pipeline.scheduler.config.num_train_timesteps)
    every = range(0, options.num_images * options.num_candidates, options.num_candidates)
    wanted = [(prompt, options.seed + i) for prompt in prompts for i in every]
    output.mkdir(parents=True, exist_ok=True)
    for image, prompt, seed, cosine in _images(pipeline, wanted, options):
        metadata = {"prompt": prompt, "seed": str(seed), "guidance_scale": f"{options.guidance_scale:g}"}
        metadata["num_inference_steps"] = str(options.num_inference_steps)
        if cosine is not None:
            metadata |= {"best_of": str(options.num_candidates), "cosine": f"{cosine:.4f}"}
        metadata |= {"model": model, "palindiff": palindiff.__version__}
        path = write_png(image, output, f"{file_stem(prompt)}-{seed}", metadata)
        yield GeneratedFile(path, prompt, seed, cosine)


def _images(
    pipeline: Any, wanted: Sequence[tuple[str, int]], options: GenerationOptions
) -> Iterator[tuple[Image.Image, str, int, float | None]]:
    """Generate an image for each prompt and first seed -> image, prompt, seed, and cosine if others were rejected."""
    given = options.guidance_scale, options.num_inference_steps, options.batch_size
    if options.num_candidates > 1:
        prompts, seeds = zip(*wanted, strict=True)
        for best in best_of(pipeline, prompts, options.num_candidates, seeds, *given):
            yield best.image, best.prompt, best.seed, best.cosine
        return
    for start in range(0, len(wanted), options.batch_size):
        prompts, seeds = zip(*wanted[start : start + options.batch_size], strict=True)
        images = generate_images(pipeline, prompts, seeds, *given)
        yield from ((*each, None) for each in zip(images, prompts, seeds, strict=True))


def file_stem(prompt: str) -> str:
    """Make a file name of a prompt: letters and digits of any language, joined by hyphens."""
    return re.sub(r"\W+", "-", prompt.lower())[:MAX_NAME_LETTERS].strip("-") or "image"


def write_png(image: Image.Image, folder: Path, stem: str, metadata: Mapping[str, str]) -> Path:
    """Write a PNG with text metadata under the first free name: `stem.png`, `stem (2).png`, ...

    A failure leaves no file.

    Returns: the path.
    """
    info = png_info(metadata)
    for number in itertools.count(1):
        path = folder / (f"{stem}.png" if number == 1 else f"{stem} ({number}).png")
        with suppress(FileExistsError), path.open("xb") as file:
            try:
                image.save(file, "PNG", pnginfo=info)
            except BaseException:  # for instance on a full disk
                path.unlink()
                raise
            return path
    raise AssertionError("unreachable: there is always another number")


def png_info(metadata: Mapping[str, str]) -> PngInfo:
    """Put text metadata into the form that Pillow writes."""
    info = PngInfo()
    for key, text in metadata.items():
        info.add_itxt(key, text)
    return info
