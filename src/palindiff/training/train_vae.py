"""The trainer of the VAE: images in memory, reconstruction error, and latents scaled to unit variance.

Not here: the order of a run (`base_trainer.py`), the losses (`objectives/vae.py`).
"""

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from palindiff.data.images import to_pixels
from palindiff.evaluation.evaluators import reconstruction
from palindiff.evaluation.results import Row
from palindiff.models.fingerprint import fingerprint
from palindiff.models.vae import build_vae, normalize_latents
from palindiff.objectives.vae import VaeObjective
from palindiff.pretrained.bundled import load_vae
from palindiff.training.base_trainer import Trainer, open_sets
from palindiff.training.features.images_in_memory import ImagesInMemory, decode_images
from palindiff.training.recipes.schema import VaeRecipe

SHAPE = ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups", "mid_block_add_attention")
"""What makes two VAEs one function of their weights"""


class VaeTrainer(Trainer[VaeRecipe]):
    """A VAE from scratch, or from another one.

    Writes a diffusers folder in fp16, whose latents have mean 0 and variance 1.
    """

    recipe_class = VaeRecipe
    result_name = "vae"
    next_command = "palindiff train --recipe emoji --set vae={result}"
    writes_latest = False  # normalizing latents encodes the whole training set

    @staticmethod
    def count_parameters(recipe: VaeRecipe) -> dict[str, int]:
        """Count the weights, all of which are trained."""
        with torch.device("meta"):
            num_parameters = build_vae(recipe.vae).num_parameters()
        return {"vae": num_parameters, "trained": num_parameters}

    def build_models(self) -> None:
        """Build the VAE with random weights, or with those of `source`.

        Raises: as `load_vae`; ValueError if it has another shape than `vae`.
        """
        source, self.vae = self.recipe.source, build_vae(self.recipe.vae)
        self.fingerprints = {}
        if source is None:
            return
        found = load_vae(source)
        for key in SHAPE:
            if (own := _plain(self.vae.config[key])) != (other := _plain(found.config[key])):
                raise ValueError(
                    f"The VAE `{source}` has `{key}` {other}, and `vae` of the recipe asks for {own}. Expected one "
                    "shape. Change `vae`, or remove `source`."
                )
        self.vae.load_state_dict(found.state_dict())
        self.fingerprints = {"source": fingerprint(found)}

    def load_features(self) -> None:
        """Decode the images of both splits into memory."""
        size_px, fit = self.recipe.vae.image_size_px, self.recipe.data.fit
        rows, validation = open_sets(self.recipe)
        self.images = decode_images(rows, size_px, fit)
        self.validation_images = None if validation is None else decode_images(validation, size_px, fit)
        self.training_set = ImagesInMemory(self.images, self.recipe.augmentation)
        self.fingerprints = {**self.fingerprints, "training set": rows.fingerprint}

    def make_objective(self) -> VaeObjective:
        """Put the VAE under its loss."""
        return VaeObjective(self.vae, self.recipe.objective)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All weights have one rate."""
        return [{"params": list(self.vae.parameters()), "lr": self.recipe.optimizer.new_learning_rate}]

    def evaluation_rows(self, step: int) -> list[Row]:
        """Measure the reconstruction error on the validation images."""
        options = self.recipe.evaluation
        if self.validation_images is None or not options.evaluators:
            return []
        rows = reconstruction(self.vae, self.validation_images, options)
        return [{**row, "metric": f"validation_{row['metric']}"} for row in rows]

    def save(self, folder: Path) -> None:
        """Write a copy with normalized latents in fp16."""
        vae = copy.deepcopy(self.vae)
        normalize_latents(vae, *latent_moments(vae, self.images, self.recipe.evaluation.batch_size))
        vae.half().save_pretrained(folder)

    def trained_model(self) -> AutoencoderKL:
        """The VAE as it was written, in float32."""
        return AutoencoderKL.from_pretrained(self.output / self.result_name).to(self.accelerator.device)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@torch.no_grad()
def latent_moments(vae: AutoencoderKL, images: Tensor, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a draw of the posterior, over images and positions.

    Shapes: images (n, 3, H, W) uint8 -> mean, deviation (ch,).
    """
    posteriors = [vae.encode(to_pixels(part).to(vae.device)).latent_dist for part in images.split(batch_size)]
    mean, variance = (
        torch.cat([getattr(each, name) for each in posteriors]).transpose(0, 1).flatten(1)  # -> (ch, n*h*w)
        for name in ("mean", "var")
    )
    return mean.mean(dim=1), (mean.var(dim=1) + variance.mean(dim=1)).sqrt()
