"""Evaluators: what is measured of a model on a set of images, while it trains and afterwards.

An evaluator is a function `(model, data, options) -> rows`. A row is a plain dict: `metric`, `value`, and, if they
apply, `n` (queries or images) and `chance`. Here: what is measured, and its options. Not here: the metrics themselves
(`naming_tasks.py`), when they are computed and where they are logged (`training/`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from diffusers import AutoencoderKL
from pydantic import BaseModel, Field, field_validator
from torch import Tensor

from palindiff.data.conditions import Where
from palindiff.data.images import ImageInput, to_pixels
from palindiff.evaluation import naming_tasks
from palindiff.evaluation.results import Row
from palindiff.evaluation.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from palindiff.evaluation.sheets import contact_sheet
from palindiff.inference.defaults import GENERATION_GUIDANCE_SCALE, IMAGES_AT_ONCE, NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.generation import generate_images
from palindiff.inference.labels import LABEL_TEMPLATES, check_labels
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.text_diffusion import TRAIN_STEPS, noisy_query
from palindiff.objectives.vae import psnr_db, squared_error
from palindiff.seeds import seeded_generator

CHAIN_STEPS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the text diffusion, as shares of its training steps
BestBy = Literal["recall", "classification", "generation"]
"""Mean of recall@1, 5 and 10 both ways; zero-shot top-1 accuracy; the generation loss on validation images"""
Name = Literal["retrieval", "classification", "chain_use", "samples"]
_WAYS = {"text": IMAGE_TO_TEXT, "image": TEXT_TO_IMAGE}  # name in `naming_tasks` -> name in a log
_ACCURACIES = {
    "acc1": "zero_shot_top_1", "acc5": "zero_shot_top_5", "mean_per_class_recall": "zero_shot_mean_class_recall",
}  # fmt: skip


class EvaluationSection(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What the recipe section `evaluation` of every objective has."""

    validation_split: str | None = "validation"  # null: nothing is validated, unless `data.validation_fraction` is set
    where: Where = ()  # conditions on validation images besides those of `data.where`, such as style=flat


