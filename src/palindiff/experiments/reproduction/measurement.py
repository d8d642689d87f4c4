"""What is measured of a trained model: naming under several settings, and generation, with the items of each mean.

Here: measuring a run, and the files that keep it, so that the next call measures nothing again. Not here: training
(`model_runs.py`), means over seeds (`columns.py`), comparing two models (`verdicts.py`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import palindiff
from palindiff.atomic import atomic_file, atomic_text
from palindiff.data.conditions import evenly_spread
from palindiff.data.images import ImageSource, decode_image, to_pixels
from palindiff.data.rows import ImageSet
from palindiff.data.sources import DataConfig
from palindiff.data.squares import read_squares
from palindiff.evaluation.class_sets import ClassSet, load_class_set
from palindiff.evaluation.diffusion_classifier import classifier_tflop
from palindiff.evaluation.efficientnet import EffLite0Features, read_weights
from palindiff.evaluation.generated_set import IMAGES_FOLDER, pipeline_fingerprint
from palindiff.evaluation.generation import GenerationConfig, GenerationData, ImageReadings, chosen_rows, generation
from palindiff.evaluation.intervals import bootstrap_interval
from palindiff.evaluation.launch import Launch
from palindiff.evaluation.named_data import NamedData
from palindiff.evaluation.naming_tasks import Metric
from palindiff.evaluation.records import Record, hash_settings
from palindiff.evaluation.results import Row
from palindiff.evaluation.run import TASKS, Evaluation
from palindiff.evaluation.run_diffusion_classifier import DiffusionClassifierConfig, evaluate_diffusion_classifier
from palindiff.evaluation.tasks import NEEDS_CLASSES, Embedded, EvaluationOptions, NamingSetting, Setting, Task, Texts
from palindiff.experiments.reproduction.plan import ROOT
from palindiff.experiments.reproduction.plan_sections import ClassifierPlan, DataPlan, GenerationPlan, NamingPlan
from palindiff.experiments.reproduction.units import units_of_captions, units_of_images
from palindiff.inference.defaults import IMAGES_AT_ONCE
from palindiff.inference.embedder import Embedder, PipelineEmbedder
from palindiff.inference.pipeline import PalindiffPipeline

MEASURED, GENERATED, RECORDS = "measured", "generated", "records"  # folders in a run's
UNIT_OF = "unit of "  # name of the units in a file, before that of the items
PUBLISHED_COST = "published_tflop_per_image"  # of the Diffusion Classifier with its authors' stages
IMAGE_EMBEDDINGS = "image_embeddings"  # among the items, where collapse is measured


@dataclass(frozen=True)
class Measurement:
    """Rows of metrics, the items that claims pair, and the unit of each item, by metric."""

    rows: list[Row]
    items: dict[str, Tensor]
    units: dict[str, Tensor] = field(default_factory=dict)
    """(n,) int64: items of one unit depend on each other, and intervals draw them together"""

    def value(self, metric: str) -> float | None:
        """The value of a metric; None if it was not measured."""
        found = [float(str(row["value"])) for row in self.rows if row["metric"] == metric]
        return found[0] if found else None


def named_data(name: str, data: DataPlan | GenerationPlan, root: Path) -> NamedData:
    """A plan's data set below the folder of --data."""
    class_set = load_class_set(data.class_set) if isinstance(data, DataPlan) and data.class_set else None
    config = DataConfig(path=data.path.replace(ROOT, str(root)), split=data.split, where=data.where)
    return NamedData(name, config, class_set)


def generation_options(plan: GenerationPlan, root: Path) -> GenerationConfig:
    """A plan's generation as `evaluate` takes it."""
    weights = plan.inception_weights and Path(plan.inception_weights.replace(ROOT, str(root)))
    same = plan.model_dump(include={"num_images", "num_inference_steps", "guidance_scale", "kid_subset_size"})
    return GenerationConfig(**same, inception_weights=weights, clip_rn50_openai=plan.clip_rn50_openai)


