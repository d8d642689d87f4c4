"""The models of a recipe, with weights or from configs alone, and the objective that combines them with their losses.

Here: building from scratch, or from an existing Stable Diffusion or palindiff checkpoint. Not here: what a recipe may
ask for (`schema.py`), what the models learn from (`features/`), training (`train_diffdis.py`).
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, SchedulerMixin, UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.clip_projection import TrainedClipProjection
from palindiff.models.image_encoder import ImageEncoder, build_image_encoder
from palindiff.models.lora import add_lora, add_text_lora
from palindiff.models.query_stream import QueryStream
from palindiff.models.text_diffusion import STABLE_DIFFUSION_NOISE, TRAIN_STEPS, text_diffusion_scheduler
from palindiff.models.text_encoder import TextEncoder
from palindiff.objectives.contrastive import ContrastiveObjective
from palindiff.objectives.diffdis import DiffDisObjective
from palindiff.pretrained.bundled import load_vae
from palindiff.pretrained.layout import is_palindiff, result_of
from palindiff.pretrained.stable_diffusion import parts_from_configs
from palindiff.pretrained.text_encoders import load_text_encoder
from palindiff.training.recipes.schema import (
    BaseConfig,
    ContrastiveRecipe,
    DiffDisRecipe,
    ModelRecipe,
    SchedulerConfig,
    UNetConfig,
)

NO_SIGNAL = 1e-6  # of the share of the signal's variance; Stable Diffusion keeps 4.7e-3 at its last step


def build_models(recipe: ModelRecipe, seed: int, with_weights: bool = True) -> PalindiffPipeline:
    """Build or load the models of a recipe, with new weights where it says so, drawn from a seed.

    Without weights, every part is built from its config with random weights, on the device or under the mode in force.

    Raises: FileNotFoundError or ValueError, in a sentence, if a base or text encoder cannot be used.
    """
    torch.manual_seed(seed)
    if recipe.base is None:
        return _from_scratch(recipe, with_weights)
    base = recipe.base.model_copy(update={"source": str(result_of(recipe.base.source, "checkpoint"))})
    pipeline = _from_base(recipe, base, seed, with_weights)
    if recipe.base.unet_weights == "random":
        pipeline.register_modules(unet=UNet2DConditionModel.from_config(pipeline.unet.config))
    if (image_size_px := recipe.base.image_size_px) is not None:
        num_blocks = len(pipeline.unet.config.block_out_channels)
        side = _latent_side("base.image_size_px", image_size_px, int(pipeline.vae_scale_factor), num_blocks)
        pipeline.unet.register_to_config(sample_size=side)
    pipeline.vae.requires_grad_(False).eval()
    check_can_be_learned(pipeline.scheduler, recipe.base.source)
    return pipeline


def build_objective(
    recipe: DiffDisRecipe, pipeline: PalindiffPipeline, text_encoder: TextEncoder, c_empty: Tensor | None
) -> DiffDisObjective:
    """Put the models under their losses, with gradient checkpointing and LoRA where the recipe asks for them.

    Shapes: c_empty (1, l, d_c), the empty caption's condition; None where captions are encoded at each step, and then
            the text encoder is part of the objective.
    Raises: ValueError if LoRA is asked for on a layer that is missing; ModuleNotFoundError if peft is.
    """
    if recipe.machine.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
        if recipe.text.is_trained:
            text_encoder.model.activation_checkpointing_enable()
    encoder = text_encoder.requires_grad_(recipe.text.is_trained) if c_empty is None else None
    if recipe.trained == "lora":
        torch.manual_seed(recipe.loop.seed)
        add_lora(pipeline.unet, recipe.lora.unet_layers, recipe.lora, "U-Net")
        if recipe.text.is_trained:
            add_text_lora(text_encoder, recipe.lora)
    schedulers = training_scheduler(pipeline.scheduler), pipeline.query_scheduler
    return DiffDisObjective(
        pipeline.unet, pipeline.query_stream, *schedulers, c_empty, recipe.objective, encoder,
        recipe.loop.grad_cache_size,
    )  # fmt: skip


def build_encoders(recipe: ContrastiveRecipe, with_weights: bool = True) -> tuple[ImageEncoder, TextEncoder]:
    """Build the image encoder with weights from torch's global generator, and load the text encoder of a recipe.

    Raises: FileNotFoundError, ModuleNotFoundError or ValueError, in a sentence, if the text encoder cannot be used.
    """
    assert recipe.text.source is not None, "as the recipe has checked"
    text = load_text_encoder(recipe.text.source, recipe.text.max_length, with_weights)
    text.check()
    if recipe.text.is_trained:
        weight = None if text.projection is None else text.projection.weight
        projection = None if weight is None else TrainedClipProjection.from_clip(text.model, weight)  # type: ignore[arg-type]
        text = TextEncoder(text.model.requires_grad_(True), text.tokenizer, text.pooling, projection, text.name)
    return build_image_encoder(recipe.image_encoder, text.d_e), text


def build_contrastive_objective(
    recipe: ContrastiveRecipe, image_encoder: ImageEncoder, text_encoder: TextEncoder
) -> ContrastiveObjective:
    """Put both encoders under the loss; the text encoder is a part of it where captions are encoded at each step."""
    if recipe.machine.gradient_checkpointing:
        for model in (image_encoder.model, *([text_encoder.model] if recipe.text.is_trained else [])):
            model.activation_checkpointing_enable()
    text = text_encoder if recipe.text.is_live else None
    return ContrastiveObjective(image_encoder, recipe.objective, text, recipe.loop.grad_cache_size)


def image_scheduler(config: SchedulerConfig) -> DDIMScheduler:
    """Build the scheduler of the image diffusion: Stable Diffusion's noise, trailing steps."""
    sampling = {"clip_sample": False, "steps_offset": 1, "timestep_spacing": "trailing"}
    noise = STABLE_DIFFUSION_NOISE | config.model_dump()
    return DDIMScheduler(num_train_timesteps=TRAIN_STEPS, **noise, **sampling)


