"""An evaluation: models' embeddings of data sets under several settings, the tasks measured on them, and records.

Here: the order of an evaluation, and what is reused. Not here: the tasks (`tasks.py`), the files (`records.py`),
embeddings on disk (`inference/embeddings.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from torch import Tensor

import palindiff
from palindiff.data.rows import ImageSet
from palindiff.data.sources import DataConfig
from palindiff.evaluation.class_sets import ClassSet, true_classes
from palindiff.evaluation.control_task import measure_controls
from palindiff.evaluation.cost import embedding_cost
from palindiff.evaluation.launch import ALONE, Launch, wait_until
from palindiff.evaluation.named_data import NamedData, has_classes
from palindiff.evaluation.naming_tasks import Metric
from palindiff.evaluation.records import Record, TaskResult, hash_settings, read_record, record_file, write_record
from palindiff.evaluation.tasks import (
    EMBEDS_TRAINING,
    NEEDS_CLASSES,
    NEEDS_IMAGES,
    Embedded,
    EvaluationOptions,
    Setting,
    Task,
    Texts,
    check_task,
    measure_chain_use,
    measure_class_retrieval,
    measure_classification,
    measure_collapse,
    measure_linear_probe,
    measure_retrieval,
)
from palindiff.inference.defaults import IMAGES_AT_ONCE
from palindiff.inference.embedder import Embedder
from palindiff.inference.embeddings import (
    INDEX_FILE,
    NAMES,
    EmbeddingFolder,
    check_made_by,
    embed_images,
    embedding_folder,
    read_all,
    rows_of,
)

TASKS: dict[Task, Callable[[Embedded], list[Metric]]] = {
    "classification": measure_classification,
    "retrieval": measure_retrieval,
    "class_retrieval": measure_class_retrieval,
    "chain_use": measure_chain_use,
    "collapse": measure_collapse,
    "linear_probe": measure_linear_probe,
    "controls": measure_controls,
}


@dataclass(frozen=True)
class _Opened:
    """A data set with a folder of embeddings for each setting, and its training split, if a task needs that."""

    data: NamedData
    rows: ImageSet
    folders: Sequence[EmbeddingFolder]
    is_kept: bool = False  # the embeddings were given in place of images
    class_set: ClassSet | None = None
    train: Optional["_Opened"] = None


@dataclass
class Evaluation:
    """A model evaluated on data sets: `run` yields records, those that are reused too."""

    model: Embedder
    model_name: str
    data: Sequence[NamedData]
    tasks: Sequence[Task]
    settings: Sequence[Setting]
    output: Path
    options: EvaluationOptions = field(default_factory=EvaluationOptions)
    train_split: str = "train"  # of tasks that train a classifier
    batch_size: int = IMAGES_AT_ONCE
    launch: Launch = ALONE
    _costs: dict[int, dict[str, float]] = field(default_factory=dict, init=False)  # by setting

    def run(self) -> Iterator[Record]:
        """Embed each data set once for all settings, then measure every task; only process 0 measures.

        Raises: ValueError if a task does not fit the data; what `open_images` and `embed_images` raise.
        """
        opened, launch = [self._open(each) for each in self.data], self.launch
        for each in opened:
            self._check(each)
        for each in opened:
            embedded = [each, *([each.train] if each.train and EMBEDS_TRAINING.intersection(self.tasks) else [])]
            for of_set in embedded:
                if not of_set.is_kept:
                    embed_images(
                        self.model, of_set.rows, of_set.folders, of_set.data.config.on_bad, self.batch_size,
                        launch.num_workers, launch.progress, launch.process, launch.num_processes,
                    )  # fmt: skip
            if launch.process == 0:
                for folder in (folder for of_set in embedded for folder in of_set.folders):
                    wait_until(folder.is_complete)
                texts = Texts(self.model)
                for number in range(len(self.settings)):
                    found = self._embedded(each, texts, number)
                    for task in self.tasks:
                        yield self._measure(each, found, task, number)

    def _open(self, data: NamedData, with_training: bool = True) -> "_Opened":
        is_kept = (data.path / INDEX_FILE).is_file()
        if is_kept:
            folders, rows = self._kept(data), rows_of(data.path)
        else:
            rows = data.open()
            folders = [self._folder(rows, data.config, setting) for setting in self.settings]
        needs_training = EMBEDS_TRAINING.intersection(self.tasks) or (
            "controls" in self.tasks and self.options.compares_training
        )
        train = None
        if with_training and needs_training:
            train = self._open(data.of_split(self.train_split), False)
            _check_other_images(data, rows, train.rows)
        classes = data.classes(rows) if with_training and self._classifies(rows) else None
        return _Opened(data, rows, folders, is_kept, classes, train)

    def _classifies(self, rows: ImageSet) -> bool:
        """Whether a task needs classes, and the images have some."""
        return not {*NEEDS_CLASSES, "controls"}.isdisjoint(self.tasks) and has_classes(rows)

    def _kept(self, data: NamedData) -> list[EmbeddingFolder]:
        """Find the embeddings that were given in place of images, for the one setting that they were made with.

        Raises: ValueError if another model or setting made them, or a task or option needs images.
        """
        if needing := [task for task in self.tasks if task in NEEDS_IMAGES]:
            raise ValueError(
                f"`{data.path}` holds embeddings, and `{needing[0]}` needs the images. Expected images for it. Pass "
                "the images as --data, or leave the task out."
            )
        if data.config.where:
            raise ValueError(
                f"`{data.path}` holds embeddings, and {data.config.where[0]} was asked of their rows. Expected all "
                "rows. Pass the images as --data, or leave the condition out."
            )
        for setting in self.settings:
            check_made_by(data.path, self.model, setting.options)
        folder = EmbeddingFolder.open(data.path)
        if folder.index.split != data.config.split:
            raise ValueError(
                f"`{data.path}` holds embeddings of the split `{folder.index.split}`, and `{data.config.split}` was "
                f"asked for. Expected the same. Use --split {folder.index.split}, or embed that split."
            )
        return [folder]

    def _check(self, opened: "_Opened") -> None:
        """Refuse data that a task cannot be measured on.

        Raises: ValueError.
        """
        for task in self.tasks:
            check_task(task, opened.data.name, opened.rows, self.model, self.options)
            if task in EMBEDS_TRAINING and opened.train is not None:
                check_task(task, opened.train.data.name, opened.train.rows, self.model, self.options)
        if opened.class_set is not None:
            true_classes(opened.rows, opened.class_set)

    def _folder(self, rows: ImageSet, config: DataConfig, setting: Setting) -> EmbeddingFolder:
        given = self.model, self.model_name, rows, config.split, setting.options, config.fit
        folder = embedding_folder(self.output, *given)
        key = hash_settings(folder.index.model_dump(exclude=NAMES))
        return EmbeddingFolder(self.output / "embeddings" / key, folder.index)

    def _read(self, opened: "_Opened", number: int) -> tuple[Tensor, dict[str, list[Any]], ImageSet]:
        """Read embeddings, their metadata and their rows; with the first setting, say how many images are left out.

        Raises: ValueError if some could not be read when bad images were skipped, and now they are refused.
        """
        e_0_hat, columns = read_all(opened.folders[number].path)
        rows = opened.rows if opened.is_kept else opened.rows.select(columns["row"])
        if number == 0:
            self._report_left_out(opened, len(rows))
        return e_0_hat, columns, rows

    def _report_left_out(self, opened: "_Opened", num_read: int) -> None:
        index = opened.folders[0].index
        num_unreadable = index.num_rows - num_read
        found = f"{num_unreadable:,} of {index.num_rows:,} images of `{opened.data.name}` cannot be read"
        if num_unreadable and opened.data.config.on_bad == "refuse" and not opened.is_kept:
            raise ValueError(f"{found}. Expected all. Fix them, or use --on-bad skip.")
        for sentence in filter(None, (opened.rows.left_out, f"{found} and were left out." * bool(num_unreadable))):
            self.launch.warn(sentence)

    def _embedded(self, opened: "_Opened", texts: Texts, number: int) -> Embedded:
        e_0_hat, columns, rows = self._read(opened, number)
        train, config, train_e = opened.train, opened.data.config, None
        train_rows = None if train is None else train.rows
        if train is not None and EMBEDS_TRAINING.intersection(self.tasks):
            train_e, _, train_rows = self._read(train, number)
        return Embedded(
            self.model, texts, rows, self.settings[number], self.options, e_0_hat, columns["captions"],
            columns["label"], config.fit, config.on_bad, self.launch.num_workers, opened.class_set, train_e,
            train_rows,
        )  # fmt: skip

    def _measure(self, opened: "_Opened", embedded: Embedded, task: Task, number: int) -> Record:
        data, setting, index = opened.data, self.settings[number], opened.folders[number].index
        settings: dict[str, Any] = {
            **index.model_dump(exclude={*NAMES, "shard_rows"}),
            "task": task,
            **self.options.of_task(task),
            "rows": len(embedded.e_0_hat),
            "palindiff": palindiff.__version__,
        }
        if task in (*NEEDS_CLASSES, "controls") and opened.class_set is not None:
            settings["class_set"] = hash_settings(opened.class_set.deciding)
        if task in (*EMBEDS_TRAINING, "controls") and opened.train is not None:
            settings["train"] = opened.train.folders[number].index.source_fingerprint
        file = record_file(self.output, data.name, task, config_hash := hash_settings(settings))
        if (record := read_record(file, config_hash, self.model_name, self.launch.train_tflop)) is None:
            if number not in self._costs:
                self._costs[number] = embedding_cost(self.model, setting.options, self.batch_size)
            record = TaskResult(
                data.name, self.model_name, setting.label, task, TASKS[task](embedded), setting.noise_seed, settings,
                self._costs[number], self.launch.train_tflop(), num_left_out=index.num_rows - len(embedded.e_0_hat),
            ).record()  # fmt: skip
            write_record(file, record)
        return record


def _check_other_images(data: NamedData, rows: ImageSet, train: ImageSet) -> None:
    """Refuse training on the images that are tested, whatever they are called.

    Raises: ValueError.
    """
    if train.fingerprint == rows.fingerprint:
        raise ValueError(
            f"The training split of `{data.name}` has the same images. Expected others. Use another --split or "
            "--train-split (of embeddings, name the folders of both by {split} in the path), leave the task out, or "
            'use --set \'controls=["shuffled_images","zeroed_images"]\'.'
        )
