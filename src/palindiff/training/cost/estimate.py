"""What a recipe costs before anything is trained: parameters, memory, work, disk and time.

Nothing is allocated and nothing is read but configs. Here: the numbers and what they mean. Not here: the models
(`weight_free.py`), the count of living bytes (`live_bytes.py`) and of work (`work.py`).
"""

import torch
from pydantic import BaseModel, Field
from torch import nn

from palindiff.training.cost.flops import Work, count_work
from palindiff.training.cost.memory import DeviceKind, LiveBytes, count_step
from palindiff.training.cost.weight_free import WeightFreeRun, fake_run
from palindiff.training.cost.weights_memory import bytes_per_weight, training_bytes
from palindiff.training.loop.distributed import UNITS, is_sharded
from palindiff.training.loop.loop_config import check_shares
from palindiff.training.recipes.schema import DiffDisRecipe

FP16, FP32 = 2, 4  # bytes


class Parameters(BaseModel, frozen=True):
    """How many weights, and where."""

    parts: dict[str, int]  # unet, query_stream, vae, text_encoder
    trained: int
    new: dict[str, int]  # the query stream's, in the order in which a query meets them


class Memory(BaseModel, frozen=True):
    """Bytes on the device of one process."""

    weights: int  # trained ones
    gradients: int
    optimizer: int
    ema: int
    exchange: int  # what several processes collect gradients in
    frozen: int  # VAE, text encoder, and what of the trained parts a task leaves out
    activations: int  # the most there is at once, with the batch, and with the weights' copies in bf16
    peak: int  # the worst moment; less than the sum, since gradients come as activations go


class Disk(BaseModel, frozen=True):
    """Bytes of the feature cache."""

    image: int  # with its crops, mirrored and not
    caption: int
    total: int | None  # of the images asked for, one caption each


class Time(BaseModel, frozen=True):
    """Time at a sustained throughput; reading data, evaluation and saving come on top."""

    step_s: float
    hours: float  # of the whole run
    images_per_s: float  # trained on
    named_images_per_s: float  # named, on one device


class Estimate(BaseModel, frozen=True):
    """All of it."""

    parameters: Parameters
    memory_bytes: Memory
    tflop: Work
    disk_bytes: Disk
    time: Time | None  # None without a throughput


class Hardware(BaseModel, frozen=True, extra="forbid"):
    """What the run is estimated for."""

    device: DeviceKind = "gpu"
    processes: int = Field(1, gt=0)  # each with a device of its own
    device_tflops: float | None = Field(None, gt=0)  # sustained by one device, TFLOP a second


def estimate(recipe: DiffDisRecipe, hardware: Hardware, num_images: int | None = None) -> Estimate:
    """Estimate a run of a recipe, and naming with what it trains.

    Raises: FileNotFoundError, ModuleNotFoundError, ValueError if a config of a frozen part cannot be had, or the batch
        does not divide evenly over processes and accumulation.
    """
    check_shares(recipe.loop, hardware.processes)
    with fake_run(recipe) as models:
        work = count_work(models, recipe)
        return Estimate(
            parameters=count_parameters(models),
            memory_bytes=count_memory(models, recipe, hardware),
            tflop=work,
            disk_bytes=count_disk(models, recipe, num_images),
            time=count_time(work, recipe, hardware),
        )


def describe(recipe: DiffDisRecipe) -> dict[str, int]:
    """Count in a moment what a recipe builds: parameters of each part, those trained, and `training_bytes`."""
    with fake_run(recipe) as models:
        parameters = count_parameters(models)
    trained = parameters.trained
    kept = training_bytes(trained, bytes_per_weight(recipe, "gpu"))
    return parameters.parts | {"trained": trained, "training_bytes": kept}


