"""Training DiffDis: from a recipe to models, features, the common loop, and a checkpoint folder.

Here: putting the parts together. Not here: the loop (`loop.py`), the losses (`objectives/`), who looks on
(`experiments/`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import BaseModel, Field, field_validator

from palindiff.atomic import replacing_folder
from palindiff.data.sources import DataConfig, ImageSet, open_images
from palindiff.inference.labels import check_labels
from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.text_encoder import TextEncoder
from palindiff.objectives.diffdis import DiffDisConfig, DiffDisObjective
from palindiff.pretrained.model_card import card_text
from palindiff.training.features.dataset import (
    FeatureSet,
    LiveCaptions,
    Progress,
    ViewConfig,
    caption_features,
    default_cache_dir,
    fingerprint,
)
from palindiff.training.features.latent_cache import LatentCache
from palindiff.training.loop.device import make_accelerator
from palindiff.training.loop.distributed import check_placement
from palindiff.training.loop.loop import (
    Evaluator,
    LoopConfig,
    MachineConfig,
    OptimizerConfig,
    Run,
    check_shares,
    train,
)
from palindiff.training.loop.run_log import RunLog
from palindiff.training.recipes.build_models import TRAIN_STEPS, ModelRecipe, build_models, training_scheduler
from palindiff.training.run_facts import run_facts


class EvaluationConfig(BaseModel, frozen=True, extra="forbid"):
    """What is looked at while training."""

    validation_split: str = "validation"
    num_images: int = Field(500, gt=0)  # validation images at most
    templates: tuple[str, ...] = ("{}",)  # prompts around a class name, for zero-shot accuracy
    naming_steps: int = Field(8, gt=0, le=TRAIN_STEPS)  # DDIM steps of the text diffusion
    naming_guidance_scale: float = Field(1.0, ge=1)  # 1 + w of Algorithm 3; 1 turns guidance off
    prompts: tuple[str, ...] = ()  # captions generated at each look; none turns the sheet off
    guidance_scale: float = Field(4.0, ge=1)  # of the generated sheet; 1 turns guidance off
    num_inference_steps: int = Field(20, gt=0, le=TRAIN_STEPS)  # of the generated sheet

    @field_validator("templates")
    @classmethod
    def _take_a_label(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        check_labels(["label"], templates)
        return templates


class Recipe(ModelRecipe, frozen=True, extra="forbid"):
    """All that `palindiff train` takes: which models, what they learn from, and how."""

    data: DataConfig
    views: ViewConfig = ViewConfig()
    objective: DiffDisConfig = DiffDisConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    machine: MachineConfig = MachineConfig()


@dataclass
class Parts:
    """The models of one run and what they learn from; what an evaluator may look at."""

    recipe: Recipe
    pipeline: PalindiffPipeline
    objective: DiffDisObjective
    training_set: FeatureSet
    fingerprints: dict[str, str]  # fingerprints of the frozen models and the training images
    validation_set: FeatureSet
    validation_rows: ImageSet
    accelerator: Accelerator
    output: Path


MakeEvaluators = Callable[[Parts], Sequence[Evaluator]]


def train_recipe(
    recipe: Recipe,
    output: Path,
    make_evaluators: MakeEvaluators,
    show_progress: bool = True,
    tell: Progress | None = None,
) -> PalindiffPipeline:
    """Train below `output` and write the EMA weights as a checkpoint folder, `output/checkpoint`.

    The same call goes on where it stopped.

    Returns: the trained pipeline.
    """
    accelerator = make_accelerator(recipe.machine)
    check_shares(recipe.loop, accelerator.num_processes)
    check_placement(recipe.optimizer, recipe.machine, accelerator)
    parts = prepare(recipe, output, accelerator, tell or (lambda what, done, total: None))
    optimizer = recipe.optimizer
    run = Run(
        objective=parts.objective,
        parameter_groups=parts.objective.parameter_groups(optimizer.learning_rate, optimizer.new_learning_rate),
        training_set=parts.training_set,
        loop=recipe.loop,
        optimizer=optimizer,
        machine=recipe.machine,
        run_log=RunLog(output, show_progress=show_progress),
        state_dir=str(output / "state"),
        fingerprints=parts.fingerprints,
        evaluators=make_evaluators(parts),
    )
    state = train(run, accelerator)
    parts.objective.eval()
    if accelerator.is_main_process and (state.has_learned or not (output / "checkpoint").exists()):
        parts.pipeline.model_card = card_text(run_facts(recipe, parts.pipeline, output.absolute().name))
        with replacing_folder(output / "checkpoint") as folder:
            parts.pipeline.save_pretrained(folder)
    accelerator.wait_for_everyone()
    return parts.pipeline


def prepare(recipe: Recipe, output: Path, accelerator: Accelerator, tell: Progress) -> Parts:
    """Build the models, open the images, compute or map the features.

    The processes share the encoding of images; for the rest one computes and the others wait.
    """
    pipeline = build_models(recipe, recipe.loop.seed)
    if recipe.machine.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    tower = pipeline.caption_encoder.to(accelerator.device)
    pipeline.vae.to(accelerator.device)
    fingerprints = {"VAE": fingerprint(pipeline.vae), "text encoder": tower.fingerprint}
    training = open_images(recipe.data)
    validation = open_images(recipe.data.model_copy(update={"split": recipe.evaluation.validation_split}))
    stores = [
        _latent_cache(recipe, rows, views, pipeline)
        for rows, views in ((training, recipe.views), (validation, ViewConfig(flip="none")))
    ]
    speak = tell if accelerator.is_main_process else _silent
    for store in stores:
        store.encode(speak, accelerator.process_index, accelerator.num_processes)
    accelerator.wait_for_everyone()
    with accelerator.main_process_first():
        training, training_set = _feature_set(recipe, stores[0], tower, speak)
        validation, validation_set = _feature_set(recipe, stores[1], tower, speak)
        objective = make_objective(recipe, pipeline, tower, _empty_caption(recipe, tower, speak))
    fingerprints["training set"] = training.fingerprint
    return Parts(
        recipe, pipeline, objective, training_set, fingerprints, validation_set, validation, accelerator, output
    )


def make_objective(
    recipe: Recipe, pipeline: PalindiffPipeline, tower: TextEncoder, c_empty: torch.Tensor | None
) -> DiffDisObjective:
    """Put a recipe's models under its losses; c_empty (1, l, d_c) is None where captions are encoded at each step."""
    encoder: TextEncoder | None = None
    if c_empty is None:
        encoder = tower.requires_grad_(recipe.text.is_trained)
        if recipe.machine.gradient_checkpointing and recipe.text.is_trained:
            encoder.model.activation_checkpointing_enable()
    return DiffDisObjective(
        pipeline.unet,
        pipeline.query_stream,
        training_scheduler(pipeline.scheduler),
        pipeline.query_scheduler,
        c_empty,
        recipe.objective,
        encoder,
    )