class NamingSection(EvaluationSection, frozen=True, extra="forbid", allow_inf_nan=False):
    """What the section `evaluation` has for every model that embeds images and captions."""

    num_images: int = Field(500, gt=0)  # validation images at most, evenly spread
    templates: tuple[str, ...] = LABEL_TEMPLATES  # prompt templates for class names, in zero-shot classification

    @property
    def image_options(self) -> dict[str, Any]:
        """Options of the model's `encode_image`."""
        return {}

    @field_validator("templates")
    @classmethod
    def _take_a_label(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        check_labels(["label"], templates)
        return templates


class SampleSection(NamingSection, frozen=True, extra="forbid", allow_inf_nan=False):
    """What the section `evaluation` has for every model that generates too."""

    keep_best: BestBy | Literal["auto", "none"] = "auto"
    """What the best checkpoint is kept by; "auto" is "generation" if only generation is trained, else "recall"."""
    prompts: tuple[str, ...] = ()  # captions of the sample sheet; [] turns it off
    guidance_scale: float = Field(GENERATION_GUIDANCE_SCALE, ge=1)  # of the sample sheet; 1 turns guidance off
    num_inference_steps: int = Field(20, gt=0, le=TRAIN_STEPS)  # of the sample sheet


class EvaluationConfig(SampleSection, frozen=True, extra="forbid", allow_inf_nan=False):
    """Which evaluators run on a model that generates and names, and their options."""

    evaluators: tuple[Name, ...] = ("retrieval", "classification", "samples")
    naming_steps: int = Field(NAMING_STEPS, gt=0, le=TRAIN_STEPS)  # DDIM steps of the text diffusion
    naming_guidance_scale: float = Field(NAMING_GUIDANCE_SCALE, ge=1)  # 1 + w of Algorithm 3; 1 turns guidance off
    naming_samples: int = Field(1, gt=0)  # samplings of the text diffusion whose mean names an image

    @property
    def image_options(self) -> dict[str, Any]:
        """Steps, guidance and samplings of naming."""
        return {
            "num_inference_steps": self.naming_steps,
            "guidance_scale": self.naming_guidance_scale,
            "num_samples": self.naming_samples,
        }


class ContrastiveEvaluationConfig(NamingSection, frozen=True, extra="forbid", allow_inf_nan=False):
    """Which evaluators run on a contrastive model, and their options."""

    evaluators: tuple[Literal["retrieval", "classification"], ...] = ("retrieval", "classification")
    keep_best: Literal["recall", "none"] = "recall"  # what the best checkpoint is kept by: mean recall both ways


class VaeEvaluationConfig(EvaluationSection, frozen=True, extra="forbid", allow_inf_nan=False):
    """Which evaluators run on a VAE, and their options."""

    evaluators: tuple[Literal["reconstruction"], ...] = ("reconstruction",)
    batch_size: int = Field(64, gt=0)  # images encoded at once; changes no result beyond rounding


@dataclass(frozen=True)
class EvaluationImages:
    """Images to name, with one caption each and their labels, if they have any."""

    images: Sequence[ImageInput] | Tensor  # as `PalindiffPipeline.encode_image` takes them; latents z too
    captions: Sequence[str]
    labels: Sequence[str | None] = ()
    e_0_hat: Tensor | None = None  # (n, d_e) the images' queries, where several evaluators share them


@dataclass(frozen=True)
class SampleSheet:
    """Where the sheet of generated samples is written, and its title."""

    path: Path
    title: str


class NamingModel(Protocol):
    """A model that embeds images and captions at unit length: a pipeline, or a contrastive model."""

    def encode_image(self, images: Any, *args: Any, **options: Any) -> Tensor:
        """Shapes: n images -> (n, d) float32."""
        ...

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Shapes: m captions -> (m, d) float32."""
        ...

    def encode_labels(self, labels: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Shapes: k labels, templates with `{}` -> (k, d) float32, the mean over templates."""
        ...


def image_queries(model: NamingModel, data: EvaluationImages, options: NamingSection) -> Tensor:
    """Embed the images, unless that is done already; (n, d_e) float32, unit length."""
    return model.encode_image(data.images, **options.image_options) if data.e_0_hat is None else data.e_0_hat


def retrieval(model: NamingModel, data: EvaluationImages, options: NamingSection) -> list[Row]:
    """Image-text retrieval: recall@k from images to their different captions and back.

    Source: DiffDis, Table 2.
    Units:  shares of queries in [0, 1]; only k up to the number of images and of captions.
    """
    e = model.encode_text(list(dict.fromkeys(data.captions)))
    return _recalls(image_queries(model, data, options), e, data.captions)


def _recalls(e_0_hat: Tensor, e: Tensor, captions: Sequence[str]) -> list[Row]:
    """Shapes: e_0_hat (n, d_e), e (m, d_e) of n images and of the m different ones of their captions."""
    place = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    pairs = torch.tensor([(image, place[caption]) for image, caption in enumerate(captions)])
    ks = [k for k in naming_tasks.RETRIEVAL_KS if k <= min(len(e_0_hat), len(e))]
    names = {f"{way}_retrieval_recall@{k}": f"{direction}_recall_{k}" for way, direction in _WAYS.items() for k in ks}
    return _rows(naming_tasks.retrieval(e_0_hat.cpu(), e.cpu(), pairs, ks), names)


def _rows(metrics: Sequence[naming_tasks.Metric], names: Mapping[str, str]) -> list[Row]:
    """Keep the metrics that have a name in a log."""
    return [
        {"metric": names[each.name], "value": each.value, "chance": each.chance, "n": each.n}
        for each in metrics
        if each.name in names
    ]


def classification(model: NamingModel, data: EvaluationImages, options: NamingSection) -> list[Row]:
    """Zero-shot classification among the labels of the images; no rows unless all have one and there are two or more.

    Source: DiffDis, Table 1.
    Units:  shares of images in [0, 1]; only k up to the number of classes.
    """
    labels = [label for label in data.labels if label is not None]
    classes = sorted(set(labels))
    if len(classes) < 2 or len(labels) < len(data.captions):
        return []
    e_0_hat, e = image_queries(model, data, options), model.encode_labels(classes, options.templates)
    truth = torch.tensor([classes.index(label) for label in labels])
    return _rows(naming_tasks.classification(e_0_hat.cpu(), e.cpu(), truth), _ACCURACIES)


@torch.no_grad()
def chain_use(pipeline: PalindiffPipeline, data: EvaluationImages, options: EvaluationConfig) -> list[Row]:
    """How much a prediction depends on the noisy query: a text diffusion that is not used equals a regression.

    At each step t_e, the prediction from the image's own noisy query is compared with those from another caption's
    query under the same noise, and from noise alone: a cosine of 1 means that the query is ignored. Beside them are
    recall@k from noise alone, as naming works, and from the own query, which may hold the answer already. No rows for
    a model without text diffusion, or where all captions are equal.

    Source: ours.
    Units:  mean cosine; share of images whose caption is among the first k.
    """
    if not pipeline.query_stream.has_text_diffusion or len(set(data.captions)) < 2:
        return []
    last = pipeline.query_scheduler.config.num_train_timesteps - 1
    steps = [round(share * last) for share in CHAIN_STEPS]
    found = _predictions(pipeline, data, steps)
    rows: list[Row] = [
        {"metric": f"chain_cosine_{name}_t{t}", "value": float((found["own", t] * found[name, t]).sum(-1).mean()),
         "n": len(data.captions)}
        for name in ("other", "noise") for t in steps
    ]  # fmt: skip
    e = pipeline.encode_text(list(dict.fromkeys(data.captions)))
    recalls = {"from_noise": _recalls(image_queries(pipeline, data, options), e, data.captions)}
    for t in steps:
        of_step = _recalls(found["own", t], e, data.captions)
        recalls[f"own_t{t}"] = [row for row in of_step if str(row["metric"]).startswith(IMAGE_TO_TEXT)][-1:]
    named = [{**row, "metric": f"chain_{row['metric']}_{name}"} for name, part in recalls.items() for row in part]
    return rows + [row for row in named if IMAGE_TO_TEXT in str(row["metric"])]


def _predictions(
    pipeline: PalindiffPipeline, data: EvaluationImages, steps: Sequence[int]
) -> dict[tuple[str, int], Tensor]:
    """Predict the clean query at some steps, from the image's own noisy query, another caption's, and noise alone.

    Shapes: -> by name of the query ("own", "other", "noise") and step: (n, d_e) float32, unit length.
    """
    stream, scheduler = pipeline.query_stream, pipeline.query_scheduler
    e_0 = pipeline.encode_text(data.captions)
    eps = torch.randn(e_0.shape, generator=seeded_generator("chain_use")).to(e_0.device)
    clean = {"own": e_0, "other": e_0[_another_caption(data.captions)]}
    predicted: dict[tuple[str, int], list[Tensor]] = {}
    for start in range(0, len(e_0), IMAGES_AT_ONCE):
        part = slice(start, start + IMAGES_AT_ONCE)
        reading = pipeline.read_image(data.images[part])
        for t in steps:
            t_e = torch.full((len(reading),), t, dtype=torch.int64, device=e_0.device)
            noisy = {"noise": eps[part]} | {
                name: noisy_query(scheduler, e[part], eps[part], t_e, stream.signal_scale) for name, e in clean.items()
            }
            for name, e_t in noisy.items():
                e_t = stream.network_input(scheduler, e_t, t_e).to(stream.dtype)
                e_0_hat = stream(pipeline.unet, reading, e_t, t_e)
                predicted.setdefault((name, t), []).append(e_0_hat)
    return {key: torch.cat(parts) for key, parts in predicted.items()}


def _another_caption(captions: Sequence[str]) -> list[int]:
    """For each row the next row, in a circle, with another caption."""
    n = len(captions)
    return [next((i + j) % n for j in range(1, n) if captions[(i + j) % n] != captions[i]) for i in range(n)]


NAMING = {"retrieval": retrieval, "classification": classification, "chain_use": chain_use}
"""Evaluators of `EvaluationImages`, by name."""


def samples(pipeline: PalindiffPipeline, data: SampleSheet, options: SampleSection) -> list[Row]:
    """Generate an image per prompt, each from its own fixed seed, and write them as one sheet; measures nothing."""
    if options.prompts:
        seeds = list(range(len(options.prompts)))
        images = generate_images(pipeline, options.prompts, seeds, options.guidance_scale, options.num_inference_steps)
        data.path.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(images, options.prompts, title=data.title).save(data.path)
    return []


@torch.no_grad()
def reconstruction(
    vae: AutoencoderKL,
    data: Tensor,
    options: VaeEvaluationConfig = VaeEvaluationConfig(),  # noqa: B008  # frozen
) -> list[Row]:
    """Error of reconstructions from the posterior's mean, in fp32: mean of each image's PSNR, and the pooled one.

    Shapes: data (n, 3, H, W) uint8.
    Units:  decibel on images in [0, 1].
    """
    errors = []
    for images in data.split(options.batch_size):
        x = to_pixels(images).to(vae.device)
        errors.append(squared_error(x, vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)))
    error = torch.cat(errors)
    found = {"psnr_db": psnr_db(error).mean(), "pooled_psnr_db": psnr_db(error.mean())}
    return [{"metric": metric, "value": float(value), "n": len(data)} for metric, value in found.items()]


def score(numbers: Mapping[str, float], best_by: BestBy) -> tuple[str, float] | None:
    """Name and compute what the best checkpoint is chosen by, higher is better; None if it was not measured.

    Recall is the mean over k, both ways: among few images, that at the largest k is soon the same at each evaluation.
    Never the alignment loss: where the noisy query identifies its caption, that can fall without reading the image.
    """
    if best_by == "generation":
        loss = numbers.get("validation_generation")
        return None if loss is None else ("validation_generation", -loss)
    if best_by == "classification":
        accuracy = numbers.get("zero_shot_top_1")
        return None if accuracy is None else ("zero_shot_top_1", accuracy)
    names = [f"{way}_recall_{k}" for k in naming_tasks.RETRIEVAL_KS for way in (IMAGE_TO_TEXT, TEXT_TO_IMAGE)]
    found = [recall for name in names if (recall := numbers.get(name)) is not None]
    return ("mean_recall", sum(found) / len(found)) if found else None