def training_scheduler(scheduler: SchedulerMixin) -> DDPMScheduler:
    """Build the noise schedule of a generation scheduler for training: PNDM, Euler and others cannot make targets."""
    return DDPMScheduler.from_config(scheduler.config)


def check_can_be_learned(scheduler: SchedulerMixin, source: str) -> None:
    """Refuse a base whose images are diffused in another way than training can make targets for.

    Raises: ValueError.
    """
    kind, config = type(scheduler).__name__, scheduler.config
    prediction_type = config.get("prediction_type", "epsilon")
    flows = [name for name in ("use_flow_sigmas", "use_flow_match") if config.get(name)]
    if not hasattr(scheduler, "alphas_cumprod") or flows:
        found = f"the scheduler {kind}" + "".join(f" with `{name}`" for name in flows)
        expected = "one with the noise schedule of DDPM, as DDIM, PNDM, Euler and DPM-Solver have in Stable Diffusion"
    elif prediction_type not in ("epsilon", "v_prediction"):
        found, expected = f"`prediction_type` {prediction_type!r} in its scheduler", "'epsilon' or 'v_prediction'"
    elif prediction_type == "epsilon" and _ends_in_noise(scheduler):
        found = "`prediction_type` 'epsilon' with a noise schedule that ends in pure noise (zero terminal SNR)"
        expected = "'v_prediction': there, predicting the noise teaches nothing"
    else:
        return
    raise ValueError(
        f"`{source}` has {found}. Expected {expected}. Start from another base, or correct its scheduler_config.json "
        "if the weights were trained so."
    )


def _ends_in_noise(scheduler: SchedulerMixin) -> bool:
    """Whether no signal is left at the last step; unknown, hence no, of a scheduler without numbers."""
    last = training_scheduler(scheduler).alphas_cumprod[-1]
    return not isinstance(last, FakeTensor) and float(last) < NO_SIGNAL


def _from_scratch(recipe: ModelRecipe, with_weights: bool) -> PalindiffPipeline:
    assert recipe.text.source is not None and recipe.vae is not None, "as the recipe has checked"  # noqa: PT018
    assert recipe.scheduler is not None and recipe.unet is not None, "as the recipe has checked"  # noqa: PT018
    encoder = load_text_encoder(recipe.text.source, recipe.text.max_length, with_weights)
    vae = load_vae(recipe.vae, with_weights)
    unet = build_unet(recipe.unet, vae, encoder.d_c)
    stream = QueryStream.for_unet(unet, encoder.d_e, recipe.query_stream, encoder.pooling, encoder.projection)
    scheduler = image_scheduler(recipe.scheduler)
    query_scheduler = text_diffusion_scheduler(TRAIN_STEPS, recipe.query_scheduler)
    return PalindiffPipeline(vae, encoder.model, encoder.tokenizer, unet, scheduler, stream, query_scheduler)


