"""Evaluation of generation on data sets: a record for each set and seed, those that are reused too.

Here: what is reused, and records. Not here: generating and measuring (`generation.py`), embeddings (`run.py`).
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

import palindiff
from palindiff.data.conditions import select_where
from palindiff.data.rows import ImageSet
from palindiff.data.sources import open_images
from palindiff.evaluation.clip_score import files_sha256
from palindiff.evaluation.cost import count_tflop
from palindiff.evaluation.efficientnet import read_weights
from palindiff.evaluation.generated_set import Progress, pipeline_fingerprint
from palindiff.evaluation.generation import GenerationConfig, GenerationData, generation
from palindiff.evaluation.records import (
    Record,
    facts_of_this_run,
    hash_settings,
    read_record,
    record_file,
    write_record,
)
from palindiff.evaluation.results import Row
from palindiff.evaluation.run import NamedData
from palindiff.evaluation.tasks import EvaluationOptions
from palindiff.inference.generation import generate_images

ROW_KEYS = ("metric", "value", "n", "ci_low", "ci_high", "chance")  # those that records have places for


class TaskOptions(EvaluationOptions, frozen=True, extra="forbid", allow_inf_nan=False):
    """Options of all tasks."""

    generation: GenerationConfig = GenerationConfig()

    @property
    def naming(self) -> EvaluationOptions:
        """The options of the tasks that measure embeddings."""
        return EvaluationOptions(**self.model_dump(exclude={"generation"}))


def evaluate_generation(
    pipeline: StableDiffusionPipeline,
    model_name: str,
    data: Sequence[NamedData],
    seeds: Sequence[int],
    output: Path,
    options: GenerationConfig,
    num_workers: int = 0,
    progress: Progress = lambda what, done, total: None,
    process: int = 0,
    num_processes: int = 1,
) -> Iterator[Record]:
    """Generate an image for each caption of every set and seed, and measure them; only process 0 measures.

    Raises: as `generation.generation`.
    """
    fingerprint = pipeline_fingerprint(pipeline)
    for each in data:
        rows = select_where(open_images(each.config), each.conditions)
        for seed in seeds:
            of_seed = options.model_copy(update={"seed": seed, "fit": each.config.fit})
            settings = _settings(fingerprint, rows, of_seed)
            config_hash = hash_settings(settings)
            file = record_file(output, each.name, "generation", config_hash)
            record = read_record(file, config_hash)
            if record is None:
                folder = output / "generated" / config_hash
                shared = GenerationData(rows, folder, num_workers, process, num_processes)
                found = generation(pipeline, shared, of_seed, progress)
                if process == 0:
                    cost = _cost(pipeline, of_seed)
                    record = _record(model_name, each.name, found, settings, config_hash, seed, cost)
                    write_record(file, record)
            if record is not None and process == 0:
                yield record


def _settings(fingerprint: str, rows: ImageSet, options: GenerationConfig) -> dict[str, Any]:
    """All that changes a number; files count by their content."""
    settings = options.model_dump(mode="json", exclude={"batch_size"})
    if options.clip is not None:
        settings["clip"] = files_sha256(options.clip)
    if options.inception_weights is not None:
        settings["inception_weights"] = read_weights(options.inception_weights)[1]
    facts = {"task": "generation", "model_fingerprint": fingerprint, "source_fingerprint": rows.fingerprint}
    return {**facts, **settings, "palindiff": palindiff.__version__}


def _record(
    model_name: str, dataset: str, rows: Sequence[Row], settings: dict[str, Any], config_hash: str, seed: int,
    cost: dict[str, float],
) -> Record:  # fmt: skip
    measured = {str(row["metric"]): row for row in rows if row["value"] is not None}
    return Record(
        dataset=dataset,
        model=model_name,
        pretrained=f"steps={settings['num_inference_steps']},guidance_scale={settings['guidance_scale']:g},seed={seed}",
        task="generation",
        metrics={name: row["value"] for name, row in measured.items()},
        intervals={
            name: (row["ci_low"], row["ci_high"]) if row.get("ci_low") is not None else None
            for name, row in measured.items()
        },
        chance={name: row.get("chance") for name, row in measured.items()},
        num_items={name: row["n"] for name, row in measured.items()},
        details={
            str(row["metric"]): {key: value for key, value in row.items() if key not in ROW_KEYS} for row in rows
        },
        seed=seed,
        settings=settings,
        cost=cost,
        config_hash=config_hash,
        **facts_of_this_run(),
    )  # fmt: skip


@torch.no_grad()
def _cost(pipeline: StableDiffusionPipeline, options: GenerationConfig) -> dict[str, float]:
    """TFLOP and calls of one image, and seconds of one alone."""
    given = pipeline, ["a caption"], [0], options.guidance_scale, options.num_inference_steps, 1, options.size_px
    calls: Counter[str] = Counter()
    hook = pipeline.unet.register_forward_hook(lambda *_: calls.update(["U-Net"]))
    tflop = count_tflop(lambda: generate_images(*given))
    hook.remove()
    began = time.perf_counter()
    generate_images(*given)
    return {"tflop": tflop, "seconds": time.perf_counter() - began, "calls of U-Net": float(calls["U-Net"])}