def _latent_cache(recipe: Recipe, rows: ImageSet, views: ViewConfig, pipeline: PalindiffPipeline) -> LatentCache:
    size_px = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    data, workers = recipe.data, recipe.machine.num_workers
    return LatentCache(rows, pipeline.vae, size_px, data.fit, views, _cache_dir(recipe), workers, data.on_bad)


def _feature_set(
    recipe: Recipe, store: LatentCache, tower: TextEncoder, tell: Progress
) -> tuple[ImageSet, FeatureSet]:
    """The rows whose images could be read, and their features; what was left out is told."""
    store.encode(tell)  # nothing, unless the processes have no folder in common
    images = store.read()
    rows = store.rows.without(images.unreadable)
    if rows.left_out:
        tell(f"{rows.left_out} Used", len(rows), len(rows))
    captions = [of_one for of_one, _ in rows.texts()]
    flat = [caption for of_one in captions for caption in of_one]
    if recipe.text.is_live:
        return rows, FeatureSet(captions, images, LiveCaptions(flat, tower), store.views.flip)
    texts = caption_features(flat, tower, _cache_dir(recipe), tell)
    return rows, FeatureSet(captions, images, texts, store.views.flip)


def _silent(what: str, done: int, total: int) -> None:
    """Progress nobody: of several processes the main one speaks for its own share."""


def _empty_caption(recipe: Recipe, tower: TextEncoder, tell: Progress) -> torch.Tensor | None:
    if recipe.text.is_live:
        return None
    return torch.from_numpy(caption_features([""], tower, _cache_dir(recipe), tell).c.astype(np.float32))


def _cache_dir(recipe: Recipe) -> Path:
    return Path(recipe.machine.cache_dir) if recipe.machine.cache_dir else default_cache_dir()
