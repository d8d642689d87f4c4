"""What is measured of a trained model: naming under several settings, and generation, with the items of each mean.

Here: measuring a run, and the files that keep it, so that the next call measures nothing again. Not here: training
(`model_runs.py`), comparing two models (`verdicts.py`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

import palindiff
from palindiff.atomic import atomic_file, atomic_text
from palindiff.data.conditions import Condition, select_where
from palindiff.data.images import ImageSource, decode_image, to_pixels
from palindiff.data.rows import CaptionedImage, ImageSet
from palindiff.data.sources import DataConfig, open_images
from palindiff.data.squares import SquareImages
from palindiff.evaluation import naming_tasks
from palindiff.evaluation.class_sets import class_set_of, load_class_set, true_classes
from palindiff.evaluation.efficientnet import EffLite0Features
from palindiff.evaluation.generated_set import IMAGES_FOLDER
from palindiff.evaluation.generation import GenerationConfig, GenerationData, chosen_rows, evenly_spread, generation
from palindiff.evaluation.intervals import bootstrap_interval
from palindiff.evaluation.naming_tasks import Metric
from palindiff.evaluation.results import Row
from palindiff.experiments.reproduction.plan import ROOT, DataPlan, GenerationPlan, NamingPlan
from palindiff.inference.defaults import IMAGES_AT_ONCE
from palindiff.inference.embedder import Embedder, PipelineEmbedder

MEASURED, GENERATED = "measured", "generated"  # folders in a run's
WAYS = ("text", "image")  # retrieval of captions and of images


@dataclass(frozen=True)
class Measurement:
    """Rows of metrics, and the items that claims pair, by name."""

    rows: list[Row]
    items: dict[str, Tensor]


def open_rows(data: DataPlan | GenerationPlan, root: Path) -> ImageSet:
    """Open the images of a plan's data set.

    Raises: FileNotFoundError or ValueError, in a sentence, if they are not there.
    """
    config = DataConfig(path=data.path.replace(ROOT, str(root)), split=data.split)
    return select_where(open_images(config), [Condition.parse(each) for each in data.where])


def measure_naming(
    model: Embedder, data: DataPlan, root: Path, settings: Sequence[NamingPlan], folder: Path
) -> list[Measurement]:
    """Measure retrieval, and classification if the plan asks for it, under each setting; images are read once.

    folder: of the run, which keeps what is measured.
    Raises: as `open_rows`; ValueError if the data do not fit a task.
    """
    rows = open_rows(data, root)
    keys = [
        _key("naming", model.fingerprint, rows.fingerprint, data.model_dump(), each.model_dump()) for each in settings
    ]
    found = {key: measured for key in keys if (measured := _read(folder, key)) is not None}
    missing = [(key, setting) for key, setting in dict(zip(keys, settings, strict=True)).items() if key not in found]
    for spacing in {setting.timestep_spacing for _, setting in missing}:
        of_spacing = [(key, setting) for key, setting in missing if setting.timestep_spacing == spacing]
        embedded = _embed(model, rows, [setting for _, setting in of_spacing])
        for (key, _), e_0_hat in zip(of_spacing, embedded, strict=True):
            found[key] = _naming(model, data, root, rows, e_0_hat)
            _write(folder, key, found[key])
    return [found[key] for key in keys]


def measure_generation(model: PipelineEmbedder, plan: GenerationPlan, root: Path, folder: Path) -> Measurement:
    """Generate an image for each of N captions, and measure their distance to the real images.

    The items are the features of the generated and the real images, (n, 1280), from which claims resample.

    Raises: as `open_rows` and `generation.generation`.
    """
    rows = open_rows(plan, root)
    key = _key("generation", model.fingerprint, rows.fingerprint, plan.model_dump())
    if (measured := _read(folder, key)) is not None:
        return measured
    options = GenerationConfig(
        num_images=plan.num_images, num_inference_steps=plan.num_inference_steps,
        guidance_scale=plan.guidance_scale, kid_subset_size=plan.kid_subset_size,
        inception_weights=plan.inception_weights and Path(plan.inception_weights.replace(ROOT, str(root))),
        clip_rn50_openai=plan.clip_rn50_openai,
    )  # fmt: skip
    images = folder / GENERATED / key
    found = generation(model.pipeline, GenerationData(rows, images), options)
    real = chosen_rows(rows, options)
    generated = [
        CaptionedImage(ImageSource(str(path), path=path), row.captions)
        for path, row in zip(sorted((images / IMAGES_FOLDER).glob("*.png")), real, strict=True)
    ]
    size_px = model.image_size_px
    features = {name: _features(each, size_px) for name, each in (("generated", generated), ("real", real))}
    kept = [{**row, "generation_seed": row["seed"]} for row in found if row["value"] is not None]
    measured = Measurement([{name: row[name] for name in row if name != "seed"} for row in kept], features)
    _write(folder, key, measured)
    return measured


def sheet_images(
    model: PipelineEmbedder, plan: GenerationPlan, root: Path, folder: Path, number: int
) -> tuple[list[str], list[Image.Image], list[Image.Image]]:
    """Return evenly spread captions, with the images that `measure_generation` generated, and the real ones."""
    rows = open_rows(plan, root)
    key = _key("generation", model.fingerprint, rows.fingerprint, plan.model_dump())
    real = chosen_rows(rows, GenerationConfig(num_images=plan.num_images, kid_subset_size=plan.kid_subset_size))
    files = sorted((folder / GENERATED / key / IMAGES_FOLDER).glob("*.png"))
    places = evenly_spread(len(real), number)
    generated = [decode_image(ImageSource(str(files[i]), path=files[i])) for i in places]
    return [real[i].captions[0] for i in places], generated, [decode_image(real[i].source) for i in places]


def summarize(measured: Sequence[Measurement]) -> list[Row]:
    """Mean of each metric over seeds; of `recall` and `acc1` with an interval over seeds and items.

    Returns: a row for each metric, with the lowest and the highest value of a seed.
    """
    rows: list[Row] = []
    for number, row in enumerate(measured[0].rows):
        name = str(row["metric"])
        values = [float(str(each.rows[number]["value"])) for each in measured]
        interval: tuple[float, float] | tuple[None, None] = (None, None)
        if name in measured[0].items:
            groups = measured[0].items.get(f"{name}_groups")
            interval = bootstrap_interval(torch.stack([each.items[name] for each in measured]), groups=groups)
        rows.append({
            "metric": name, "value": sum(values) / len(values), "ci_low": interval[0], "ci_high": interval[1],
            "lowest": min(values), "highest": max(values), "num_seeds": len(values), "n": row["n"],
            "chance": row.get("chance"),
        })  # fmt: skip
    return rows


def _naming(model: Embedder, data: DataPlan, root: Path, rows: ImageSet, e_0_hat: Tensor) -> Measurement:
    metrics: list[Metric] = []
    if "retrieval" in data.tasks:
        metrics += naming_tasks.caption_retrieval(
            e_0_hat, [row.captions for row in rows], model.encode_text, data.retrieval_ks
        )
    if "classification" in data.tasks:
        folder = Path(data.path.replace(ROOT, str(root)))
        classes = load_class_set(data.class_set) if data.class_set else class_set_of(rows, folder)
        templates = data.templates or classes.templates
        e = model.encode_labels(classes.class_names, templates).cpu()
        metrics += naming_tasks.classification(e_0_hat, e, true_classes(rows, classes))
    by_name = {each.name: each for each in metrics}
    items: dict[str, Tensor] = {}
    found = [_row(each) for each in metrics]
    if "retrieval" in data.tasks:
        of_ways = [by_name[f"{way}_retrieval_recall@{data.recall_k}"] for way in WAYS]
        hits = [each.items for each in of_ways if each.items is not None]
        groups = torch.cat([torch.full((len(each),), way) for way, each in enumerate(hits)])
        items = {"recall": torch.cat(hits), "recall_groups": groups}
        low, high = bootstrap_interval(items["recall"], groups=groups)
        value = sum(each.value for each in of_ways) / len(of_ways)
        found.append({"metric": "recall", "value": value, "ci_low": low, "ci_high": high, "n": len(groups),
                      "chance": sum(each.chance or 0 for each in of_ways) / len(of_ways)})  # fmt: skip
    if "acc1" in by_name and (of_images := by_name["acc1"].items) is not None:
        items["acc1"] = of_images
    return Measurement(found, items)


def _row(metric: Metric) -> Row:
    low, high = (None, None) if metric.items is None else bootstrap_interval(metric.items)
    return {
        "metric": metric.name, "value": metric.value, "ci_low": low, "ci_high": high, "n": metric.n,
        "chance": metric.chance,
    }  # fmt: skip


@torch.no_grad()
def _embed(model: Embedder, rows: ImageSet, settings: Sequence[NamingPlan]) -> list[Tensor]:
    """Embed all images under settings of one timestep spacing. Shapes: -> for each setting (n, d) float32."""
    options: list[dict[str, int | float]] = [{}]
    if isinstance(model, PipelineEmbedder):
        options = [each.model_dump(exclude={"timestep_spacing"}) for each in settings]
        scheduler = model.pipeline.query_scheduler
        spacing = settings[0].timestep_spacing
        model.pipeline.register_modules(
            query_scheduler=DDIMScheduler.from_config(scheduler.config, timestep_spacing=spacing)
        )
    parts: list[list[Tensor]] = [[] for _ in options]
    for pixels, faults in DataLoader(SquareImages(rows, model.image_size_px, "crop"), IMAGES_AT_ONCE):
        if any(faults):
            raise ValueError(next(filter(None, faults)))
        for kept, e_0_hat in zip(parts, model.embed_pixels(to_pixels(pixels), options), strict=True):
            kept.append(e_0_hat.cpu())
    embedded = [torch.cat(each) for each in parts]
    return embedded if isinstance(model, PipelineEmbedder) else embedded * len(settings)


@torch.no_grad()
def _features(rows: Sequence[CaptionedImage], size_px: int) -> Tensor:
    """Shapes: n images -> (n, 1280) float32."""
    network = EffLite0Features()
    return torch.cat(
        [network(pixels) for pixels, _ in DataLoader(SquareImages(rows, size_px, "crop"), IMAGES_AT_ONCE)]
    )


def _key(*parts: object) -> str:
    """Name of a measurement: a hash of all that changes a number."""
    return hashlib.sha256(json.dumps([*parts, palindiff.__version__], sort_keys=True).encode()).hexdigest()[:24]


def _read(folder: Path, key: str) -> Measurement | None:
    file = folder / MEASURED / f"{key}.json"
    if not file.is_file():
        return None
    return Measurement(json.loads(file.read_text(encoding="utf-8")), load_file(file.with_suffix(".safetensors")))


def _write(folder: Path, key: str, measured: Measurement) -> None:
    """Write the items, then the rows: rows without items do not occur."""
    (folder / MEASURED).mkdir(exist_ok=True)
    file = folder / MEASURED / f"{key}.json"
    items: Mapping[str, Tensor] = {name: each.contiguous() for name, each in measured.items.items()}
    with atomic_file(file.with_suffix(".safetensors")) as temporary:
        save_file(dict(items), temporary)
    atomic_text(file, json.dumps(measured.rows) + "\n")
