"""The tasks of an evaluation: what each measures of a set's embeddings, and which data it needs.

Here: from a set to metrics. Not here: the arithmetic (`naming_tasks.py`, `collapse.py`, `linear_probe.py`,
`evaluators.py`), controls (`control_task.py`), the order of an evaluation (`run.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import BaseModel, Field, JsonValue, field_validator
from torch import Tensor

from palindiff.data.images import Fit
from palindiff.data.on_bad import OnBad
from palindiff.data.rows import ImageSet
from palindiff.evaluation import naming_tasks
from palindiff.evaluation.class_sets import ClassSet, class_numbers, classes_without_images, true_classes
from palindiff.evaluation.collapse import alignment, effective_rank, mean_pairwise_cosine, uniformity
from palindiff.evaluation.controls import NEAREST
from palindiff.evaluation.efficientnet import EffLite0Features
from palindiff.evaluation.evaluators import EvaluationConfig, EvaluationImages, chain_use
from palindiff.evaluation.linear_probe import check_installed, linear_probe
from palindiff.evaluation.naming_tasks import Metric
from palindiff.inference.defaults import NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.embedder import Embedder, PipelineEmbedder
from palindiff.inference.labels import LABEL_TEMPLATES, check_labels

Task = Literal[
    "classification", "retrieval", "class_retrieval", "chain_use", "collapse", "linear_probe", "controls"
]  # fmt: skip
Control = Literal["shuffled_images", "zeroed_images", "largest_class", "nearest_thumbnail", "nearest_efflite0"]
NEEDS_CLASSES: frozenset[Task] = frozenset({"classification", "class_retrieval", "linear_probe"})
NEEDS_IMAGES: frozenset[Task] = frozenset({"chain_use", "controls"})  # embeddings alone do not do
OPTIONS_OF: dict[Task, set[str]] = {
    "classification": {"templates"},
    "retrieval": {"retrieval_ks"},
    "class_retrieval": {"templates"},
    "chain_use": {"chain_images"},
    "collapse": set(),
    "linear_probe": set(),
    "controls": {"controls", "templates", "retrieval_ks"},
}
EMBEDS_TRAINING: frozenset[Task] = frozenset({"linear_probe"})  # tasks that train on embeddings of another split


class Setting(BaseModel, frozen=True, extra="forbid"):
    """How a model embeds images; a contrastive model has nothing to choose."""

    @property
    def label(self) -> str:
        """How a record names the setting."""
        return "one pass"

    @property
    def options(self) -> dict[str, Any]:
        """Options of the model's `embed_pixels`."""
        return self.model_dump()

    @property
    def noise_seed(self) -> int:
        """The seed that a record names."""
        return 0


class NamingSetting(Setting, frozen=True, extra="forbid"):
    """Options of `PalindiffPipeline.encode_image`."""

    num_inference_steps: int = Field(NAMING_STEPS, gt=0)
    guidance_scale: float = Field(NAMING_GUIDANCE_SCALE, ge=1)
    seed: int = Field(0, ge=0)

    @property
    def label(self) -> str:
        """How a record names the setting."""
        return f"steps={self.num_inference_steps},guidance_scale={self.guidance_scale:g},seed={self.seed}"

    @property
    def noise_seed(self) -> int:
        """The seed that a record names."""
        return self.seed


class EvaluationOptions(BaseModel, frozen=True, extra="forbid"):
    """Options that change a number, beside model, data and setting."""

    templates: tuple[str, ...] | None = Field(None, min_length=1)  # of class names; None: those of the class set
    retrieval_ks: tuple[Annotated[int, Field(gt=0)], ...] = Field(naming_tasks.RETRIEVAL_KS, min_length=1)
    chain_images: int = Field(500, gt=0)  # of `chain_use`, at most
    controls: tuple[Control, ...] = get_args(Control)

    @field_validator("templates")
    @classmethod
    def _take_a_label(cls, templates: tuple[str, ...] | None) -> tuple[str, ...] | None:
        check_labels(["label"], templates or LABEL_TEMPLATES)
        return templates

    def of_task(self, task: Task) -> dict[str, Any]:
        """The options that change a number of one task."""
        return self.model_dump(mode="json", include=OPTIONS_OF[task])

    @property
    def compares_training(self) -> bool:
        """Whether a control needs the images of the training split."""
        return not NEAREST.keys().isdisjoint(self.controls)


class Texts:
    """Embeddings of captions and labels; each list is encoded once, however many settings and tasks need it."""

    def __init__(self, model: Embedder) -> None:
        self.model = model
        self._found: dict[tuple[tuple[str, ...], ...], Tensor] = {}

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Shapes: m captions -> (m, d) float32, on the CPU."""
        key = (tuple(captions),)
        if key not in self._found:
            self._found[key] = self.model.encode_text(captions).cpu()
        return self._found[key]

    def encode_labels(self, labels: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Shapes: k labels, templates with `{}` -> (k, d) float32, on the CPU."""
        key = (tuple(labels), tuple(templates))
        if key not in self._found:
            self._found[key] = self.model.encode_labels(labels, templates).cpu()
        return self._found[key]


@dataclass(frozen=True)
class Embedded:
    """The images of a set that could be read, embedded under one setting."""

    model: Embedder
    texts: Texts
    rows: ImageSet
    setting: Setting
    options: EvaluationOptions
    e_0_hat: Tensor  # (n, d) float32, unit length
    captions: Sequence[Sequence[str]]
    labels: Sequence[str | None]
    fit: Fit = "crop"
    on_bad: OnBad = "refuse"  # training images that cannot be read
    num_workers: int = 0
    class_set: ClassSet | None = None  # for tasks that need classes
    train_e_0_hat: Tensor | None = None  # (m, d) of the training split, for tasks that train
    train_rows: ImageSet | None = None  # of the training split, for tasks that need one

    @property
    def classes(self) -> ClassSet:
        """The class set, with the templates of the options in place of its own, if there are any."""
        assert self.class_set is not None, "opened with the data"
        templates = self.options.templates
        return self.class_set if templates is None else self.class_set.model_copy(update={"templates": templates})


