"""How much a training step and naming an image compute, counted on tensors that hold no numbers.

Not here: how long that takes (`estimate.py`).
"""

import copy

import torch
from pydantic import BaseModel, computed_field
from torch._subclasses.fake_tensor import FakeTensorMode

from palindiff.evaluation.cost import count_tflop
from palindiff.evaluation.evaluators import EvaluationConfig
from palindiff.training.cost.weight_free import WeightFreeRun, WeightFreeUniDiff
from palindiff.training.loop.loop_config import LoopConfig
from palindiff.training.recipes.build_models import build_encoders
from palindiff.training.recipes.schema import ContrastiveRecipe, DiffDisRecipe
from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe

FEW_ROWS = 4  # that a step of UniDiff is counted on; relations of images need three


class Work(BaseModel, frozen=True):
    """TFLOP: 10^12 multiplications and additions of matrix products, convolutions and attention."""

    step: dict[str, float]
    """generation, alignment, captions encoded at each step: all rows and processes of a step, forward and backward;
    of UniDiff all losses together"""
    named_image: dict[str, float]
    """VAE, reading, denoising: one image, with the steps and the guidance of the recipe's evaluation; with UniDiff
    the image encoder of CLIP"""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def whole_step(self) -> float:
        """TFLOP of a step's tasks together."""
        return sum(self.step.values())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def whole_named_image(self) -> float:
        """TFLOP from an image's pixels to its query."""
        return sum(self.named_image.values())


def step_tflop(run: WeightFreeRun, recipe: DiffDisRecipe, num_processes: int = 1) -> dict[str, float]:
    """Work of one row times the rows, on `fake_run`; the rows' similarities among each other are left out.

    With a gradient cache each row is encoded a second time, as two rows in chunks of one are.
    """
    objective, task, loop = copy.copy(run.objective.train()), recipe.objective.task, recipe.loop
    b, objective.grad_cache_size = (2, 1) if _is_cached(loop, num_processes) else (1, 0)
    batch = run.features.read(torch.arange(b), torch.rand(b, 2))
    draws, z_0 = objective.draw(b, torch.Generator()), batch["z_mean"].float()
    with torch.no_grad():
        c, e_0, c_empty = objective.texts(batch)

    def generate() -> None:
        objective.generation_loss(z_0, c, c_empty, draws).backward()

    def align() -> None:
        objective.alignment(z_0, e_0, batch["caption_id"], draws).backward()

    def encode() -> None:
        c, e_0, _ = objective.texts(batch)
        if recipe.text.is_trained:
            (c.float().sum() + e_0.sum()).backward()

    tasks = {"generation": generate, "alignment": align}
    works = {name: loop.batch_size / b * count_tflop(each) for name, each in tasks.items() if task in ("both", name)}
    if recipe.text.is_live:  # the empty caption is encoded once a step beside the rows' own
        one = count_tflop(encode) / (b + 1)
        works["captions"] = (loop.batch_size + 1) * one
    return works


def contrastive_step_tflop(recipe: ContrastiveRecipe) -> dict[str, float]:
    """Work of one row times the rows of a contrastive recipe, from configs alone; similarities are left out.

    Units: TFLOP by encoder; a text encoder whose features are cached does nothing in a step.
    Raises: FileNotFoundError, ModuleNotFoundError, ValueError if the text encoder's config cannot be had.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        image_encoder, text_encoder = build_encoders(recipe, with_weights=False)
        side = image_encoder.image_size_px
        ids = torch.ones(1, text_encoder.max_length, dtype=torch.int64)

        def encode_text() -> None:
            e = text_encoder(ids, ids.bool()).e
            if recipe.text.is_trained:
                e.sum().backward()

        works = {"image encoder": count_tflop(lambda: image_encoder(torch.zeros(1, 3, side, side)).sum().backward())}
        if recipe.text.is_live:
            works["text encoder"] = count_tflop(encode_text)
    return {name: recipe.loop.batch_size * work for name, work in works.items()}


def unidiff_step_tflop(run: WeightFreeUniDiff, recipe: UniDiffRecipe, num_processes: int = 1) -> float:
    """Work of a step of UniDiff, all losses together, on `fake_unidiff`; similarities are left out.

    Units: TFLOP.
    """
    objective, loop = run.objective.train(), recipe.loop
    whole = objective.grad_cache_size
    objective.grad_cache_size = objective.contrastive.grad_cache_size = 1 if _is_cached(loop, num_processes) else 0
    # the empty caption is encoded once in either
    few, more = _unidiff_tflop(run, FEW_ROWS), _unidiff_tflop(run, 2 * FEW_ROWS)
    objective.grad_cache_size = objective.contrastive.grad_cache_size = whole
    return few + (loop.batch_size / FEW_ROWS - 1) * (more - few)


def _unidiff_tflop(run: WeightFreeUniDiff, b: int) -> float:
    """Work of forward and backward of b rows."""
    batch, draws = run.features.read(torch.arange(b), torch.rand(b, 2)), run.objective.draw(b, torch.Generator())
    return count_tflop(lambda: run.objective(batch, draws)["loss"].backward())


@torch.no_grad()
def clip_tflop(run: WeightFreeUniDiff) -> float:
    """Work of one pass of CLIP's image encoder, which is what it costs to name an image."""
    contrastive, x = run.objective.contrastive.eval(), run.features.row["x"][None]
    return count_tflop(lambda: contrastive.embed_images(x))


def _is_cached(loop: LoopConfig, num_processes: int) -> bool:
    """Whether a process's rows of a micro-batch are more than a chunk of the gradient cache."""
    return 0 < loop.grad_cache_size < loop.batch_size // (loop.accumulation * num_processes)


@torch.no_grad()
def naming_tflop(run: WeightFreeRun, evaluation: EvaluationConfig) -> dict[str, float]:
    """Work of naming one image, on `fake_run`; the zero image of guidance is read once for all and left out."""
    unet, stream, vae = run.objective.unet.eval(), run.objective.query_stream.eval(), run.pipeline.vae
    z = run.features.row["z_mean"].float()[None]
    image_size_px = z.shape[-1] * run.pipeline.vae_scale_factor
    x = torch.zeros(1, 3, image_size_px, image_size_px)
    query = (torch.zeros(1, stream.config.d_e), torch.zeros(1, dtype=torch.int64))
    num_steps = evaluation.naming_steps if stream.has_text_diffusion else 1
    num_passes = evaluation.naming_samples * num_steps * (1 if evaluation.naming_guidance_scale == 1 else 2)
    reading = stream.read_image(unet, z)
    return {
        "VAE": count_tflop(lambda: vae.encode(x)),
        "reading": count_tflop(lambda: stream.read_image(unet, z)),
        "denoising": num_passes * count_tflop(lambda: stream(unet, reading, *query)),
    }
