"""The trainer of DiffDis: which models, features, losses and evaluators a run has, and the checkpoint it writes.

Not here: the order of a run (`base_trainer.py`), the losses (`objectives/diffdis.py`).
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palindiff.atomic import atomic_text
from palindiff.data.conditions import evenly_spread
from palindiff.data.sources import ImageSet
from palindiff.evaluation import evaluators
from palindiff.evaluation.calibration import calibrate
from palindiff.evaluation.results import Row
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.fingerprint import fingerprint
from palindiff.models.lora import trains_lora
from palindiff.objectives.diffdis import DiffDisObjective
from palindiff.pretrained.model_card import card_text
from palindiff.pretrained.saving import save_lora
from palindiff.pretrained.vocabulary import vocabulary_of
from palindiff.training.base_trainer import Trainer, open_sets
from palindiff.training.cost.estimate import count_parameters
from palindiff.training.cost.weight_free import fake_run
from palindiff.training.features import dataset
from palindiff.training.features.latent_cache import LatentCache
from palindiff.training.features.views import ViewConfig
from palindiff.training.recipes.build_models import build_models, build_objective
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.run_facts import run_facts

CALIBRATION_FILE = "calibration.json"
LORA_FOLDER = "lora"  # of the checkpoint: the updates alone


class DiffDisTrainer(Trainer[DiffDisRecipe]):
    """Generation and alignment on cached latents; writes a Stable Diffusion folder with two more sub-folders."""

    recipe_class = DiffDisRecipe
    result_name = "checkpoint"
    next_command = 'palindiff generate "a caption" --model {result}'

    objective: DiffDisObjective
    validation_set: dataset.FeatureSet | None = None

    @staticmethod
    def count_parameters(recipe: DiffDisRecipe) -> dict[str, int]:
        """Count the weights of all parts, those of the frozen ones too."""
        with fake_run(recipe) as run:
            parameters = count_parameters(run)
        return parameters.parts | {"trained": parameters.trained}

    def build_models(self) -> None:
        """Build or load the pipeline; frozen parts move to the device."""
        if self.recipe.objective.task != "generation":
            self.warn_of_few_negatives()
        self.pipeline = build_models(self.recipe, self.recipe.loop.seed)
        self.text_encoder = self.pipeline.caption_encoder.to(self.accelerator.device)
        self.pipeline.vae.to(self.accelerator.device)

    def load_features(self) -> None:
        """Compute or map latents and text features of both splits.

        The processes share the encoding of images; for the rest one computes and the others wait.
        """
        accelerator = self.accelerator
        self.cache_dir = self.feature_cache_dir("Features of images and captions")
        training, validation = open_sets(self.recipe)
        caches = [self._latent_cache(training, self.recipe.views)]
        if validation is not None:
            seen = evenly_spread(len(validation), self.recipe.evaluation.num_images)
            caches.append(self._latent_cache(validation.select(seen), ViewConfig(flip="none")))
        for cache in caches:
            cache.encode(self.progress, accelerator.process_index, accelerator.num_processes)
        accelerator.wait_for_everyone()
        with accelerator.main_process_first():
            training_images, self.training_set = self._feature_set(caches[0])
            for cache in caches[1:]:
                self.validation_images, self.validation_set = self._feature_set(cache)
                self.validation_rows = torch.arange(len(self.validation_set))
            self.c_empty = None if self.recipe.text.is_live else self._empty_caption()
        if self.recipe.objective.task != "generation":
            labels = (label for _, label in training_images.texts())
            self.pipeline.vocabulary = vocabulary_of(labels, self.recipe.evaluation.templates)
        self.fingerprints = {
            "VAE": fingerprint(self.pipeline.vae),
            "text encoder": self.text_encoder.fingerprint,
            "training set": training_images.fingerprint,
        }
        if self.recipe.base is not None:  # its decoder half may stay as it is, and its scheduler makes the targets
            scheduler = json.dumps(dict(self.pipeline.scheduler.config), sort_keys=True, default=str)
            parts = fingerprint(self.pipeline.unet), fingerprint(self.pipeline.query_stream), scheduler
            self.fingerprints["base"] = dataset.key_of("base", *parts)

    def make_objective(self) -> DiffDisObjective:
        """Put the models under their losses; without cached text features, the text encoder is part of them."""
        return build_objective(self.recipe, self.pipeline, self.text_encoder, self.c_empty)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The paper's two learning rates."""
        optimizer = self.recipe.optimizer
        return self.objective.parameter_groups(optimizer.learning_rate, optimizer.new_learning_rate)

    def evaluation_rows(self, step: int) -> list[Row]:
        """Run the recipe's evaluators that the trained task allows, on cached latents."""
        options, task = self.recipe.evaluation, self.recipe.objective.task
        naming = [measure for name, measure in evaluators.NAMING.items() if name in options.evaluators]
        rows: list[Row] = []
        if task != "generation" and naming and self.validation_set is not None:
            data = self._evaluation_images(self.validation_set)
            data = replace(data, e_0_hat=evaluators.image_queries(self.pipeline, data, options))
            rows = [row for measure in naming for row in measure(self.pipeline, data, options)]
        if task != "alignment" and "samples" in options.evaluators:
            sheet = evaluators.SampleSheet(self.output / "samples" / f"step-{step:08d}.png", f"step {step}")
            rows += evaluators.samples(self.pipeline, sheet, options)
        return rows

    def finish(self) -> None:
        """Fit the temperature of classification on the validation images, and report what it changes."""
        if self.recipe.objective.task == "generation" or self.validation_set is None:
            return
        found = calibrate(self.pipeline, self._evaluation_images(self.validation_set), self.recipe.evaluation)
        if found is None:
            return
        self.pipeline.query_stream.register_to_config(temperature=found["temperature"])
        atomic_text(self.output / CALIBRATION_FILE, json.dumps(found | {"split": self._validation_name()}) + "\n")

    def _validation_name(self) -> str:
        """What the validation images are, in words."""
        data, split = self.recipe.data, self.recipe.evaluation.validation_split
        return f"{data.validation_fraction:g} of {data.split}" if data.validation_fraction else str(split)

    def score(self, numbers: Mapping[str, float]) -> tuple[str, float] | None:
        """By recall where naming is trained, else by the generation loss, unless the recipe chooses."""
        best_by = self.recipe.evaluation.keep_best
        if best_by == "none":
            return None
        by_task: evaluators.BestBy = "generation" if self.recipe.objective.task == "generation" else "recall"
        return evaluators.score(numbers, by_task if best_by == "auto" else best_by)

    def save(self, folder: Path) -> None:
        """Write a checkpoint folder with its model card; updates of LoRA are in its weights, and by themselves."""
        whole = self.trained_model()
        card = card_text(run_facts(self.recipe, whole, self.output.absolute().name))
        self.pipeline.model_card = whole.model_card = card
        whole.save_pretrained(folder)
        if trains_lora(self.pipeline.unet):
            save_lora(folder / LORA_FOLDER, self.pipeline.unet, self.pipeline.text_encoder)

    def trained_model(self) -> PalindiffPipeline:
        """The pipeline with the EMA weights, those of LoRA added."""
        return self.pipeline.with_merged_lora()

    def _latent_cache(self, images: ImageSet, views: ViewConfig) -> LatentCache:
        vae, data = self.pipeline.vae, self.recipe.data
        size_px = self.pipeline.image_size_px
        num_workers = self.recipe.machine.num_workers
        return LatentCache(images, vae, size_px, data.fit, views, self.cache_dir, num_workers, data.on_bad)

    def _feature_set(self, cache: LatentCache) -> tuple[ImageSet, dataset.FeatureSet]:
        """The rows whose images could be read, and their features; skipped images are reported."""
        rows, latents = cache.open(self.progress)
        captions = [of_one for of_one, _ in rows.texts()]
        flat = [caption for of_one in captions for caption in of_one]
        if self.recipe.text.is_live:
            return rows, dataset.FeatureSet(
                captions, latents, dataset.LiveCaptions(flat, self.text_encoder), cache.views.flip
            )
        texts = dataset.caption_features(flat, self.text_encoder, self.cache_dir, self.progress)
        has_second = self.recipe.objective.query_caption == "any"
        return rows, dataset.FeatureSet(captions, latents, texts, cache.views.flip, has_second)

    def _empty_caption(self) -> torch.Tensor:
        """Shapes: -> (1, l, d_c) float32, the condition of the empty caption."""
        features = dataset.caption_features([""], self.text_encoder, self.cache_dir, self.progress)
        return torch.from_numpy(features.c.astype(np.float32))

    def _evaluation_images(self, features: dataset.FeatureSet) -> evaluators.EvaluationImages:
        """The evaluated validation images: latents without augmentation, first captions, labels."""
        rows = self.validation_rows
        z, _ = features.images.read(rows, torch.zeros(len(rows), dtype=torch.bool))
        images = [self.validation_images[int(row)] for row in rows]
        captions, labels = [image.captions[0] for image in images], [image.label for image in images]
        return evaluators.EvaluationImages(z.to(self.pipeline.unet.device, torch.float32), captions, labels)
