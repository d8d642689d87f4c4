"""How much a training step and naming an image compute, counted on tensors that hold no numbers.

Not here: how long that takes (`estimate.py`).
"""

from collections.abc import Callable

import torch
from pydantic import BaseModel, computed_field
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from palindiff.evaluation.evaluators import EvaluationConfig
from palindiff.training.cost.weight_free import WeightFreeRun
from palindiff.training.recipes.schema import DiffDisRecipe


class Work(BaseModel, frozen=True):
    """TFLOP: 10^12 multiplications and additions of matrix products, convolutions and attention."""

    step: dict[
        str, float
    ]  # generation, alignment, captions encoded at each step: all rows of a step, all processes, forward and backward
    named_image: dict[str, float]  # VAE, reading, walk: one image, its steps and guidance as watched

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


def count_work(models: WeightFreeRun, recipe: DiffDisRecipe) -> Work:
    """Count a step and the naming of an image, on models of `fake_run`."""
    return Work(step=step_tflop(models, recipe), named_image=naming_tflop(models, recipe.evaluation))


def step_tflop(models: WeightFreeRun, recipe: DiffDisRecipe) -> dict[str, float]:
    """Work of one row times the rows; the rows' similarities among each other are left out."""
    objective, task = models.objective.train(), recipe.objective.task
    batch = models.features.read(torch.arange(1), torch.rand(1, 2))
    draws, z_0 = objective.draw(1, torch.Generator()), batch["z_mean"].float()
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
    left_out = {"generation": "alignment", "alignment": "generation"}.get(task)
    rows = recipe.loop.batch_size
    works = {name: rows * count_tflop(run) for name, run in tasks.items() if name != left_out}
    if recipe.text.is_live:  # the empty caption is encoded once a step beside the row's own
        works["captions"] = (rows + 1) * count_tflop(encode) / 2
    return works


@torch.no_grad()
def naming_tflop(models: WeightFreeRun, evaluation: EvaluationConfig) -> dict[str, float]:
    """Work of naming one image; the zero image of guidance is read once for all and left out."""
    unet, stream = models.objective.unet.eval(), models.objective.query_stream.eval()
    x = torch.zeros(1, 3, models.image_size_px, models.image_size_px)
    z = torch.zeros(1, *models.features.latent_shape)
    query = (torch.zeros(1, stream.config.d_e), torch.zeros(1, dtype=torch.int64))
    num_steps = evaluation.naming_steps if stream.has_text_diffusion else 1
    num_passes = num_steps * (1 if evaluation.naming_guidance_scale == 1 else 2)
    reading = stream.read_image(unet, z)
    step = count_tflop(lambda: stream(unet, reading, *query))
    return {
        "VAE": count_tflop(lambda: models.vae.encode(x)),
        "reading": count_tflop(lambda: stream.read_image(unet, z)),
        "walk": num_passes * step,
    }


def count_tflop(run: Callable[[], object]) -> float:
    """Count what a call computes; plain attention, so that none of its products is hidden in a fused kernel."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return float(counter.get_total_flops()) / 1e12
