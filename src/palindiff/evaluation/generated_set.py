"""Generated images of a set of captions, in a folder that resumes.

A folder holds `generation.json`, which says what the images are of, and `images/000000.png`, ... in the order of the
captions. An image is written whole or not at all, so a killed run resumes with the missing ones, and processes share
them. Here: generating and finding the images. Not here: what is measured of them (`generation.py`).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers import StableDiffusionPipeline
from PIL import Image
from pydantic import BaseModel, ValidationError

import palindiff
from palindiff.atomic import atomic_file, claim_folder
from palindiff.evaluation.launch import Progress
from palindiff.inference.arguments import check_steps
from palindiff.inference.generation import generate_images
from palindiff.inference.image_files import png_info
from palindiff.models.fingerprint import fingerprint
from palindiff.models.text_encoder import TextEncoder
from palindiff.seeds import hash_63_bits

INDEX_FILE, IMAGES_FOLDER = "generation.json", "images"


class GenerationSettings(BaseModel, frozen=True, extra="forbid"):
    """All that decides a set of generated images; two folders with equal values hold equal images."""

    model_fingerprint: str
    captions_sha256: str
    num_images: int
    guidance_scale: float  # 1 + w
    num_inference_steps: int
    seed: int
    size_px: int | None  # None: the model's own
    palindiff: str = palindiff.__version__

    @property
    def key(self) -> str:
        """Name of a folder that holds these images and no others."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:24]


@dataclass(frozen=True)
class GeneratedSet:
    """A folder of one generated image for each caption, complete or not."""

    path: Path
    settings: GenerationSettings

    def prepare(self) -> None:
        """Create the folder, or check that the one that exists is of the same images.

        Raises: ValueError that names what differs; OSError if it cannot be written.
        """
        claim_folder(self.path, INDEX_FILE, self.settings.model_dump_json(indent=2) + "\n", "Generated images")
        found, wanted = _read_settings(self.path / INDEX_FILE).model_dump(), self.settings.model_dump()
        if changed := [f"{name} {found[name]} -> {wanted[name]}" for name in wanted if found[name] != wanted[name]]:
            raise ValueError(
                f"`{self.path}` holds images of other settings: {'; '.join(changed)}. Expected the same model, "
                "captions and options, to resume. Use another folder, or remove this one."
            )
        (self.path / IMAGES_FOLDER).mkdir(exist_ok=True)

    def file(self, number: int) -> Path:
        """Name the image of a caption."""
        return self.path / IMAGES_FOLDER / f"{number:06d}.png"

    @property
    def files(self) -> list[Path]:
        """All images, made or not, in the order of the captions."""
        return [self.file(number) for number in range(self.settings.num_images)]

    def write(self, number: int, image: Image.Image, caption: str) -> None:
        """Write the image of a caption, with how it was made."""
        file, settings = self.file(number), self.settings
        for rest in file.parent.glob(f".{file.name}.*"):  # of a killed run
            rest.unlink(missing_ok=True)
        metadata = {"prompt": caption, "seed": str(image_seed(settings.seed, number))}
        metadata |= {name: f"{getattr(settings, name):g}" for name in ("guidance_scale", "num_inference_steps")}
        with atomic_file(file) as temporary:
            image.save(temporary, "PNG", pnginfo=png_info(metadata))


def generate_set(
    pipeline: StableDiffusionPipeline,
    captions: Sequence[str],
    generated: GeneratedSet,
    batch_size: int,
    progress: Progress = lambda what, done, total: None,
    process: int = 0,
    num_processes: int = 1,
) -> None:
    """Generate the missing images of a set; each has its own seed, so that batch and processes change none.

    Raises: ValueError if the folder holds other images, the scheduler has too few steps, or a safety checker would
            blacken images; OSError if an image cannot be written. Finished images stay.
    """
    settings = generated.settings
    check_steps(settings.num_inference_steps, pipeline.scheduler.config.num_train_timesteps)
    if getattr(pipeline, "safety_checker", None) is not None:
        raise ValueError(
            "The pipeline has a safety checker, which blackens images. Expected all images as the model makes them. "
            "Set `pipeline.safety_checker = None` to measure it."
        )
    generated.prepare()
    own = range(settings.num_images)[process::num_processes]
    missing = [number for number in own if not generated.file(number).is_file()]
    for start in range(0, len(missing), batch_size):
        progress("images generated", len(own) - len(missing) + start, len(own))
        part = missing[start : start + batch_size]
        images = generate_images(
            pipeline, [captions[number] for number in part], [image_seed(settings.seed, number) for number in part],
            settings.guidance_scale, settings.num_inference_steps, batch_size, settings.size_px,
        )  # fmt: skip
        for number, image in zip(part, images, strict=True):
            generated.write(number, image, captions[number])
    progress("images generated", len(own), len(own))


def image_seed(seed: int, number: int) -> int:
    """The seed of an image; two seeds of an evaluation share no noise."""
    return hash_63_bits(f"generation {seed} {number}")


def pipeline_fingerprint(pipeline: StableDiffusionPipeline) -> str:
    """Hash of everything in a Stable Diffusion that decides an image, but its safety checker. Reads every weight."""
    scheduler = {name: value for name, value in dict(pipeline.scheduler.config).items() if not name.startswith("_")}
    parts = [
        fingerprint(pipeline.unet),
        fingerprint(pipeline.vae),
        TextEncoder(pipeline.text_encoder, pipeline.tokenizer, "mean").fingerprint,  # its pooler is not used
        json.dumps([type(pipeline.scheduler).__name__, scheduler], sort_keys=True, default=str),
        *(str(part.dtype) for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def captions_sha256(captions: Sequence[str]) -> str:
    """Hash of captions in their order."""
    return hashlib.sha256(json.dumps(list(captions)).encode()).hexdigest()


def _read_settings(file: Path) -> GenerationSettings:
    try:
        return GenerationSettings.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"`{file}` cannot be read ({error.errors()[0]['msg']}). Expected what an evaluation of generation writes. "
            "Remove the folder, and generate the images again."
        ) from error