def _from_base(recipe: ModelRecipe, base: BaseConfig, seed: int, with_weights: bool) -> PalindiffPipeline:
    if is_palindiff(base.source):
        if with_weights:
            pipeline = PalindiffPipeline.from_pretrained(base.source, variant=base.variant)
        else:
            pipeline = PalindiffPipeline(**parts_from_configs(Path(base.source)))
        if base.query_stream == "new":
            _draw_query_stream(pipeline, recipe, seed)
        else:
            _check_settings(pipeline, recipe, base.source)
    else:
        if recipe.text.source is None:
            raise ValueError(
                f"`text.source` is missing, and `{base.source}` is no palindiff checkpoint here. Expected such a "
                "folder, or a Stable Diffusion and the CLIP that its text encoder was taken from. Check `base.source` "
                "or set `text.source` to the CLIP's folder or Hub name."
            )
        pipeline = PalindiffPipeline.from_stable_diffusion(
            base.source,
            recipe.text.source,
            recipe.query_stream,
            query_scheduler=recipe.query_scheduler,
            seed=seed,
            variant=base.variant,
            config=base.config,
            with_weights=with_weights,
        )
    if recipe.text.max_length is not None:
        raise ValueError(
            f"`text.max_length` is {recipe.text.max_length} together with `base`. Expected none: generation reads "
            "as many tokens as the base does. Remove it."
        )
    return pipeline


def _draw_query_stream(pipeline: PalindiffPipeline, recipe: ModelRecipe, seed: int) -> None:
    """Put a new query stream in the place of the base's, which shares no weights with the U-Net."""
    encoder = pipeline.caption_encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stream = QueryStream.for_unet(
            pipeline.unet, encoder.d_e, recipe.query_stream, encoder.pooling, encoder.projection
        )
    scheduler = text_diffusion_scheduler(TRAIN_STEPS, recipe.query_scheduler)
    pipeline.register_modules(query_stream=stream.eval(), query_scheduler=scheduler)


def _check_settings(pipeline: PalindiffPipeline, recipe: ModelRecipe, source: str) -> None:
    """Refuse a checkpoint whose text diffusion is not the recipe's; how it was initialised no longer matters."""
    settings = {
        "query_stream": recipe.query_stream.model_dump(exclude={"query_ffn", "logit_scale"}),
        "query_scheduler": recipe.query_scheduler.model_dump(),
    }
    differing = [
        f"`{part}.{name}` is {found!r} there and {value!r} here"
        for part, of_part in settings.items()
        for name, value in of_part.items()
        if (found := getattr(pipeline, part).config.get(name, False)) != value  # some schedulers lack a setting
    ]
    if differing:
        raise ValueError(
            f"`{source}` holds another query stream than the recipe: {', '.join(differing)}. Expected the same "
            "settings. Set them, or set `base.query_stream: new` to train a new one."
        )


def _latent_side(key: str, image_size_px: int, vae_factor: int, num_blocks: int) -> int:
    factor = vae_factor * 2 ** (num_blocks - 1)
    if image_size_px % factor:
        raise ValueError(
            f"`{key}` is {image_size_px}. Expected a multiple of {factor}, which VAE and U-Net halve it down by. "
            "Change it."
        )
    return image_size_px // vae_factor


def build_unet(config: UNetConfig, vae: AutoencoderKL, d_c: int) -> UNet2DConditionModel:
    """Build a U-Net from scratch for a VAE's latents and a text encoder of width d_c.

    Raises: ValueError if VAE and U-Net cannot halve the image's side so often.
    """
    num_blocks, vae_factor = len(config.widths), 2 ** (len(vae.config.block_out_channels) - 1)
    image_size_px = config.image_size_px or vae.config.sample_size
    side = _latent_side("unet.image_size_px", image_size_px, vae_factor, num_blocks)
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * num_blocks,
        up_block_types=("CrossAttnUpBlock2D",) * num_blocks,
        block_out_channels=config.widths,
        layers_per_block=config.layers_per_block,
        cross_attention_dim=d_c,
        attention_head_dim=tuple(width // config.head_dim for width in config.widths),  # diffusers: number of heads
        norm_num_groups=config.norm_groups,
        use_linear_projection=True,
    )
