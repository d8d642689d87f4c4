"""An evaluation: models' embeddings of data sets under several settings, the tasks measured on them, and records.

Here: the order of an evaluation, and what is reused. Not here: the tasks (`tasks.py`), the files (`records.py`),
embeddings on disk (`inference/embeddings.py`).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

import palindiff
from palindiff.data.conditions import Condition, select_where
from palindiff.data.rows import ImageSet
from palindiff.data.sources import DataConfig, open_images
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
from palindiff.evaluation.tasks import (
    NEEDS_TRAINING,
    TASKS,
    Embedded,
    EvaluationOptions,
    NamingSetting,
    Task,
    check_task,
)
from palindiff.inference.defaults import IMAGES_AT_ONCE
from palindiff.inference.embedder import Embedder
from palindiff.inference.embeddings import EmbeddingFolder, embed_images, embedding_folder, read_all

Progress = Callable[[str, int, int], None]
WAIT_S = 1.0  # between two looks at whether other processes have written their shards


@dataclass(frozen=True)
class NamedData:
    """A data set and the name that records give it."""

    name: str
    config: DataConfig
    conditions: tuple[Condition, ...] = ()  # that rows must meet


@dataclass(frozen=True)
class _Opened:
    """A data set with a folder of embeddings for each setting, and its training split, if a task needs that."""

    data: NamedData
    rows: ImageSet
    folders: Sequence[EmbeddingFolder]
    train: Optional["_Opened"] = None


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
    train_split: str = "train"  # of tasks that train a classifier
    num_workers: int = 0
    batch_size: int = IMAGES_AT_ONCE
    progress: Progress = lambda what, done, total: None
    process: int = 0
    num_processes: int = 1

    def run(self) -> Iterator[Record]:
        """Embed each data set once for all settings, then measure every task; only process 0 measures.

        Raises: ValueError if a task does not fit the data; what `open_images` and `embed_images` raise.
        """
        opened = [self._open(each) for each in self.data]
        for each in opened:
            for task in self.tasks:
                check_task(task, each.data.name, each.rows, self.model, self.options)
                if task in NEEDS_TRAINING and each.train is not None:
                    check_task(task, each.train.data.name, each.train.rows, self.model, self.options)
        for each in opened:
            for of_set in filter(None, (each, each.train)):
                embed_images(
                    self.model, of_set.rows, of_set.folders, of_set.data.config.on_bad, self.batch_size,
                    self.num_workers, self.progress, self.process, self.num_processes,
                )  # fmt: skip
            if self.process == 0:
                _wait_for([*each.folders, *(each.train.folders if each.train else ())])
                for task in self.tasks:
                    for number in range(len(self.settings)):
                        yield self._measure(each, task, number)

    def _open(self, data: NamedData) -> "_Opened":
        rows = select_where(open_images(data.config), data.conditions)
        train = None
        if NEEDS_TRAINING.intersection(self.tasks) and data.config.split != self.train_split:
            config = data.config.model_copy(update={"split": self.train_split})
            train = self._open(replace(data, name=f"{data.name}, {self.train_split}", config=config))
        return _Opened(data, rows, [self._folder(rows, data.config, setting) for setting in self.settings], train)

    def _folder(self, rows: ImageSet, config: DataConfig, setting: NamingSetting) -> EmbeddingFolder:
        options = setting.model_dump()
        folder = embedding_folder(self.output, self.model, self.model_name, rows, options, config.fit)
        key = hash_settings(folder.index.model_dump(exclude={"model", "source"}))
        return EmbeddingFolder(self.output / "embeddings" / key, folder.index)

    def _embedded(self, opened: "_Opened", number: int) -> Embedded:
        e_0_hat, columns = read_all(opened.folders[number].path)
        kept = opened.rows.select(columns["row"])
        given = self.model, kept, self.settings[number], self.options, e_0_hat
        return Embedded(*given, captions=columns["captions"], labels=columns["label"])

    def _measure(self, opened: "_Opened", task: Task, number: int) -> Record:
        data, setting, folder = opened.data, self.settings[number], opened.folders[number]
        embedded = self._embedded(opened, number)
        settings = {
            **folder.index.model_dump(exclude={"model", "source", "shard_rows"}),
            "task": task,
            **self.options.model_dump(mode="json"),
            "rows": len(embedded.e_0_hat),
            "palindiff": palindiff.__version__,
        }
        if task in NEEDS_TRAINING and opened.train is not None:
            embedded = replace(embedded, train=self._embedded(opened.train, number))
            settings["train"] = opened.train.folders[number].index.source_fingerprint
        config_hash = hash_settings(settings)
        file = record_file(self.output, data.name, task, config_hash)
        if (record := read_record(file, config_hash)) is None:
            metrics = TASKS[task](embedded)
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


def _wait_for(folders: Sequence[EmbeddingFolder]) -> None:
    """Wait until the other processes of a launch have written their shards; the launcher stops all if one fails."""
    while not all(folder.has_shard(number) for folder in folders for number in range(len(folder.shards))):
        time.sleep(WAIT_S)
