"""The trainer of UniDiff: which models, features, losses and evaluators a run has, and the two folders it writes.

Not here: the order of a run (`base_trainer.py`), the losses (`objectives/unidiff.py`), the folders' layout
(`pretrained/unidiff_folders.py`).
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from palindiff.data.conditions import evenly_spread
from palindiff.data.sources import ImageSet
from palindiff.evaluation import evaluators
from palindiff.evaluation.results import Row
from palindiff.inference.clip_model import ClipModel
from palindiff.models.fingerprint import fingerprint
from palindiff.models.unet_encoder import square_side
from palindiff.objectives.unidiff import UniDiffObjective
from palindiff.pretrained.clip_folders import ClipParts
from palindiff.pretrained.unidiff_folders import CLIP_FOLDER, load_unidiff, save_unidiff, stock_pipeline
from palindiff.training.base_trainer import Trainer, open_sets
from palindiff.training.clip_evaluation import EVALUATORS, clip_rows
from palindiff.training.cost.estimate import count_parameters
from palindiff.training.cost.weight_free import fake_unidiff
from palindiff.training.features import dataset
from palindiff.training.features.image_pairs import ImagePairs
from palindiff.training.features.latent_cache import LatentCache, default_workers
from palindiff.training.features.pixels import PixelSet
from palindiff.training.features.views import ViewConfig
from palindiff.training.recipes.build_unidiff import build_unidiff, build_unidiff_objective
from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe


class UniDiffTrainer(Trainer[UniDiffRecipe]):
    """CLIP and Stable Diffusion at once; writes a stock folder of each."""

    recipe_class = UniDiffRecipe
    result_name = "unidiff"
    next_command = (
        f"palindiff evaluate --model {{result}}/{CLIP_FOLDER} --data DATA --task retrieval --output evaluations"
    )
    writes_latest = False  # two large models

    objective: UniDiffObjective
    validation_set: ImagePairs | None = None

    @staticmethod
    def count_parameters(recipe: UniDiffRecipe) -> dict[str, int]:
        """Count the weights of all parts, and those that are trained; LoRA's are part of both."""
        with fake_unidiff(recipe) as run:
            parameters = count_parameters(run)
        return parameters.parts | {"trained": parameters.trained}

    def build_models(self) -> None:
        """Load both models."""
        if self.recipe.objective.contrastive_weight:
            self.warn_of_few_negatives()
        self.parts = build_unidiff(self.recipe)
        clip, device = self.parts.clip, self.accelerator.device
        self.fingerprints = {
            "image encoder": clip.image_encoder.fingerprint, "text encoder": clip.text_encoder.fingerprint,
            "U-Net": fingerprint(self.parts.unet), "VAE": fingerprint(self.parts.vae),
        }  # fmt: skip
        for part in (clip.image_encoder, clip.text_encoder, self.parts.unet, self.parts.vae):
            part.to(device)

    def load_features(self) -> None:
        """Encode latents or map them, and decode both splits."""
        self.cache_dir = self.feature_cache_dir("Features of images")
        training, validation = open_sets(self.recipe)
        caches = [self._latent_cache(training, self.recipe.latent_views)]
        if validation is not None:
            chosen = validation.select(evenly_spread(len(validation), self.recipe.evaluation.num_images))
            caches.append(self._latent_cache(chosen, ViewConfig(flip="none")))
        for cache in caches:
            cache.encode(self.progress, self.accelerator.process_index, self.accelerator.num_processes)
        self.accelerator.wait_for_everyone()
        _, self.training_set = self._pairs(caches[0], self.recipe.views)
        for cache in caches[1:]:
            self.validation_images, self.validation_set = self._pairs(cache, ViewConfig(flip="none"))
            self.validation_rows = torch.arange(len(self.validation_set))
        self.fingerprints = {**self.fingerprints, "training set": training.fingerprint}
        if validation is not None and self.patience:  # it chooses the result
            self.fingerprints["validation set"] = validation.fingerprint

    def make_objective(self) -> UniDiffObjective:
        """Put both models under their losses; those that are evaluated and saved share them."""
        objective = build_unidiff_objective(self.recipe, self.parts)
        clip = self.parts.clip
        self.clip_parts = ClipParts(clip.image_encoder, clip.text_encoder, objective.contrastive.log_logit_scale)
        self.clip = ClipModel(self.clip_parts)
        return objective

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One rate of all that starts from a trained model, another of what is new."""
        optimizer = self.recipe.optimizer
        return self.objective.parameter_groups(optimizer.learning_rate, optimizer.new_learning_rate)

    @property
    def patience(self) -> int:
        """Evaluations without a better score, after which training stops with the best as its result; 0: never."""
        return self.recipe.evaluation.patience

    def evaluation_rows(self, step: int) -> list[Row]:
        """Run the recipe's evaluators on the validation images, whole and not mirrored, with their first captions."""
        options = self.recipe.evaluation
        rows: list[Row] = []
        naming = [name for name in options.evaluators if name in EVALUATORS]
        if naming and self.validation_set is not None:
            rows = clip_rows(self.clip, self.validation_images, self.validation_set.pixels, options, naming)
        if "samples" in options.evaluators:
            sheet = evaluators.SampleSheet(self.output / "samples" / f"step-{step:08d}.png", f"step {step}")
            rows += evaluators.samples(self.pipeline, sheet, options)
        return rows

    def score(self, numbers: Mapping[str, float]) -> tuple[str, float] | None:
        """By what the recipe says, or that its losses and evaluators call for."""
        best_by = self.recipe.best_by
        return None if best_by is None else evaluators.score(numbers, best_by)

    def tie_break(self, numbers: Mapping[str, float]) -> float:
        """The generation loss on validation images, lower is better, where it is trained."""
        return -numbers.get("validation_generation", 0.0) if self.recipe.objective.generation_weight else 0.0

    def save(self, folder: Path) -> None:
        """Write both models."""
        save_unidiff(folder, self.clip_parts, self.parts.unet, self.parts.vae, self.parts.scheduler)

    def trained_model(self) -> tuple[ClipModel, StableDiffusionPipeline]:
        """Both models as they were written: with the EMA weights, those of LoRA added."""
        if not self.accelerator.is_main_process:  # whose disk may not have them
            return self.clip, self.pipeline
        parts, pipeline = load_unidiff(self.output / self.result_name)
        return ClipModel(parts), pipeline

    @property
    def pipeline(self) -> StableDiffusionPipeline:
        """The Stable Diffusion in training, with a scheduler of its own: generating changes its steps."""
        parts, scheduler = self.parts, copy.deepcopy(self.parts.scheduler)
        return stock_pipeline(parts.clip.text_encoder, parts.unet, parts.vae, scheduler)

    def _latent_cache(self, images: ImageSet, views: ViewConfig) -> LatentCache:
        vae, unet, data = self.parts.vae, self.parts.unet, self.recipe.data
        size_px = square_side(unet.config.sample_size) * 2 ** (len(vae.config.block_out_channels) - 1)
        workers = self.recipe.machine.num_workers
        return LatentCache(images, vae, size_px, data.fit, views, self.cache_dir, workers, data.on_bad)

    def _pairs(self, cache: LatentCache, views: ViewConfig) -> tuple[ImageSet, ImagePairs]:
        rows, latents = cache.open(self.progress)
        captions = [of_one for of_one, _ in rows.texts()]
        live = dataset.LiveCaptions([each for of_one in captions for each in of_one], self.parts.clip.text_encoder)
        workers = self.machine.num_workers
        num_threads = default_workers(len(rows), self.accelerator.device.type) if workers is None else workers
        size_px, fit = self.parts.clip.image_encoder.image_size_px, self.recipe.data.fit
        texts = dataset.CaptionsOfRows(captions, live)
        return rows, ImagePairs(PixelSet(rows, texts, size_px, fit, views, num_threads, self.progress), latents)