def joined(measured: Mapping[str, Measurement], metrics: Mapping[str, Sequence[str]]) -> Measurement:
    """Some metrics of several data sets, which share no unit, as "METRIC of DATA"; both arguments by data set."""
    places = [(k, name, metric) for k, name in enumerate(measured) for metric in metrics[name]]
    return Measurement(
        [],
        {f"{metric} of {name}": measured[name].items[metric] for _, name, metric in places},
        {f"{metric} of {name}": measured[name].units[metric] * len(measured) + k for k, name, metric in places},
    )


@dataclass(frozen=True)
class OpenModel:
    """A finished model, the folder of its run, which keeps what is measured, and where the data sets are."""

    model: Embedder
    folder: Path
    root: Path  # of --data
    num_workers: int = 0  # processes that decode images
    generator: StableDiffusionPipeline | None = None  # what generates, where another model names
    known: dict[str, ImageReadings] = field(default_factory=dict)  # of real images; shared with other models

    @cached_property
    def texts(self) -> Texts:
        """Embeddings of captions and labels, each computed once."""
        return Texts(self.model)

    @cached_property
    def generating(self) -> StableDiffusionPipeline:
        """What generates.

        Raises: as `pipeline`.
        """
        return self.pipeline if self.generator is None else self.generator

    @cached_property
    def pipeline(self) -> PalindiffPipeline:
        """The model as one that names and generates.

        Raises: ValueError if it is contrastive.
        """
        if not isinstance(self.model, PipelineEmbedder):
            raise ValueError(
                f"`{self.folder.name}` is contrastive and generates nothing. Expected another. Change the plan."
            )
        return self.model.pipeline

    def naming(self, name: str, data: DataPlan, settings: Sequence[NamingPlan]) -> list[Measurement]:
        """Measure the tasks of a data set under each setting; images are read once.

        Raises: as `NamedData.open`; ValueError if the data do not fit a task.
        """
        source = named_data(name, data, self.root)
        rows = source.open()
        classes = source.classes(rows) if NEEDS_CLASSES.intersection(data.tasks) else None
        facts: dict[str, Any] = {
            "model": self.model.fingerprint, "source": rows.fingerprint,
            "data": data.model_dump(mode="json", include={"tasks", "templates", "retrieval_ks", "unit"}),
            "classes": None if classes is None else hash_settings(classes.deciding),
        }  # fmt: skip
        keys = {each: _key("naming", facts | each.model_dump()) for each in settings}
        found = {key: kept for key in keys.values() if (kept := self._read(key)) is not None}
        missing = [each for each in keys if keys[each] not in found]
        for spacing in {each.timestep_spacing for each in missing}:
            of_spacing = [each for each in missing if each.timestep_spacing == spacing]
            for each, e_0_hat in zip(of_spacing, self._embed(rows, of_spacing), strict=True):
                found[keys[each]] = self._write(keys[each], self._tasks(data, rows, classes, each, e_0_hat))
        return [found[keys[each]] for each in settings]

    def generation(self, plan: GenerationPlan) -> Measurement:
        """Generate an image for each of N captions, and measure their distance to the real images.

        The items are the features of the generated and the real images, (n, 1280), from which claims resample.

        Raises: as `NamedData.open` and `generation.generation`.
        """
        rows, options = named_data("generation", plan, self.root).open(), generation_options(plan, self.root)
        key = self._generation_key(plan, rows)
        if (kept := self._read(key)) is not None:
            return kept
        images = self.folder / GENERATED / key
        of_real = _key("real", {"source": rows.fingerprint, "plan": plan.model_dump(mode="json")})
        data = GenerationData(rows, images, Launch(self.num_workers), known=self.known.get(of_real))
        found = generation(self.generating, data, options)
        assert found is not None, "this process measures"
        self.known[of_real] = found.real
        sides = {"generated": found.generated, "real": found.real}
        features = {name: each.by_reader[EffLite0Features.label] for name, each in sides.items()}
        kept_rows: list[Row] = [
            {**{name: row[name] for name in row if name != "seed"}, "generation_seed": row["seed"]}
            for row in found.rows
            if row["value"] is not None
        ]
        texts = [(row.captions, row.label) for row in chosen_rows(rows, options)]
        return self._write(key, Measurement(kept_rows, features, {"generated": units_of_images(texts, plan.unit)}))

    def sheet_images(
        self, plan: GenerationPlan, number: int
    ) -> tuple[list[str], list[Image.Image], list[Image.Image]]:
        """Return evenly spread captions, with the images that `generation` generated, and the real ones."""
        rows = named_data("generation", plan, self.root).open()
        real = chosen_rows(rows, generation_options(plan, self.root))
        files = _image_files(self.folder / GENERATED / self._generation_key(plan, rows))
        places = evenly_spread(len(real), number)
        generated = [decode_image(ImageSource(str(files[i]), path=files[i])) for i in places]
        return [real[i].captions[0] for i in places], generated, [decode_image(real[i].source) for i in places]

    def diffusion_classifier(self, name: str, data: DataPlan, plan: ClassifierPlan) -> Measurement:
        """Classify a stratified part of the images by the U-Net's error.

        Source: Diffusion Classifier (Li et al., arXiv 2303.16203).
        """
        template = data.templates[0] if data.templates else None
        options = DiffusionClassifierConfig(num_images=plan.num_images, stages=plan.stages, template=template)
        sets = [named_data(name, data, self.root)]
        records = list(
            evaluate_diffusion_classifier(self.pipeline, self.folder.name, sets, [0], self.folder / RECORDS, options)
        )
        rows = [row for record in records for row in _record_rows(record)]
        num_classes = len(sets[0].classes(sets[0].open()).class_names)
        published = classifier_tflop(self.pipeline, num_classes)
        return Measurement([*rows, {"metric": PUBLISHED_COST, "value": published, "n": rows[0]["n"]}], {})

    def controls(self, name: str, data: DataPlan) -> list[Row]:
        """Measure the controls of a data set, and what the noisy query changes.

        The nearest training image is one of all, as models are trained on all.

        Source: docs/protocol.md, rule 8.
        """
        has_query = isinstance(self.model, PipelineEmbedder) and self.model.pipeline.query_stream.has_text_diffusion
        tasks: list[Task] = ["controls", *(["chain_use"] if has_query else [])]  # type: ignore[list-item]
        evaluation = Evaluation(
            self.model, self.folder.name, [replace(named_data(name, data, self.root), filters_training=False)],
            tasks, [NamingSetting() if isinstance(self.model, PipelineEmbedder) else Setting()],
            self.folder / RECORDS, EvaluationOptions(templates=data.templates, retrieval_ks=data.retrieval_ks),
            launch=Launch(self.num_workers),
        )  # fmt: skip
        return [row for record in evaluation.run() for row in _record_rows(record)]

    def _tasks(
        self, data: DataPlan, rows: ImageSet, classes: ClassSet | None, setting: NamingPlan, e_0_hat: Tensor
    ) -> Measurement:
        captions, labels = zip(*rows.texts(), strict=True)
        options = EvaluationOptions(templates=data.templates, retrieval_ks=data.retrieval_ks)
        same = NamingSetting(**setting.model_dump(exclude={"timestep_spacing"}))
        embedded = Embedded(
            self.model, self.texts, rows, same, options, e_0_hat, captions, labels, num_workers=self.num_workers,
            class_set=classes,
        )  # fmt: skip
        of_images = units_of_images(rows.texts(), data.unit)
        of_captions = units_of_captions(captions, of_images)
        metrics, items, units = list[Metric](), dict[str, Tensor](), dict[str, Tensor]()
        for task in data.tasks:
            for metric in TASKS[task](embedded):
                metrics.append(metric)
                if metric.items is not None:
                    own = of_captions if metric.name.startswith("image_retrieval") else of_images
                    items[metric.name] = metric.items
                    units[metric.name] = torch.arange(metric.n) if task == "class_retrieval" else own
        if "collapse" in data.tasks:
            items[IMAGE_EMBEDDINGS], units[IMAGE_EMBEDDINGS] = e_0_hat, of_images
        return Measurement([_row(each, units.get(each.name)) for each in metrics], items, units)

    @torch.no_grad()
    def _embed(self, rows: ImageSet, settings: Sequence[NamingPlan]) -> list[Tensor]:
        """Embed all images under settings of one timestep spacing. Shapes: -> for each setting (n, d) float32."""
        if not isinstance(self.model, PipelineEmbedder):
            return self._embed_with(rows, [{}]) * len(settings)
        own = self.pipeline.query_scheduler
        scheduler = DDIMScheduler.from_config(own.config, timestep_spacing=settings[0].timestep_spacing)
        self.pipeline.register_modules(query_scheduler=scheduler)
        try:
            return self._embed_with(rows, [each.model_dump(exclude={"timestep_spacing"}) for each in settings])
        finally:
            self.pipeline.register_modules(query_scheduler=own)

    def _embed_with(self, rows: ImageSet, options: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        parts: list[list[Tensor]] = [[] for _ in options]
        for pixels in read_squares(rows, self.model.image_size_px, "crop", IMAGES_AT_ONCE, self.num_workers):
            for kept, e_0_hat in zip(parts, self.model.embed_pixels(to_pixels(pixels), options), strict=True):
                kept.append(e_0_hat.cpu())
        return [torch.cat(each) for each in parts]

    def _generation_key(self, plan: GenerationPlan, rows: ImageSet) -> str:
        options = generation_options(plan, self.root)
        settings = options.model_dump(mode="json", exclude={"batch_size"})
        if options.inception_weights is not None:
            settings["inception_weights"] = read_weights(options.inception_weights)[1]
        return _key(
            "generation",
            {
                "model": pipeline_fingerprint(self.generating),
                "source": rows.fingerprint,
                "options": settings,
                "unit": plan.unit,
            },
        )

    def _read(self, key: str) -> Measurement | None:
        file = self.folder / MEASURED / f"{key}.json"
        if not file.is_file():
            return None
        tensors = load_file(file.with_suffix(".safetensors"))
        units = {name.removeprefix(UNIT_OF): each for name, each in tensors.items() if name.startswith(UNIT_OF)}
        items = {name: each for name, each in tensors.items() if not name.startswith(UNIT_OF)}
        return Measurement(json.loads(file.read_text(encoding="utf-8")), items, units)

    def _write(self, key: str, measured: Measurement) -> Measurement:
        """Write the items, then the rows: rows without items do not occur."""
        (self.folder / MEASURED).mkdir(exist_ok=True)
        file = self.folder / MEASURED / f"{key}.json"
        units = {f"{UNIT_OF}{name}": each for name, each in measured.units.items()}
        tensors = {name: each.clone().contiguous() for name, each in (measured.items | units).items()}
        with atomic_file(file.with_suffix(".safetensors")) as temporary:
            save_file(tensors, temporary)
        atomic_text(file, json.dumps(measured.rows) + "\n")
        return measured


def _row(metric: Metric, units: Tensor | None) -> Row:
    low, high = (None, None) if metric.items is None else bootstrap_interval(metric.items, units=units)
    return {
        "metric": metric.name, "value": metric.value, "ci_low": low, "ci_high": high, "n": metric.n,
        "chance": metric.chance,
    }  # fmt: skip


def _record_rows(record: Record) -> list[Row]:
    names = ("metric", "value", "ci_low", "ci_high", "n", "tflop_per_image", "seconds")
    return [
        {name: row[name] for name in names} | {"chance": record.chance[str(row["metric"])]}
        for row in record.flat_rows()
    ]


def _image_files(folder: Path) -> list[Path]:
    return sorted((folder / IMAGES_FOLDER).glob("*.png"))


def _key(kind: str, settings: Mapping[str, Any]) -> str:
    """Name of a measurement: a hash of all that changes a number."""
    return hash_settings({"kind": kind, **settings, "palindiff": palindiff.__version__})