def count_parameters(models: WeightFreeRun) -> Parameters:
    """Count weights by part, and the new ones by place."""
    objective = models.objective
    parts = {"unet": objective.unet, "query_stream": objective.query_stream}
    parts |= {"vae": models.vae, "text_encoder": models.text_encoder}
    stream = objective.query_stream
    new = {
        f"site {number}, {site.into.out_features} wide": _count(site)
        for number, site in enumerate(stream.layers.sites, 1)
    }
    new |= {name: _count(child) for name, child in stream.named_children() if name not in ("sites", "clip_projection")}
    new["logit_scale"] = stream.log_logit_scale.numel()
    return Parameters(
        parts={name: _count(part) for name, part in parts.items()},
        trained=sum(weight.numel() for weight in objective.parameters() if weight.requires_grad),
        new={name: count for name, count in new.items() if count},
    )


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def count_memory(models: WeightFreeRun, recipe: DiffDisRecipe, hardware: Hardware) -> Memory:
    """Count what one process holds, on models of `fake_run`, one step of which is run."""
    parameters = count_parameters(models)
    trained, each = parameters.trained, bytes_per_weight(recipe, hardware.device)
    live, is_shared = _live_bytes(models, recipe, hardware), is_sharded(recipe.machine, hardware.processes)
    shares = hardware.processes if is_shared else 1
    held = {
        "weights": trained * each.weight // shares,
        "optimizer": round(trained * each.optimizer) // shares,
        "ema": trained * each.ema // shares,
        "exchange": _exchange(models.objective, trained * each.gradient, hardware.processes, is_shared),
        "frozen": (sum(parameters.parts.values()) - trained) * FP32,
    }
    gradients = trained * each.gradient // shares
    peak = gradients + live.activations_peak if is_shared else live.peak  # sharded gradients go while others come
    return Memory(
        **held, gradients=gradients, activations=live.activations_peak, peak=sum(held.values()) + peak
    )  # fmt: skip


def _exchange(objective: nn.Module, gradient_bytes: int, processes: int, is_shared: bool) -> int:
    """What several processes gather gradients in; sharded, the weights that are whole while a unit runs."""
    if not is_shared:
        return gradient_bytes if processes > 1 else 0
    units = [each for each in objective.modules() if isinstance(each, UNITS)]
    in_units = sum(_count(unit) for unit in units)
    return (_count(objective) - in_units + max((_count(unit) for unit in units), default=0)) * FP32


def _live_bytes(models: WeightFreeRun, recipe: DiffDisRecipe, hardware: Hardware) -> LiveBytes:
    loop = recipe.loop
    b = loop.batch_size // (loop.accumulation * hardware.processes)
    batch = models.features.read(torch.arange(b), torch.rand(b, 2))
    draws = models.objective.draw(b, torch.Generator())
    num_parts = min(loop.accumulation, 2)  # in the second the gradients of the first are there
    return count_step(models.objective.train(), batch, draws, num_parts, recipe.machine.precision, hardware.device)


def count_disk(models: WeightFreeRun, recipe: DiffDisRecipe, num_images: int | None) -> Disk:
    """Sizes of what is kept: mean and deviation of each view, mirrored if asked for; c and e, unless encoded live."""
    features = models.features
    ch, h, w = features.latent_shape
    orientations = 1 if recipe.views.flip == "none" else 2
    image = (1 + recipe.views.crops) * orientations * 2 * ch * h * w * FP16
    caption = 0 if recipe.text.is_live else features.num_tokens * features.d_c * FP16 + features.d_e * FP32
    total = None if num_images is None else num_images * (image + caption)
    return Disk(image=image, caption=caption, total=total)


def count_time(work: Work, recipe: DiffDisRecipe, hardware: Hardware) -> Time | None:
    """Divide the work by the throughput, if there is one."""
    if hardware.device_tflops is None:
        return None
    step_s = work.whole_step / (hardware.device_tflops * hardware.processes)
    return Time(
        step_s=step_s,
        hours=step_s * recipe.loop.num_steps / 3600,
        images_per_s=recipe.loop.batch_size / step_s,
        named_images_per_s=hardware.device_tflops / work.whole_named_image,
    )
