"""Evaluation of the Diffusion Classifier on data sets: a record for each set and seed, those that are reused too.

Finished images are kept in shards, so that a stopped run resumes and processes share them. Here: shards and records.
Not here: the classifier (`diffusion_classifier.py`), accuracies (`naming_tasks.py`).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from pydantic import BaseModel, Field, field_validator
from torch import Tensor

import palindiff
from palindiff.atomic import atomic_file, check_writable
from palindiff.data.conditions import evenly_spread
from palindiff.data.images import read_pixels
from palindiff.data.rows import ImageSet
from palindiff.evaluation import naming_tasks
from palindiff.evaluation.class_sets import ClassSet, true_classes
from palindiff.evaluation.diffusion_classifier import (
    STAGES,
    Stage,
    calls_per_image,
    check_stages,
    classifier_tflop,
    classify_by_diffusion,
)
from palindiff.evaluation.generated_set import pipeline_fingerprint
from palindiff.evaluation.launch import ALONE, Launch, Progress, wait_until
from palindiff.evaluation.named_data import NamedData, has_classes
from palindiff.evaluation.records import Record, TaskResult, hash_settings, read_record, record_file, write_record
from palindiff.inference.defaults import IMAGES_AT_ONCE
from palindiff.inference.labels import LABEL_TEMPLATES, check_labels, fill_templates
from palindiff.models.unet_encoder import square_side
from palindiff.models.vae import posterior_mean

TASK = "diffusion_classifier"
SHARD_IMAGES = 8


class DiffusionClassifierConfig(BaseModel, frozen=True, extra="forbid"):
    """What is classified, and with how many draws."""

    num_images: int | None = Field(None, gt=0)  # stratified: of each class its share; None: all
    stages: tuple[Stage, ...] = Field(STAGES, min_length=1)
    """Draws of each class up to a stage's end, and how many classes are kept there."""
    template: str | None = None  # prompt with {} for a class name; None: the first of the class set
    batch_size: int = Field(IMAGES_AT_ONCE, gt=0)  # latents at once; changes no result beyond rounding

    @field_validator("template")
    @classmethod
    def _takes_a_label(cls, template: str | None) -> str | None:
        check_labels(["label"], LABEL_TEMPLATES if template is None else [template])
        return template

    @field_validator("stages")
    @classmethod
    def _narrow_down(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        check_stages(stages)
        return stages


@dataclass(frozen=True)
class _Classification:
    """The images of a set, and the folder of what is known of them."""

    pipeline: StableDiffusionPipeline
    rows: ImageSet
    classes: ClassSet
    options: DiffusionClassifierConfig
    fit: Any
    seed: int
    folder: Path

    @property
    def shards(self) -> list[range]:
        """The rows of each shard."""
        rows = range(len(self.rows))
        return [rows[start : start + SHARD_IMAGES] for start in rows[::SHARD_IMAGES]]

    def is_complete(self) -> bool:
        """Whether all shards are written."""
        return all(self.file(number).is_file() for number in range(len(self.shards)))

    def file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npz"

    def classify(self, own: range, progress: Progress) -> None:
        """Classify the images of some shards that are not written yet."""
        check_writable(self.folder, "Scores", "Name another folder.")
        template = self.options.template or self.classes.templates[0]
        prompts = fill_templates(self.classes.class_names, [template])
        side = square_side(self.pipeline.unet.config.sample_size) * self.pipeline.vae_scale_factor
        for done, number in enumerate(own):
            progress("shards of images classified", done, len(own))
            if self.file(number).is_file():
                continue
            x = torch.stack([read_pixels(self.rows[row].source, side, self.fit) for row in self.shards[number]])
            began = time.perf_counter()
            z = latents(self.pipeline, x)
            found = classify_by_diffusion(
                self.pipeline, z, prompts, self.options.stages, self.seed, self.options.batch_size
            )
            seconds = time.perf_counter() - began
            with atomic_file(self.file(number)) as temporary, temporary.open("wb") as stream:
                np.savez(stream, scores=found.scores.numpy(), seconds=seconds)
        progress("shards of images classified", len(own), len(own))

    def read(self) -> tuple[Tensor, float]:
        """Shapes: -> scores (n, k) float32, and the seconds of an image."""
        scores, seconds = [], 0.0
        for number in range(len(self.shards)):
            with np.load(self.file(number), allow_pickle=False) as shard:
                scores.append(torch.from_numpy(shard["scores"]))
                seconds += float(shard["seconds"])
        return torch.cat(scores), seconds / len(self.rows)


def evaluate_diffusion_classifier(
    pipeline: StableDiffusionPipeline,
    model_name: str,
    data: Sequence[NamedData],
    seeds: Sequence[int],
    output: Path,
    options: DiffusionClassifierConfig,
    launch: Launch = ALONE,
) -> Iterator[Record]:
    """Classify the images of every set with every seed, and measure; only process 0 measures.

    Source: Diffusion Classifier (Li et al., arXiv 2303.16203).
    Raises: ValueError if images have no class, a label is none of the class set, or as `classify_by_diffusion`;
        ImageFileError if an image cannot be read. Finished shards stay.
    """
    fingerprint = pipeline_fingerprint(pipeline)
    for each in data:
        rows, classes, truth = open_classified(each, options)
        for seed in seeds:
            settings: dict[str, Any] = {
                "task": TASK, "model_fingerprint": fingerprint, "source_fingerprint": rows.fingerprint,
                "class_set": hash_settings(classes.deciding), "seed": seed,
                **options.model_dump(mode="json", exclude={"batch_size", "num_images"}), "fit": each.config.fit,
                "palindiff": palindiff.__version__,
            }  # fmt: skip
            config_hash = hash_settings(settings)
            file = record_file(output, each.name, TASK, config_hash)
            record = read_record(file, config_hash, model_name, launch.train_tflop) if launch.process == 0 else None
            if record is None:
                work = _Classification(
                    pipeline, rows, classes, options, each.config.fit, seed, output / TASK / config_hash
                )
                work.classify(range(len(work.shards))[launch.process :: launch.num_processes], launch.progress)
                if launch.process == 0:
                    wait_until(work.is_complete)
                    record = _measure(work, truth, model_name, each.name, settings, launch.train_tflop())
                    write_record(file, record)
            if record is not None:
                yield record


def check_classifier_data(data: Sequence[NamedData], options: DiffusionClassifierConfig) -> None:
    """Refuse data that `evaluate_diffusion_classifier` would refuse, before anything is computed.

    Raises: as `evaluate_diffusion_classifier`.
    """
    for each in data:
        open_classified(each, options)


def open_classified(data: NamedData, options: DiffusionClassifierConfig) -> tuple[ImageSet, ClassSet, Tensor]:
    """Open the chosen images of a set -> them, its classes, and the class of each image, (n,) int64.

    Raises: ValueError if images have no class, or a label is none of the class set.
    """
    rows = data.open()
    if not has_classes(rows):
        raise ValueError(
            f"The data set `{data.name}` has images without a class, or one class. Expected a class for each image, "
            f"and two or more, for `{TASK}`. Use class folders, or leave the task out."
        )
    classes = data.classes(rows)
    truth = true_classes(rows, classes)
    if options.num_images is not None:
        by_class = truth.argsort(stable=True)  # so that each class has its share
        chosen = sorted(by_class[evenly_spread(len(rows), options.num_images)].tolist())
        rows, truth = rows.select(chosen), truth[chosen]
    return rows, classes, truth


def latents(pipeline: StableDiffusionPipeline, x: Tensor) -> Tensor:
    """Encode pixels by any Stable Diffusion: x (b, 3, H, W) in [-1, 1] -> z (b, ch, h, w), the posterior's mean."""
    with torch.no_grad():
        return posterior_mean(pipeline.vae, x.to(pipeline.vae.device, pipeline.vae.dtype))


def _measure(
    work: _Classification, truth: Tensor, model: str, dataset: str, settings: dict[str, Any], train_tflop: float | None
) -> Record:
    scores, seconds = work.read()
    k = len(work.classes.class_names)
    metrics = naming_tasks.classification(scores, torch.eye(k), truth)  # a class's inner product is its score
    cost = {
        "tflop": classifier_tflop(work.pipeline, k, work.options.stages), "seconds": seconds,
        "calls of U-Net": float(calls_per_image(k, work.options.stages)),
    }  # fmt: skip
    stages = ",".join(f"{draws}:{kept}" for draws, kept in work.options.stages)
    setting = f"diffusion classifier {stages},seed={work.seed}"
    return TaskResult(dataset, model, setting, TASK, metrics, work.seed, settings, cost, train_tflop).record()
