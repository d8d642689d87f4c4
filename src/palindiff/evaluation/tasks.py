"""The tasks of an evaluation: what each measures of a set's embeddings, and which data it needs.

Here: from a set to metrics. Not here: the arithmetic (`naming_tasks.py`, `collapse.py`, `linear_probe.py`,
`evaluators.py`), the order of an evaluation (`run.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Optional

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from palindiff.data.rows import ImageSet
from palindiff.evaluation import naming_tasks
from palindiff.evaluation.collapse import alignment, effective_rank, mean_pairwise_cosine, uniformity
from palindiff.evaluation.evaluators import EvaluationConfig, EvaluationImages, chain_use
from palindiff.evaluation.linear_probe import linear_probe
from palindiff.evaluation.naming_tasks import Metric
from palindiff.inference.defaults import NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.embedder import Embedder, PipelineEmbedder
from palindiff.inference.labels import LABEL_TEMPLATES

Task = Literal["classification", "retrieval", "chain_use", "collapse", "linear_probe"]
NEEDS_TRAINING: frozenset[Task] = frozenset({"linear_probe"})  # tasks that train on another split


class NamingSetting(BaseModel, frozen=True, extra="forbid"):
    """Options of `encode_image`; None for a model that has none."""

    num_inference_steps: int = Field(NAMING_STEPS, gt=0)
    guidance_scale: float = Field(NAMING_GUIDANCE_SCALE, ge=1)
    seed: int = Field(0, ge=0)

    @property
    def label(self) -> str:
        """How a record names the setting."""
        return f"steps={self.num_inference_steps},guidance_scale={self.guidance_scale:g},seed={self.seed}"


class EvaluationOptions(BaseModel, frozen=True, extra="forbid"):
    """Options that change a number, beside model, data and setting."""

    templates: tuple[str, ...] = LABEL_TEMPLATES  # of class names
    retrieval_ks: tuple[int, ...] = naming_tasks.RETRIEVAL_KS
    chain_images: int = Field(500, gt=0)  # of `chain_use`, at most


@dataclass(frozen=True)
class Embedded:
    """The images of a set that could be read, embedded under one setting."""

    model: Embedder
    rows: ImageSet
    setting: NamingSetting
    options: EvaluationOptions
    e_0_hat: Tensor  # (n, d) float32, unit length
    captions: Sequence[Sequence[str]]
    labels: Sequence[str | None]
    train: Optional["Embedded"] = None  # the training split, for tasks that need one


def measure_classification(data: Embedded) -> list[Metric]:
    """Zero-shot classification among the labels of the images."""
    classes = sorted({str(label) for label in data.labels})
    truth = torch.tensor([classes.index(str(label)) for label in data.labels])
    e = data.model.encode_labels(classes, data.options.templates).cpu()
    return naming_tasks.classification(data.e_0_hat, e, truth)


def measure_retrieval(data: Embedded) -> list[Metric]:
    """Image-text retrieval among all different captions of the images."""
    return naming_tasks.caption_retrieval(
        data.e_0_hat, data.captions, data.model.encode_text, data.options.retrieval_ks
    )


def measure_chain_use(data: Embedded) -> list[Metric]:
    """How much predictions depend on the noisy query, on evenly spread images with their first captions."""
    assert isinstance(data.model, PipelineEmbedder), "checked before anything was embedded"
    chosen = torch.linspace(0, len(data.rows) - 1, min(len(data.rows), data.options.chain_images)).long().tolist()
    images = EvaluationImages(
        [data.rows[row].source for row in chosen], [data.captions[row][0] for row in chosen],
        e_0_hat=data.e_0_hat[chosen],
    )  # fmt: skip
    config = EvaluationConfig(
        naming_steps=data.setting.num_inference_steps, naming_guidance_scale=data.setting.guidance_scale
    )
    return [
        Metric(str(row["metric"]), float(row["value"]), int(row["n"]), row.get("chance"))  # type: ignore[arg-type]
        for row in chain_use(data.model.pipeline, images, config)
    ]


def measure_collapse(data: Embedded) -> list[Metric]:
    """Effective rank, mean pairwise cosine and uniformity of images and of captions; alignment of both."""
    different = list(dict.fromkeys(captions[0] for captions in data.captions))
    place = {caption: number for number, caption in enumerate(different)}
    e = data.model.encode_text(different).cpu()
    of_images = e[torch.tensor([place[captions[0]] for captions in data.captions])]
    found = [
        Metric(f"{name}_{metric.__name__}", metric(embeddings), len(embeddings))
        for name, embeddings in (("image", data.e_0_hat), ("text", e))
        for metric in (effective_rank, mean_pairwise_cosine, uniformity)
    ]
    return [*found, Metric("alignment", alignment(data.e_0_hat, of_images), len(of_images))]


def measure_linear_probe(data: Embedded) -> list[Metric]:
    """Accuracy of a linear classifier that is trained on the training split, and the strength of its penalty."""
    assert data.train is not None, "opened with the test split"
    classes = sorted({str(label) for label in (*data.labels, *data.train.labels)})
    number = {label: n for n, label in enumerate(classes)}
    train, test = (torch.tensor([number[str(label)] for label in each.labels]) for each in (data.train, data))
    hits, strength = linear_probe(data.train.e_0_hat, train, data.e_0_hat, test)
    chance = float((test == train.mode().values).double().mean())  # of the most frequent class
    accuracy = Metric("lp_acc1", naming_tasks.share(hits), len(hits), chance, hits.float())
    return [accuracy, Metric("lp_strength", strength, len(train))]


TASKS: dict[Task, Callable[[Embedded], list[Metric]]] = {
    "classification": measure_classification,
    "retrieval": measure_retrieval,
    "chain_use": measure_chain_use,
    "collapse": measure_collapse,
    "linear_probe": measure_linear_probe,
}


def check_task(task: Task, name: str, rows: ImageSet, model: Embedder, options: EvaluationOptions) -> None:
    """Refuse data or a model that a task cannot be measured on, before anything is embedded.

    Raises: ValueError.
    """
    texts = list(rows.texts())
    labels = {label for _, label in texts}
    num_captions = len({caption for captions, _ in texts for caption in captions})
    if task in ("classification", "linear_probe") and (None in labels or len(labels) < 2):
        found = "images without a class" if None in labels else "one class"
        raise ValueError(
            f"The data set `{name}` has {found}. Expected a class for each image, and two classes or more, for "
            f"`{task}`. Use class folders, KEY.cls in tars or a column `label`, or leave the task out."
        )
    most = max(options.retrieval_ks)
    if task == "retrieval" and min(num_captions, len(rows)) < most:
        raise ValueError(
            f"The data set `{name}` has {len(rows)} images and {num_captions} different captions. Expected at "
            f"least {most} of each, for recall@{most}. Pass more data, or smaller k."
        )
    if task in ("chain_use", "collapse") and num_captions < 2:
        raise ValueError(
            f"The data set `{name}` has one caption. Expected two or more different ones, for `{task}`. Leave "
            "the task out."
        )
    if task == "chain_use" and not _has_text_diffusion(model):
        raise ValueError(
            "The task `chain_use` was asked for, and the model has no text diffusion. Expected a palindiff "
            "checkpoint with `text_chain: diffusion`. Leave the task out."
        )


def _has_text_diffusion(model: Embedder) -> bool:
    return isinstance(model, PipelineEmbedder) and model.pipeline.query_stream.has_text_diffusion
