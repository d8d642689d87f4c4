"""An evaluation: models' embeddings of data sets under several settings, the tasks measured on them, and records.

Here: the order of an evaluation, and what is reused. Not here: the tasks (`naming_tasks.py`, `evaluators.py`), the
files (`records.py`), embeddings on disk (`inference/embeddings.py`).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

import palindiff
from palindiff.data.rows import ImageSet
from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation import naming_tasks
from palindiff.evaluation.cost import embedding_cost
from palindiff.evaluation.intervals import bootstrap_interval
from palindiff.evaluation.naming_tasks import Metric
from palindiff.evaluation.records import (
    CLIP_BENCHMARK_TASKS,
    Record,
    facts_of_this_run,
    hash_settings,
    read_record,
    record_file,
    write_record,
)
from palindiff.inference.defaults import IMAGES_AT_ONCE, NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.embedder import Embedder
from palindiff.inference.embeddings import EmbeddingFolder, embed_images, embedding_folder, read_all
from palindiff.inference.labels import LABEL_TEMPLATES

Task = Literal["classification", "retrieval"]
Progress = Callable[[str, int, int], None]
WAIT_S = 1.0  # between two looks at whether other processes have written their shards


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


@dataclass(frozen=True)
class NamedData:
    """A data set and the name that records give it."""

    name: str
    config: DataConfig


@dataclass
class Evaluation:
    """A model evaluated on data sets: `run` yields records, those that are reused too."""

    model: Embedder
    model_name: str
    data: Sequence[NamedData]
    tasks: Sequence[Task]
    settings: Sequence[NamingSetting]
    output: Path
    options: EvaluationOptions = field(default_factory=EvaluationOptions)
    num_workers: int = 0
    batch_size: int = IMAGES_AT_ONCE
    progress: Progress = lambda what, done, total: None
    process: int = 0
    num_processes: int = 1

    def run(self) -> Iterator[Record]:
        """Embed each data set once for all settings, then measure every task; only process 0 measures.

        Raises: ValueError if a task does not fit the data; what `open_images` and `embed_images` raise.
        """
        opened = [(each, open_images(each.config)) for each in self.data]
        for each, rows in opened:
            for task in self.tasks:
                _check_task(task, each.name, rows, self.options)
        for each, rows in opened:
            folders = [self._folder(rows, each.config, setting) for setting in self.settings]
            embed_images(
                self.model, rows, folders, each.config.on_bad, self.batch_size, self.num_workers, self.progress,
                self.process, self.num_processes,
            )  # fmt: skip
            if self.process == 0:
                _wait_for(folders)
                for task in self.tasks:
                    for setting, folder in zip(self.settings, folders, strict=True):
                        yield self._measure(each, task, setting, folder)

    def _folder(self, rows: ImageSet, config: DataConfig, setting: NamingSetting) -> EmbeddingFolder:
        options = setting.model_dump()
        folder = embedding_folder(self.output, self.model, self.model_name, rows, options, config.fit)
        key = hash_settings(folder.index.model_dump(exclude={"model", "source"}))
        return EmbeddingFolder(self.output / "embeddings" / key, folder.index)

    def _measure(self, data: NamedData, task: Task, setting: NamingSetting, folder: EmbeddingFolder) -> Record:
        e_0_hat, columns = read_all(folder.path)
        settings = {
            **folder.index.model_dump(exclude={"model", "source", "shard_rows"}),
            "task": task,
            **self.options.model_dump(mode="json"),
            "rows": len(e_0_hat),
            "palindiff": palindiff.__version__,
        }
        config_hash = hash_settings(settings)
        file = record_file(self.output, data.name, task, config_hash)
        if (record := read_record(file, config_hash)) is None:
            metrics = TASKS[task](self.model, columns, e_0_hat, self.options)
            cost = embedding_cost(self.model, setting.model_dump(), self.batch_size)
            record = self._record(data, setting, task, metrics, settings, config_hash, cost)
            write_record(file, record)
        return record

    def _record(
        self, data: NamedData, setting: NamingSetting, task: Task, metrics: Sequence[Metric],
        settings: dict[str, Any], config_hash: str, cost: Mapping[str, float],
    ) -> Record:  # fmt: skip
        return Record(
            dataset=data.name,
            model=self.model_name,
            pretrained=setting.label,
            task=CLIP_BENCHMARK_TASKS.get(task, task),
            metrics={each.name: each.value for each in metrics},
            intervals={each.name: None if each.items is None else bootstrap_interval(each.items) for each in metrics},
            chance={each.name: each.chance for each in metrics},
            num_items={each.name: each.n for each in metrics},
            seed=setting.seed,
            settings=settings,
            cost=dict(cost),
            config_hash=config_hash,
            **facts_of_this_run(),
        )


def measure_classification(
    model: Embedder, columns: Mapping[str, Sequence[Any]], e_0_hat: Tensor, options: EvaluationOptions
) -> list[Metric]:
    """Zero-shot classification among the labels of the images."""
    classes = sorted(set(columns["label"]))
    truth = torch.tensor([classes.index(label) for label in columns["label"]])
    e = model.encode_labels(classes, options.templates).cpu()
    return naming_tasks.classification(e_0_hat, e, truth)


def measure_retrieval(
    model: Embedder, columns: Mapping[str, Sequence[Any]], e_0_hat: Tensor, options: EvaluationOptions
) -> list[Metric]:
    """Image-text retrieval among all different captions of the images."""
    captions = {caption: None for of_image in columns["captions"] for caption in of_image}
    place = {caption: number for number, caption in enumerate(captions)}
    positives = torch.zeros(len(e_0_hat), len(captions), dtype=torch.bool)
    for row, of_image in enumerate(columns["captions"]):
        positives[row, [place[caption] for caption in of_image]] = True
    return naming_tasks.retrieval(e_0_hat, model.encode_text(list(captions)).cpu(), positives, options.retrieval_ks)


TASKS: dict[Task, Callable[[Embedder, Mapping[str, Sequence[Any]], Tensor, EvaluationOptions], list[Metric]]] = {
    "classification": measure_classification,
    "retrieval": measure_retrieval,
}


def _check_task(task: Task, name: str, rows: ImageSet, options: EvaluationOptions) -> None:
    """Refuse data that a task cannot be measured on, before anything is embedded."""
    texts = list(rows.texts())
    labels = {label for _, label in texts}
    if task == "classification" and (None in labels or len(labels) < 2):
        found = "images without a class" if None in labels else "one class"
        raise ValueError(
            f"The data set `{name}` has {found}. Expected a class for each image, and two classes or more, for "
            "classification. Use class folders, KEY.cls in tars or a column `label`, or leave the task out."
        )
    if task == "retrieval":
        num_captions = len({caption for captions, _ in texts for caption in captions})
        fewest = min(num_captions, len(rows))
        if fewest < max(options.retrieval_ks):
            raise ValueError(
                f"The data set `{name}` has {len(rows)} images and {num_captions} different captions. Expected at "
                f"least {max(options.retrieval_ks)} of each, for recall@{max(options.retrieval_ks)}. Pass more data, "
                "or smaller k."
            )


def _wait_for(folders: Sequence[EmbeddingFolder]) -> None:
    """Wait until the other processes of a launch have written their shards; the launcher stops all if one fails."""
    while not all(folder.has_shard(number) for folder in folders for number in range(len(folder.shards))):
        time.sleep(WAIT_S)
