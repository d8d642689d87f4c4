"""The models of a UniDiff recipe, and the objective that combines them with their losses.

Here: loading both models, whether they fit, and which weights are trained. Not here: the recipe (`unidiff_recipe.py`),
training (`train_unidiff.py`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from palindiff.models.clip_projection import TrainedClipProjection
from palindiff.models.lora import add_lora, add_text_lora
from palindiff.models.text_encoder import TextEncoder
from palindiff.objectives.contrastive import ContrastiveConfig, ContrastiveObjective
from palindiff.objectives.unidiff import UniDiffObjective
from palindiff.pretrained.clip_folders import ClipParts, find_clip, find_clip_configs, load_clip
from palindiff.pretrained.layout import result_of
from palindiff.pretrained.stable_diffusion import find_generator, load_generator, num_text_layers
from palindiff.training.recipes.build_models import check_can_be_learned, training_scheduler
from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe


@dataclass(frozen=True)
class UniDiffParts:
    """A CLIP and the parts of a Stable Diffusion, whose text encoder is CLIP's."""

    clip: ClipParts
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: SchedulerMixin  # of generation


def build_unidiff(recipe: UniDiffRecipe, with_weights: bool = True) -> UniDiffParts:
    """Load both models as `load_start` does, and set which weights are trained.

    Those of LoRA start from torch's global generator.

    Raises: as `load_start`; ValueError if LoRA is asked for on a layer that is missing.
    """
    return _choose_trained(recipe, load_start(recipe, with_weights))


def load_start(recipe: UniDiffRecipe, with_weights: bool = True) -> UniDiffParts:
    """Load the models that training starts from, in float32; without weights, build them from configs, at random.

    Raises: FileNotFoundError, OSError or ValueError, in a sentence, if one cannot be loaded, or they do not fit.
    """
    find = find_clip if with_weights else find_clip_configs
    clip = load_clip(find(recipe.clip.source), with_weights)
    source, variant = result_of(recipe.stable_diffusion.source, "checkpoint"), recipe.stable_diffusion.variant
    folder = find_generator(source, variant, with_weights)
    unet, vae, scheduler = load_generator(folder, variant, with_weights)
    check_can_be_learned(scheduler, recipe.stable_diffusion.source)
    width = unet.config.cross_attention_dim
    if clip.text_encoder.d_c != width:
        raise ValueError(
            f"The text encoder of `{recipe.clip.source}` makes features of width {clip.text_encoder.d_c}, and the "
            f"U-Net of `{recipe.stable_diffusion.source}` takes width {width}. Expected one width. Use the CLIP that "
            "the Stable Diffusion was made with: for 1.x that is openai/clip-vit-large-patch14."
        )
    own, given = num_text_layers(folder), clip.text_encoder.model.config.num_hidden_layers
    if own is not None and own != given:  # 2.x conditions on the last layer but one of its CLIP
        raise ValueError(
            f"The text encoder of `{recipe.clip.source}` has {given} layers, and that of "
            f"`{recipe.stable_diffusion.source}` has {own}. Expected one number: the U-Net was trained with the "
            "features of its own last layer. Use a Stable Diffusion 1.x and the CLIP that it was made with."
        )
    return UniDiffParts(clip, unet, vae.requires_grad_(False).eval(), scheduler)


def build_unidiff_objective(recipe: UniDiffRecipe, parts: UniDiffParts) -> UniDiffObjective:
    """Put the models under their losses, with gradient checkpointing where the recipe asks for it.

    Raises: ValueError if the U-Net has no block of the recipe's name.
    """
    image, text = parts.clip.image_encoder, parts.clip.text_encoder
    if recipe.machine.gradient_checkpointing:
        parts.unet.enable_gradient_checkpointing()
        for model in (image.model, text.model):
            model.activation_checkpointing_enable()
    contrastive = ContrastiveObjective(image, ContrastiveConfig(), text, recipe.loop.grad_cache_size)
    contrastive.log_logit_scale.data.copy_(parts.clip.log_logit_scale)  # CLIP's own, at its bound for OpenAI's
    with torch.random.fork_rng(devices=[]):  # what is new does not depend on what was computed before
        torch.manual_seed(recipe.loop.seed)
        return UniDiffObjective(contrastive, parts.unet, training_scheduler(parts.scheduler), recipe.objective)


def _choose_trained(recipe: UniDiffRecipe, parts: UniDiffParts) -> UniDiffParts:
    image, text, unet = parts.clip.image_encoder, parts.clip.text_encoder, parts.unet
    if recipe.trained == "lora":
        lora = recipe.lora
        add_lora(unet, lora.unet_layers, lora, "U-Net")
        add_lora(image.model, lora.clip_layers, lora, "image encoder")
        add_text_lora(text, lora)
        return parts
    unet.requires_grad_(recipe.trained == "all")
    if recipe.trained == "attention":
        for module in unet.modules():
            if isinstance(module, Attention):
                module.requires_grad_(True)
    image.model.requires_grad_(True)
    trained = ClipParts(image, _trained_text(text), parts.clip.log_logit_scale)
    return UniDiffParts(trained, unet, parts.vae, parts.scheduler)


def _trained_text(text: TextEncoder) -> TextEncoder:
    """The text encoder with all of its weights trained, the projection of a CLIP too."""
    model: Any = text.model.requires_grad_(True)
    if text.pooling == "mean" and getattr(model, "pooler", None) is not None:
        model.pooler.requires_grad_(False)  # of a sentence encoder, it is not used
    projection = None
    if text.projection is not None:
        projection = TrainedClipProjection.from_clip(model, text.projection.weight)
    return TextEncoder(model, text.tokenizer, text.pooling, projection, text.name)
