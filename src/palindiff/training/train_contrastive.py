"""The trainer of the contrastive objective: CLIP, or an image encoder for the text encoder that DiffDis uses.

Not here: the order of a run (`base_trainer.py`), the loss (`objectives/contrastive.py`), the folder that is written
(`pretrained/clip_folders.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from palindiff.data.conditions import evenly_spread
from palindiff.data.sources import ImageSet
from palindiff.evaluation import evaluators
from palindiff.evaluation.results import Row
from palindiff.inference.clip_model import ClipModel
from palindiff.inference.model_kinds import CLIP_RESULT
from palindiff.objectives.contrastive import ContrastiveObjective
from palindiff.pretrained.clip_folders import ClipParts
from palindiff.training.base_trainer import Trainer, open_sets
from palindiff.training.clip_evaluation import clip_rows
from palindiff.training.features import dataset
from palindiff.training.features.latent_cache import default_workers
from palindiff.training.features.pixels import PixelSet
from palindiff.training.features.views import ViewConfig
from palindiff.training.recipes.build_models import build_contrastive_objective, build_encoders
from palindiff.training.recipes.schema import ContrastiveRecipe


class ContrastiveTrainer(Trainer[ContrastiveRecipe]):
    """Images and captions matched; writes a stock CLIP folder, or one with another text encoder."""

    recipe_class = ContrastiveRecipe
    result_name = CLIP_RESULT
    next_command = "palindiff evaluate --model {result} --data DATA --task retrieval --output evaluations"

    objective: ContrastiveObjective
    validation_set: PixelSet | None = None

    @staticmethod
    def count_parameters(recipe: ContrastiveRecipe) -> dict[str, int]:
        """Count the weights of both encoders, and those that are trained."""
        with FakeTensorMode(allow_non_fake_inputs=True):
            image_encoder, text_encoder = build_encoders(recipe, with_weights=False)
            objective = build_contrastive_objective(recipe, image_encoder, text_encoder)
        return {
            "image_encoder": image_encoder.model.num_parameters(),
            "text_encoder": text_encoder.model.num_parameters(),
            "trained": sum(weight.numel() for weight in objective.parameters() if weight.requires_grad),
        }

    def build_models(self) -> None:
        """Build the image encoder with random weights, and load the text encoder."""
        self.warn_of_few_negatives()
        self.image_encoder, self.text_encoder = build_encoders(self.recipe)
        self.text_encoder.to(self.accelerator.device)

    def load_features(self) -> None:
        """Open both splits; embed captions once if the text encoder is frozen and its features are kept."""
        if not self.recipe.text.is_live:
            self.cache_dir = self.feature_cache_dir("Features of captions")
        training, validation = open_sets(self.recipe)
        with self.accelerator.main_process_first():
            self.training_set = self._pixel_set(training, self.recipe.views)
            if validation is not None:
                seen = evenly_spread(len(validation), self.recipe.evaluation.num_images)
                self.validation_images = validation.select(seen)
                self.validation_set = self._pixel_set(self.validation_images, ViewConfig(flip="none"))
                self.validation_rows = torch.arange(len(self.validation_set))
        self.fingerprints = {"text encoder": self.text_encoder.fingerprint, "training set": training.fingerprint}

    def make_objective(self) -> ContrastiveObjective:
        """Put both encoders under the loss; the model that is evaluated and saved shares them."""
        objective = build_contrastive_objective(self.recipe, self.image_encoder, self.text_encoder)
        self.model = ClipModel(ClipParts(self.image_encoder, self.text_encoder, objective.log_logit_scale))
        return objective

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The learning rate of the text encoder, and that of the new image encoder."""
        optimizer = self.recipe.optimizer
        return self.objective.parameter_groups(optimizer.learning_rate, optimizer.new_learning_rate)

    def evaluation_rows(self, step: int) -> list[Row]:
        """Run the recipe's evaluators on the validation images, whole and not mirrored, with their first captions."""
        options = self.recipe.evaluation
        if self.validation_set is None or not options.evaluators:
            return []
        return clip_rows(self.model, self.validation_images, self.validation_set, options, options.evaluators)

    def score(self, numbers: Mapping[str, float]) -> tuple[str, float] | None:
        """By recall, unless the recipe keeps no best weights."""
        return evaluators.score(numbers, "recall") if self.recipe.evaluation.keep_best == "recall" else None

    def save(self, folder: Path) -> None:
        """Write both encoders."""
        self.model.save_pretrained(folder)

    def trained_model(self) -> ClipModel:
        """The model with the EMA weights."""
        return self.model

    def _pixel_set(self, images: ImageSet, views: ViewConfig) -> PixelSet:
        captions = [of_one for of_one, _ in images.texts()]
        texts = self._texts([caption for of_one in captions for caption in of_one])
        workers = self.machine.num_workers
        num_threads = default_workers(len(images), self.accelerator.device.type) if workers is None else workers
        return PixelSet(
            images,
            dataset.CaptionsOfRows(captions, texts),
            self.recipe.image_encoder.image_size_px,
            self.recipe.data.fit,
            views,
            num_threads,
            self.progress,
        )

    def _texts(self, captions: list[str]) -> dataset.Texts:
        if self.recipe.text.is_live:
            return dataset.LiveCaptions(captions, self.text_encoder)
        features = dataset.caption_features(captions, self.text_encoder, self.cache_dir, self.progress)
        return dataset.CaptionEmbeddings(features.e, features.row)
