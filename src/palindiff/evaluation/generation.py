"""Evaluation of text-to-image generation: distances to real images, CLIP-score, recall by thumbnails.

Here: options, the order of the evaluation, and the rows. Not here: making the images (`generated_set.py`), distances
(`distances.py`), extractors (`efficientnet.py`, `inception.py`), CLIP-score (`clip_score.py`).

Real and generated images are decoded and fitted to squares of one size in the same way; each extractor then resizes
them as it was trained to. All of that stands in the rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from diffusers import StableDiffusionPipeline
from pydantic import BaseModel, Field
from torch import Tensor

from palindiff.data.conditions import evenly_spread
from palindiff.data.images import Fit, ImageSource, decode_image, to_pixels
from palindiff.data.rows import CaptionedImage
from palindiff.data.squares import read_squares
from palindiff.evaluation.clip_score import Clip, OpenClipRN50, TransformersClip, clip_score_row
from palindiff.evaluation.distances import NUM_SUBSETS, SUBSET_SIZE, check_subset_size, distance_rows
from palindiff.evaluation.efficientnet import EffLite0Features
from palindiff.evaluation.fidelity import load_torch_fidelity
from palindiff.evaluation.generated_set import (
    GeneratedSet,
    GenerationSettings,
    captions_sha256,
    generate_set,
    pipeline_fingerprint,
)
from palindiff.evaluation.inception import InceptionFeatures
from palindiff.evaluation.launch import ALONE, Launch, wait_until
from palindiff.evaluation.naming_tasks import RETRIEVAL_KS
from palindiff.evaluation.results import Row
from palindiff.evaluation.thumbnails import CAPTION_TO_GENERATED, THUMBNAIL_SIDE, thumbnail_recall, thumbnails
from palindiff.inference.defaults import GENERATION_BATCH_SIZE, GENERATION_GUIDANCE_SCALE, GENERATION_STEPS
from palindiff.models.text_diffusion import TRAIN_STEPS

MAX_RECALLED = 1000  # candidates of recall by thumbnails, at most
Reader = Callable[[Tensor], Tensor]  # (b, 3, H, W) uint8 -> (b, ...) float32


class GenerationConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What is generated, and what is measured of it."""

    num_images: int | None = Field(None, gt=1)  # captions generated, evenly spread over the rows; None: all
    guidance_scale: float = Field(GENERATION_GUIDANCE_SCALE, ge=1)  # 1 + w; 1 turns guidance off
    num_inference_steps: int = Field(GENERATION_STEPS, gt=0, le=TRAIN_STEPS)
    seed: int = Field(0, ge=0)  # each image has its own, of this and its number
    size_px: int | None = Field(None, gt=0)  # side of generated and real images; None: the model's own
    fit: Fit = "crop"  # how an image that is not square becomes so
    extractors: tuple[Literal["efflite0"], ...] = ("efflite0",)  # [] turns them off
    inception_weights: Path | None = None  # of torch-fidelity's InceptionV3; None: no FID and KID
    clip: Path | None = None  # folder of a transformers `CLIPModel`; None: no CLIP-score by it
    clip_rn50_openai: bool = False  # CLIP-score by OpenAI's RN50, which needs open_clip
    kid_subset_size: int = Field(SUBSET_SIZE, gt=1)  # images of a subset of the kernel distance
    num_kid_subsets: int = Field(NUM_SUBSETS, gt=0)
    batch_size: int = Field(GENERATION_BATCH_SIZE, gt=0)  # images at once; changes no result beyond rounding

    @property
    def has_distances(self) -> bool:
        """Whether any extractor is chosen."""
        return bool(self.extractors) or self.inception_weights is not None


@dataclass(frozen=True)
class GenerationData:
    """Real images with captions, and the folder of the images that are generated for these."""

    rows: Sequence[CaptionedImage]  # of a row with several captions, the first is used
    folder: Path
    launch: Launch = ALONE
    model_fingerprint: str | None = None  # `pipeline_fingerprint`, where it is known
    known: "ImageReadings | None" = None  # of the real images, where another call has read them


@dataclass(frozen=True)
class ImageReadings:
    """What networks read in images of one size: (n, ...) float32, by the name of the reader."""

    size_px: int
    by_reader: Mapping[str, Tensor]


@dataclass(frozen=True)
class MeasuredGeneration:
    """Rows of metrics, and what they were computed of."""

    rows: list[Row]
    generated: ImageReadings
    real: ImageReadings


