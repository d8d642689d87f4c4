"""Generations as PNG files that say how they were made, and never replace another file.

Here: names, metadata, writing. Not here: generation (`generation.py`).
"""

import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers import StableDiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import palindiff
from palindiff.inference.defaults import GENERATION_GUIDANCE_SCALE, GENERATION_STEPS
from palindiff.inference.generation import generate_images

MAX_NAME_LETTERS = 48  # of a prompt, in a file's name: 192 bytes at most


@dataclass(frozen=True)
class GenerationOptions:
    """How many images of each prompt, and how they are generated."""

    num_images: int = 1
    seed: int = 0  # of the first image of each prompt; the next ones count on
    guidance_scale: float = GENERATION_GUIDANCE_SCALE  # 1 + w; 1 turns guidance off
    num_inference_steps: int = GENERATION_STEPS
    batch_size: int = 8


@dataclass(frozen=True)
class GeneratedFile:
    """An image that was generated and written."""

    path: Path
    prompt: str
    seed: int


def generate_files(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], options: GenerationOptions, output: Path, model: str
) -> Iterator[GeneratedFile]:
    """Generate every prompt and write each batch as soon as it is done.

    Image i of a prompt is drawn from the seed `options.seed + i` whatever else is generated. So neither the other
    prompts nor the batch size change it, but for rounding: sums over another batch may add up in another order, which
    moves a few values by one of 255.

    Raises: OSError if a file cannot be written.
    """
    wanted = [(prompt, options.seed + i) for prompt in prompts for i in range(options.num_images)]
    output.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(wanted), options.batch_size):
        part = wanted[start : start + options.batch_size]
        of_part, seeds = [prompt for prompt, _ in part], [seed for _, seed in part]
        generated = generate_images(
            pipeline, of_part, seeds, options.guidance_scale, options.num_inference_steps, options.batch_size
        )
        for image, prompt, seed in zip(generated, of_part, seeds, strict=True):
            told = {
                "prompt": prompt,
                "seed": str(seed),
                "guidance_scale": f"{options.guidance_scale:g}",
                "num_inference_steps": str(options.num_inference_steps),
                "model": model,
                "palindiff": palindiff.__version__,
            }
            yield GeneratedFile(write_png(image, output, f"{file_stem(prompt)}-{seed}", told), prompt, seed)


def file_stem(prompt: str) -> str:
    """Shorten a prompt to what every file system takes: letters and digits of any language, joined by hyphens."""
    return re.sub(r"\W+", "-", prompt.lower())[:MAX_NAME_LETTERS].strip("-") or "image"


def write_png(image: Image.Image, folder: Path, stem: str, told: Mapping[str, str]) -> Path:
    """Write a PNG with text metadata under the first free name: `stem.png`, `stem (2).png`, ...

    Returns: the path that was free.
    """
    info = PngInfo()
    for key, text in told.items():
        info.add_itxt(key, text)
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=info)
    for number in itertools.count(1):
        path = folder / (f"{stem}.png" if number == 1 else f"{stem} ({number}).png")
        try:
            with path.open("xb") as file:
                file.write(data.getbuffer())
            return path
        except FileExistsError:
            continue
    raise AssertionError("unreachable: there is always another number")
