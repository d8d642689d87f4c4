"""What UniDiff writes: a stock CLIP folder, a stock Stable Diffusion folder, and with LoRA the updates alone.

Here: the folder's layout. Not here: each model's own files (`clip_folders.py`, diffusers), training.
"""

import json
from pathlib import Path

from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file

from palindiff.models.image_encoder import ImageEncoder
from palindiff.models.lora import lora_settings, lora_weights, merged, trains_lora
from palindiff.models.strict_model import check_finite
from palindiff.models.text_encoder import TextEncoder
from palindiff.pretrained.clip_folders import ClipParts, load_clip, save_clip
from palindiff.pretrained.saving import make_portable, save_lora

CLIP_FOLDER, STABLE_DIFFUSION_FOLDER = "clip", "stable_diffusion"
PLAIN = (str, int, float, bool, list)  # peft's other settings are off
CLIP_LORA_FOLDER, STABLE_DIFFUSION_LORA_FOLDER = "clip_lora", "stable_diffusion_lora"
RESULT_FOLDERS = (CLIP_FOLDER, STABLE_DIFFUSION_FOLDER, CLIP_LORA_FOLDER, STABLE_DIFFUSION_LORA_FOLDER)


def stock_pipeline(
    text: TextEncoder, unet: UNet2DConditionModel, vae: AutoencoderKL, scheduler: SchedulerMixin
) -> StableDiffusionPipeline:
    """Put a CLIP's text encoder and the parts of a Stable Diffusion into diffusers' pipeline; nothing is copied."""
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text.model, tokenizer=text.tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def load_unidiff(folder: Path) -> tuple[ClipParts, StableDiffusionPipeline]:
    """Load both models that `save_unidiff` writes, in float32.

    Raises: FileNotFoundError, OSError or ValueError if one is missing or damaged.
    """
    pipeline: StableDiffusionPipeline = StableDiffusionPipeline.from_pretrained(
        folder / STABLE_DIFFUSION_FOLDER, use_safetensors=True, safety_checker=None, requires_safety_checker=False
    )
    return load_clip(folder / CLIP_FOLDER), pipeline


def save_unidiff(
    folder: Path, clip: ClipParts, unet: UNet2DConditionModel, vae: AutoencoderKL, scheduler: SchedulerMixin
) -> None:
    """Write both models into stock folders, updates of LoRA added to the weights, and those updates by themselves.

    `clip/` is for `CLIPModel.from_pretrained`, `stable_diffusion/` for `StableDiffusionPipeline.from_pretrained`;
    `stable_diffusion_lora/` for `load_lora_weights`, `clip_lora/` for `CLIPModel.load_adapter`.

    Raises: ValueError if a weight is not finite.
    """
    image, text = clip.image_encoder, clip.text_encoder
    check_finite({"U-Net": unet}, "Train again, with a smaller learning rate.")
    whole_text = TextEncoder(merged(text.model), text.tokenizer, text.pooling, text.projection, text.name)
    mean, deviation = image.mean.flatten().tolist(), image.deviation.flatten().tolist()
    whole_image = ImageEncoder(merged(image.model), mean, deviation)
    (folder / CLIP_FOLDER).mkdir()
    save_clip(ClipParts(whole_image, whole_text, clip.log_logit_scale), folder / CLIP_FOLDER)
    stock_pipeline(whole_text, merged(unet), vae, scheduler).save_pretrained(folder / STABLE_DIFFUSION_FOLDER)
    make_portable(folder / STABLE_DIFFUSION_FOLDER)
    if trains_lora(unet):
        _save_lora(folder, clip, unet)


def _save_lora(folder: Path, clip: ClipParts, unet: UNet2DConditionModel) -> None:
    text, image = clip.text_encoder.model, clip.image_encoder.model
    save_lora(folder / STABLE_DIFFUSION_LORA_FOLDER, unet, text)
    if clip.text_encoder.pooling != "clip":
        return
    target = folder / CLIP_LORA_FOLDER
    target.mkdir()
    weights = {f"text_model.{name}": weight for name, weight in lora_weights(text).items()} | lora_weights(image)
    detached = {name: weight.detach().contiguous() for name, weight in weights.items()}
    save_file(detached, target / "adapter_model.safetensors")
    settings = {name: value for name, value in lora_settings(image).items() if isinstance(value, PLAIN)}
    (target / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