class Instruments:
    """The networks that measure images, each loaded once.

    Raises: ModuleNotFoundError if a package is missing; FileNotFoundError or ValueError for weights that do not fit.
    """

    def __init__(self, options: GenerationConfig, device: torch.device | str = "cpu") -> None:
        if options.has_distances:
            load_torch_fidelity()
        self.extractors: list[EffLite0Features | InceptionFeatures] = [EffLite0Features() for _ in options.extractors]
        if options.inception_weights is not None:
            self.extractors.append(InceptionFeatures(options.inception_weights))
        self.clips: list[TransformersClip | OpenClipRN50] = []
        if options.clip is not None:
            self.clips.append(TransformersClip(options.clip))
        if options.clip_rn50_openai:
            self.clips.append(OpenClipRN50())
        self.device = torch.device(device)
        for network in (*self.extractors, *self.clips):
            network.to(self.device)


def generation(
    pipeline: StableDiffusionPipeline, data: GenerationData, options: GenerationConfig
) -> MeasuredGeneration | None:
    """Generate an image for each of N captions, unless its file is there, and measure them against the real images.

    Works for any Stable Diffusion pipeline. Of several processes, only process 0 measures; the others return None.

    Source:  DiffDis, Table 3 (FID, KID, CLIP-score).
    Returns: rows as `measure_images`, with `guidance_scale`, `num_inference_steps` and `seed`.
    Raises:  as `chosen_rows`, `Instruments`, `generate_set` and `measure_images`; what can be known beforehand is
             raised before an image is generated.
    """
    rows, launch = chosen_rows(data.rows, options), data.launch
    instruments = Instruments(options, pipeline.device) if launch.process == 0 else None
    captions = [row.captions[0] for row in rows]
    settings = generation_settings(data.model_fingerprint or pipeline_fingerprint(pipeline), rows, options)
    generated = GeneratedSet(data.folder, settings)
    share = launch.process, launch.num_processes
    generate_set(pipeline, captions, generated, options.batch_size, launch.progress, *share)
    if instruments is None:
        return None
    wait_until(lambda: all(file.is_file() for file in generated.files))
    made = {name: getattr(settings, name) for name in ("guidance_scale", "num_inference_steps", "seed")}
    found = measure_images(generated.files, rows, options, instruments, launch, data.known)
    return replace(found, rows=[{**row, **made} for row in found.rows])


def generation_settings(
    model_fingerprint: str, rows: Sequence[CaptionedImage], options: GenerationConfig
) -> GenerationSettings:
    """All that decides the images of some rows; what is measured of them is no part of it."""
    return GenerationSettings(
        model_fingerprint=model_fingerprint, captions_sha256=captions_sha256([row.captions[0] for row in rows]),
        num_images=len(rows), guidance_scale=options.guidance_scale, num_inference_steps=options.num_inference_steps,
        seed=options.seed, size_px=options.size_px,
    )  # fmt: skip


def measure_images(
    files: Sequence[Path],
    rows: Sequence[CaptionedImage],
    options: GenerationConfig,
    instruments: Instruments,
    launch: Launch = ALONE,
    known: ImageReadings | None = None,
) -> MeasuredGeneration:
    """Measure generated images, one for each row, against the images and first captions of the rows.

    known: what was read in the real images before; used if it has their size and all that is needed.

    Returns: rows of `distance_rows` for each extractor, of `clip_score_row` for each CLIP, and `caption_to_generated`
             recall, if captions differ; each with size, fit and file format of the images.
    Raises:  ValueError if the numbers of images and rows differ, or are under the subset size of the kernel distance;
             ImageFileError if an image cannot be read.
    """
    if len(files) != len(rows):
        raise ValueError(
            f"{len(files):,} generated images were found for {len(rows):,} captions. Expected one for each. "
            "Set `num_images` to the number of images, or generate the missing ones."
        )
    size_px = options.size_px or min(decode_image(files[0]).size)
    generated = [
        CaptionedImage(ImageSource(str(path), path=path), row.captions) for path, row in zip(files, rows, strict=True)
    ]
    extractors: dict[str, Reader] = {each.label: each for each in instruments.extractors}
    clips: dict[str, Clip] = {each.metric: each for each in instruments.clips}
    readers = extractors | ({CAPTION_TO_GENERATED: _as_thumbnails} if size_px >= THUMBNAIL_SIDE else {})
    looks = readers | {metric: clip.embed_images for metric, clip in clips.items()}
    read = _BatchReader(options, size_px, instruments.device, launch)
    of_generated = read(generated, looks, "generated images read")
    if known is not None and known.size_px == size_px and readers.keys() <= known.by_reader.keys():
        of_real = known.by_reader
    else:
        of_real = read(rows, readers, "real images read")
    found: list[Row] = []
    for each in instruments.extractors:
        of_extractor = distance_rows(
            each.label, of_generated[each.label], of_real[each.label], options.num_kid_subsets, options.kid_subset_size
        )
        found += [{**row, "extractor": each.description} for row in of_extractor]
    captions = [row.captions[0] for row in rows]
    found += [clip_score_row(clip, of_generated[metric], captions) for metric, clip in clips.items()]
    if CAPTION_TO_GENERATED in readers:
        found += _recall_rows(of_generated[CAPTION_TO_GENERATED], of_real[CAPTION_TO_GENERATED], captions)
    formats = ", ".join(sorted({path.suffix.lower().removeprefix(".") for path in files}))
    facts: Row = {"size_px": size_px, "fit": f"{options.fit}, Lanczos, antialiased", "file_format": formats}
    readings = ImageReadings(size_px, of_generated), ImageReadings(size_px, of_real)
    return MeasuredGeneration([{**row, **facts} for row in found], *readings)


