"""Evaluation of generation on data sets: a record for each set and seed, those that are reused too.

Here: what is reused, and records. Not here: generating and measuring (`generation.py`), embeddings (`run.py`).
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

import palindiff
from palindiff.data.rows import ImageSet
from palindiff.evaluation.clip_score import files_sha256
from palindiff.evaluation.cost import count_tflop
from palindiff.evaluation.efficientnet import read_weights
from palindiff.evaluation.generated_set import pipeline_fingerprint
from palindiff.evaluation.generation import (
    GenerationConfig,
    GenerationData,
    chosen_rows,
    generation,
    generation_settings,
)
from palindiff.evaluation.launch import ALONE, Launch
from palindiff.evaluation.named_data import NamedData
from palindiff.evaluation.naming_tasks import Metric
from palindiff.evaluation.records import Record, TaskResult, hash_settings, read_record, record_file, write_record
from palindiff.inference.generation import generate_images

ROW_KEYS = ("metric", "value", "n", "ci_low", "ci_high", "chance")  # those that records have places for


def evaluate_generation(
    pipeline: StableDiffusionPipeline,
    model_name: str,
    data: Sequence[NamedData],
    seeds: Sequence[int],
    output: Path,
    options: GenerationConfig,
    launch: Launch = ALONE,
) -> Iterator[Record]:
    """Generate an image for each caption of every set and seed, and measure them; only process 0 measures.

    Raises: as `generation.generation`.
    """
    fingerprint = pipeline_fingerprint(pipeline)
    for each in data:
        rows = each.open()
        for seed in seeds:
            of_seed = options.model_copy(update={"seed": seed})
            settings = _settings(fingerprint, rows, of_seed)
            config_hash = hash_settings(settings)
            file = record_file(output, each.name, "generation", config_hash)
            record = read_record(file, config_hash, model_name, launch.train_tflop) if launch.process == 0 else None
            if record is None:
                key = generation_settings(fingerprint, chosen_rows(rows, of_seed), of_seed).key
                given = GenerationData(rows, output / "generated" / key, launch, fingerprint)
                found = generation(pipeline, given, of_seed)
                if found is not None:
                    setting = (
                        f"steps={of_seed.num_inference_steps},guidance_scale={of_seed.guidance_scale:g},seed={seed}"
                    )
                    record = TaskResult(
                        each.name, model_name, setting, "generation", _metrics(found.rows), seed, settings,
                        _cost(pipeline, of_seed), launch.train_tflop(), _without_value(found.rows),
                    ).record()  # fmt: skip
                    write_record(file, record)
            if record is not None:
                yield record


def check_generation_data(data: Sequence[NamedData], options: GenerationConfig) -> None:
    """Refuse data that cannot be generated from or measured, before anything is computed.

    Raises: as `chosen_rows`.
    """
    for each in data:
        chosen_rows(each.open(), options)


def _settings(fingerprint: str, rows: ImageSet, options: GenerationConfig) -> dict[str, Any]:
    """All that changes a number; files count by their content."""
    settings = options.model_dump(mode="json", exclude={"batch_size"})
    if options.clip is not None:
        settings["clip"] = files_sha256(options.clip)
    if options.inception_weights is not None:
        settings["inception_weights"] = read_weights(options.inception_weights)[1]
    facts = {"task": "generation", "model_fingerprint": fingerprint, "source_fingerprint": rows.fingerprint}
    return {**facts, **settings, "palindiff": palindiff.__version__}


def _metrics(rows: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """The rows that have a value."""
    return [
        Metric(
            row["metric"], row["value"], row["n"], row.get("chance"),
            interval=None if row.get("ci_low") is None else (row["ci_low"], row["ci_high"]), details=_details(row),
        )
        for row in rows
        if row["value"] is not None
    ]  # fmt: skip


def _without_value(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By metric, what the rows without a value say."""
    return {str(row["metric"]): _details(row) for row in rows if row["value"] is None}


def _details(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ROW_KEYS}


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
