"""Records of an evaluation: one JSON file for each model, data set, task and setting, in CLIP_benchmark's envelope.

Here: the envelope, when a record may be reused, and flat rows for a result file. Not here: what is measured
(`naming_tasks.py`), result files themselves (`results.py`).
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, JsonValue, ValidationError

from palindiff.atomic import atomic_text
from palindiff.evaluation.intervals import bootstrap_interval
from palindiff.evaluation.naming_tasks import Metric
from palindiff.evaluation.provenance import Machine, facts_of_this_run
from palindiff.evaluation.results import Row

RECORD_VERSION = 1  # increase when a metric changes its meaning, so that no older record is reused
CLIP_BENCHMARK_TASKS = {
    "classification": "zeroshot_classification", "retrieval": "zeroshot_retrieval", "linear_probe": "linear_probe",
}  # fmt: skip


class Record(BaseModel, frozen=True, extra="forbid"):
    """One evaluation; the first six keys are CLIP_benchmark's, whose `build` reads these files."""

    dataset: str
    model: str
    pretrained: str  # the setting, since one model has several
    task: str  # by CLIP_benchmark's name, where it has one
    language: str = "en"
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]  # 95 %, by metric; None where there is none
    chance: dict[str, float | None]
    num_items: dict[str, int]  # images, captions or queries that a metric is the mean of
    num_left_out: int = 0  # images of the data set that could not be read
    details: dict[str, dict[str, JsonValue]] = {}  # by metric: what else its row says, such as the extractor
    seed: int
    settings: dict[str, JsonValue]  # all that changes a number
    cost: dict[str, float]  # of an image: TFLOP, seconds, calls of each network
    train_tflop: float | None = None  # of the model's training, where its run is known
    config_hash: str
    commit: str | None
    is_dirty: bool | None
    machine: Machine
    versions: dict[str, str | None]
    protocol: str = "docs/protocol.md"

    def flat_rows(self) -> list[Row]:
        """Return a row for each metric, as result files hold them."""
        rows: list[Row] = []
        for metric, value in self.metrics.items():
            low, high = self.intervals[metric] or (None, None)
            rows.append({
                "name": f"{self.model} {self.dataset} {self.task} {self.pretrained}",
                "seed": self.seed, "metric": metric, "value": value, "ci_low": low, "ci_high": high,
                "n": self.num_items[metric], "config_hash": self.config_hash, "commit": self.commit,
                "train_tflop": self.train_tflop, "tflop_per_image": self.cost.get("tflop"),
                "seconds": self.cost.get("seconds"),
            })  # fmt: skip
        return rows


@dataclass(frozen=True)
class TaskResult:
    """What a task found of a model on a data set, in one setting."""

    dataset: str
    model: str
    setting: str
    task: str
    metrics: Sequence[Metric]
    seed: int
    settings: Mapping[str, JsonValue]  # all that changes a number
    cost: Mapping[str, float]  # of an image
    train_tflop: float | None = None
    without_value: Mapping[str, Mapping[str, JsonValue]] = field(default_factory=dict)  # by metric: why
    num_left_out: int = 0  # images that could not be read

    def record(self) -> Record:
        """Put it into the envelope, with 95 % intervals of what is a mean, commit, machine and versions."""
        details = {each.name: each.details for each in self.metrics if each.details} | dict(self.without_value)
        return Record(
            dataset=self.dataset,
            model=self.model,
            pretrained=self.setting,
            task=CLIP_BENCHMARK_TASKS.get(self.task, self.task),
            metrics={each.name: each.value for each in self.metrics},
            intervals={
                each.name: each.interval if each.items is None else bootstrap_interval(each.items)
                for each in self.metrics
            },
            chance={each.name: each.chance for each in self.metrics},
            num_items={each.name: each.n for each in self.metrics},
            num_left_out=self.num_left_out,
            details={name: dict(each) for name, each in details.items()},
            seed=self.seed,
            settings=dict(self.settings),
            cost=dict(self.cost),
            train_tflop=self.train_tflop,
            config_hash=hash_settings(self.settings),
            **facts_of_this_run(),
        )


def hash_settings(settings: Mapping[str, JsonValue]) -> str:
    """Hash all that changes a number: model, data, task, its options, the setting, versions."""
    return hashlib.sha256(json.dumps([RECORD_VERSION, settings], sort_keys=True).encode()).hexdigest()[:24]


def record_file(folder: Path, dataset: str, task: str, config_hash: str) -> Path:
    """Name a record's file; equal data sets, tasks and settings have equal names."""
    plain = re.sub(r"[^\w.-]+", "-", f"{dataset}_{task}")
    return folder / f"{plain}_{hash_settings({'dataset': dataset, 'settings': config_hash})[:12]}.json"


def read_record(file: Path, config_hash: str, model: str, train_tflop: Callable[[], float | None]) -> Record | None:
    """Read a record that may be reused; None if there is none of these settings, or it cannot be read.

    Equal weights may have another name now: the record then gets the name and the cost of training of this run.
    """
    if not file.is_file():
        return None
    try:
        record = Record.model_validate_json(file.read_bytes())
    except ValidationError:  # of another version: measured again
        return None
    if record.config_hash != config_hash:
        return None
    if record.model != model:
        record = record.model_copy(update={"model": model, "train_tflop": train_tflop()})
        write_record(file, record)
    return record


def write_record(file: Path, record: Record) -> None:
    """Write a record atomically.

    Raises: ValueError if a metric is not finite.
    """
    if broken := [name for name, value in record.metrics.items() if not math.isfinite(value)]:
        raise ValueError(
            f"The metric {broken[0]} of `{record.dataset}` is not finite. Expected a number. Check the embeddings, "
            "and use float32 if the model overflows in half precision."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_text(file, json.dumps(record.model_dump(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