def chosen_rows(rows: Sequence[CaptionedImage], options: GenerationConfig) -> list[CaptionedImage]:
    """Take `num_images` rows spread evenly over all.

    Raises: ValueError if there are fewer, fewer than a subset of the kernel distance needs, or one has no caption.
    """
    number = len(rows) if options.num_images is None else options.num_images
    if number > len(rows) or len(rows) < 2:
        raise ValueError(
            f"`num_images` is {number:,} and the data have {len(rows):,} images. Expected two or more, and no more "
            "than there are. Set `num_images` to a smaller number, or pass more data."
        )
    if options.has_distances:
        check_subset_size(number, options.kid_subset_size)
    chosen = [rows[i] for i in evenly_spread(len(rows), number)]
    if without := [row.source.place for row in chosen if not row.captions]:
        raise ValueError(
            f"`{without[0]}` has no caption, as {len(without) - 1:,} other images. Expected a caption for each, to "
            "generate from. Remove the image, or pass data with captions."
        )
    return chosen


@dataclass(frozen=True)
class _BatchReader:
    """Decodes images once, and lets several networks read each batch."""

    options: GenerationConfig
    size_px: int
    device: torch.device
    launch: Launch

    def __call__(self, rows: Sequence[CaptionedImage], readers: Mapping[str, Reader], what: str) -> dict[str, Tensor]:
        """Shapes: n images -> by reader: (n, ...) float32, on the CPU."""
        found: dict[str, list[Tensor]] = {name: [] for name in readers}
        done = 0
        given = self.size_px, self.options.fit, self.options.batch_size, self.launch.num_workers
        for pixels in read_squares(rows, *given):
            for name, reader in readers.items():
                found[name].append(reader(pixels.to(self.device)).float().cpu())
            done += len(pixels)
            self.launch.progress(what, done, len(rows))
        return {name: torch.cat(parts) for name, parts in found.items()}


def _as_thumbnails(pixels: Tensor) -> Tensor:
    """Shapes: (b, 3, H, W) uint8 -> (b, 3, side, side) float32 in [-1, 1]."""
    areas = thumbnails(to_pixels(pixels)).clamp(-1, 1)  # of a mean in float32
    return areas.unflatten(1, (3, THUMBNAIL_SIDE, THUMBNAIL_SIDE))  # (b, 3*side*side) -> (b, 3, side, side)


def _recall_rows(generated: Tensor, real: Tensor, captions: Sequence[str]) -> list[Row]:
    """Recall of each caption's real image, among the first images of MAX_RECALLED different captions at most.

    Shapes: generated, real (n, 3, side, side) in [-1, 1], of n captions.
    """
    first: dict[str, int] = {}
    for number, caption in enumerate(captions):
        first.setdefault(caption, number)
    chosen = torch.tensor([list(first.values())[i] for i in evenly_spread(len(first), MAX_RECALLED)])
    if len(chosen) < 2:
        return []
    ks = [k for k in RETRIEVAL_KS if k <= len(chosen)]
    return [
        {
            "metric": f"{CAPTION_TO_GENERATED}_recall_{row['k']}", "value": row["recall"], "chance": row["chance"],
            "shuffled": row["shuffled"], "n": row["n"], "num_candidates": len(chosen),
        }
        for row in thumbnail_recall(generated[chosen], torch.arange(len(chosen)), real[chosen], ks)
    ]  # fmt: skip