def measure_classification(data: Embedded) -> list[Metric]:
    """Zero-shot classification among the classes of the set; the metric that the field reports says so."""
    classes, truth = data.classes, true_classes(data.rows, data.classes)
    e = data.texts.encode_labels(classes.class_names, classes.templates)
    details: dict[str, JsonValue] = {"class_set": classes.name, "is_reported_of_the_set": True}
    if missing := classes_without_images(truth, classes):
        details["classes_without_images"] = list(missing)
    if classes.num_test not in (None, len(truth)):
        details["images_of_the_standard_test_split"] = classes.num_test
    found = naming_tasks.classification(data.e_0_hat, e, truth)
    return [replace(each, details=details) if each.name == classes.metric else each for each in found]


def measure_retrieval(data: Embedded) -> list[Metric]:
    """Image-text retrieval among all different captions of the images."""
    return naming_tasks.caption_retrieval(
        data.e_0_hat, data.captions, data.texts.encode_text, data.options.retrieval_ks
    )


def measure_class_retrieval(data: Embedded) -> list[Metric]:
    """Retrieval of the images of each class of the set by its name."""
    e = data.texts.encode_labels(data.classes.class_names, data.classes.templates)
    return naming_tasks.class_retrieval(data.e_0_hat, e, true_classes(data.rows, data.classes))


def measure_chain_use(data: Embedded) -> list[Metric]:
    """How much predictions depend on the noisy query, on evenly spread images with their first captions."""
    assert isinstance(data.model, PipelineEmbedder), "checked before anything was embedded"
    chosen = torch.linspace(0, len(data.rows) - 1, min(len(data.rows), data.options.chain_images)).long().tolist()
    images = EvaluationImages(
        [data.rows[row].source for row in chosen], [data.captions[row][0] for row in chosen],
        e_0_hat=data.e_0_hat[chosen],
    )  # fmt: skip
    return [
        Metric(str(row["metric"]), float(row["value"]), int(row["n"]), row.get("chance"))  # type: ignore[arg-type]
        for row in chain_use(data.model.pipeline, images, EvaluationConfig())
    ]


def measure_collapse(data: Embedded) -> list[Metric]:
    """Effective rank, mean pairwise cosine and uniformity of images and of captions; alignment of both."""
    different = list(dict.fromkeys(captions[0] for captions in data.captions))
    place = {caption: number for number, caption in enumerate(different)}
    e = data.texts.encode_text(different)
    of_images = e[torch.tensor([place[captions[0]] for captions in data.captions])]
    found = [
        Metric(f"{name}_{metric.__name__}", metric(embeddings), len(embeddings))
        for name, embeddings in (("image", data.e_0_hat), ("text", e))
        for metric in (effective_rank, mean_pairwise_cosine, uniformity)
    ]
    return [*found, Metric("alignment", alignment(data.e_0_hat, of_images), len(of_images))]


def measure_linear_probe(data: Embedded) -> list[Metric]:
    """Accuracy of a linear classifier that is trained on the training split, and the strength of its penalty."""
    assert data.train_e_0_hat is not None, "embedded with the test split"
    assert data.train_rows is not None, "opened with the test split"
    labels, test = [str(label) for _, label in data.train_rows.texts()], true_classes(data.rows, data.classes)
    number_of = class_numbers(set(labels), data.classes)
    others = sorted(set(labels) - number_of.keys())  # classes of the training split alone
    number_of |= {label: len(data.classes.class_names) + n for n, label in enumerate(others)}
    train = torch.tensor([number_of[label] for label in labels])
    hits, strength = linear_probe(data.train_e_0_hat, train, data.e_0_hat, test)
    chance = float((test == train.mode().values).double().mean())  # of the most frequent class
    accuracy = Metric("lp_acc1", naming_tasks.share(hits), len(hits), chance, hits.float())
    return [accuracy, Metric("lp_strength", strength, len(train))]


def check_task(task: Task, name: str, rows: ImageSet, model: Embedder, options: EvaluationOptions) -> None:
    """Refuse data or a model that a task cannot be measured on, before anything is embedded.

    Raises: ValueError; ModuleNotFoundError if a package that the task needs is missing.
    """
    texts = list(rows.texts())
    labels = {label for _, label in texts}
    num_captions = len({caption for captions, _ in texts for caption in captions})
    if task in NEEDS_CLASSES and (None in labels or len(labels) < 2):
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
    if task in ("chain_use", "collapse", "controls") and num_captions < 2:
        raise ValueError(
            f"The data set `{name}` has {'one caption' if num_captions else 'no captions'}. Expected two or more "
            f"different ones, for `{task}`. Leave the task out."
        )
    if task == "linear_probe":
        check_installed()
    if task == "controls" and "nearest_efflite0" in options.controls:
        EffLite0Features()
    if task == "chain_use" and not _has_text_diffusion(model):
        raise ValueError(
            "The task `chain_use` was asked for, and the model has no text diffusion. Expected a palindiff "
            "checkpoint with `text_chain: diffusion`. Leave the task out."
        )


def _has_text_diffusion(model: Embedder) -> bool:
    return isinstance(model, PipelineEmbedder) and model.pipeline.query_stream.has_text_diffusion
