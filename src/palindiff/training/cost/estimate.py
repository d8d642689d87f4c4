"""What a recipe costs before anything is trained: parameters, memory, work, disk and time.

Nothing is allocated and nothing is read but configs. Here: the numbers and what they mean. Not here: the models
(`weight_free.py`), counting the bytes of a step (`memory.py`) and its work (`flops.py`).
"""

import torch
from pydantic import BaseModel, Field
from torch import nn

from palindiff.training.cost.flops import Work, clip_tflop, naming_tflop, step_tflop, unidiff_step_tflop
from palindiff.training.cost.memory import FP32, DeviceKind, bytes_per_weight, count_step
from palindiff.training.cost.weight_free import WeightFreeRun, WeightFreeUniDiff, fake_run, fake_unidiff
from palindiff.training.loop.distributed import UNITS, is_sharded
from palindiff.training.loop.loop_config import check_shares
from palindiff.training.recipes.schema import DiffDisRecipe
from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe

MOST_CHUNKS = 3  # of a gradient cache, that are run
Run = WeightFreeRun | WeightFreeUniDiff
Estimated = DiffDisRecipe | UniDiffRecipe


class Parameters(BaseModel, frozen=True):
    """How many weights, and where."""

    parts: dict[str, int]  # by the name of the part
    trained: int
    new: dict[str, int]  # the query stream's, in the order in which a query meets them; of UniDiff what it adds


class Memory(BaseModel, frozen=True):
    """Bytes on the device of one process."""

    weights: int  # trained ones
    gradients: int
    optimizer: int
    ema: int
    exchange: int  # what several processes collect gradients in
    frozen: int  # the VAE, and what of the other parts is not trained
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


class Hardware(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What the run is estimated for."""

    device: DeviceKind = "gpu"
    processes: int = Field(1, gt=0)  # each with a device of its own
    device_tflops: float | None = Field(None, gt=0)  # sustained by one device, TFLOP a second


def estimate(recipe: Estimated, hardware: Hardware, num_images: int | None = None) -> Estimate:
    """Estimate a run of a recipe, and naming with what it trains.

    Raises: FileNotFoundError, ModuleNotFoundError, ValueError if a config of a frozen part cannot be had, or the batch
        does not divide evenly over processes and accumulation.
    """
    processes = hardware.processes
    check_shares(recipe.loop, processes)
    if isinstance(recipe, UniDiffRecipe):
        with fake_unidiff(recipe) as unidiff:
            step = {"all losses": unidiff_step_tflop(unidiff, recipe, processes)}
            work = Work(step=step, named_image={"image encoder": clip_tflop(unidiff)})
            return _estimate(unidiff, recipe, hardware, num_images, work)
    with fake_run(recipe) as run:
        work = Work(step=step_tflop(run, recipe, processes), named_image=naming_tflop(run, recipe.evaluation))
        return _estimate(run, recipe, hardware, num_images, work)


def _estimate(run: Run, recipe: Estimated, hardware: Hardware, num_images: int | None, work: Work) -> Estimate:
    return Estimate(
        parameters=count_parameters(run),
        memory_bytes=count_memory(run, recipe, hardware),
        tflop=work,
        disk_bytes=count_disk(run, recipe, num_images),
        time=count_time(work, recipe, hardware),
    )


def count_parameters(run: Run) -> Parameters:
    """Count weights by part, and the new ones by place."""
    new = _new_of_unidiff(run) if isinstance(run, WeightFreeUniDiff) else _new_of_diffdis(run)
    return Parameters(
        parts={name: _count(part) for name, part in run.parts.items()},
        trained=sum(weight.numel() for weight in run.objective.parameters() if weight.requires_grad),
        new={name: count for name, count in new.items() if count},
    )


def _new_of_diffdis(run: WeightFreeRun) -> dict[str, int]:
    stream = run.objective.query_stream
    new = {f"site {i}, {site.into.out_features} wide": _count(site) for i, site in enumerate(stream.layers.sites, 1)}
    new |= {name: _count(child) for name, child in stream.named_children() if name not in ("sites", "clip_projection")}
    return new | {"logit_scale": stream.log_logit_scale.numel()}


def _new_of_unidiff(run: WeightFreeUniDiff) -> dict[str, int]:
    lora = sum(weight.numel() for name, weight in run.objective.named_parameters() if ".lora_" in name)
    projection = run.objective.projection
    return {"projection of consistency": 0 if projection is None else _count(projection), "LoRA": lora}


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def count_memory(run: Run, recipe: Estimated, hardware: Hardware) -> Memory:
    """Count what one process holds, on `fake_run` or `fake_unidiff`, one step of which is run."""
    held, loop = count_held(run, recipe, hardware), recipe.loop
    num_rows = loop.batch_size // (loop.accumulation * hardware.processes)
    activations, peak = _step_bytes(run, recipe, hardware.device, num_rows)
    # sharded gradients are freed while others are computed
    is_shared = is_sharded(recipe.machine, hardware.processes)
    beside = activations if is_shared else peak - held["gradients"]
    return Memory(**held, activations=activations, peak=sum(held.values()) + beside)


def _step_bytes(run: Run, recipe: Estimated, device: DeviceKind, num_rows: int) -> tuple[int, int]:
    """Run a step. With many chunks of a gradient cache, run two and three, and extrapolate linearly.

    Units: -> bytes of the most activations at once, and of the most that a step makes, gradients included.
    """
    chunk = recipe.loop.grad_cache_size
    if chunk and num_rows > MOST_CHUNKS * chunk:
        two, three = (_step_bytes(run, recipe, device, number * chunk) for number in (2, 3))
        num_more = num_rows / chunk - 2
        activations, peak = (round(a + num_more * (b - a)) for a, b in zip(two, three, strict=True))
        return activations, peak
    rows = torch.arange(num_rows)
    batch, draws = run.features.read(rows, torch.rand(num_rows, 2)), run.objective.draw(num_rows, torch.Generator())
    num_parts = min(recipe.loop.accumulation, 2)  # in the second the gradients of the first are there
    live = count_step(run.objective.train(), batch, draws, num_parts, recipe.machine.precision, device)
    is_cached = chunk and num_rows > chunk  # gradients then live from the first chunk on, counted when all are summed
    return live.peak - live.gradients if is_cached else live.activations_peak, live.peak


def count_held(run: Run, recipe: Estimated, hardware: Hardware) -> dict[str, int]:
    """Bytes by the name that `Memory` gives them, of what one process holds from step to step."""
    trained, is_shared = count_parameters(run).trained, is_sharded(recipe.machine, hardware.processes)
    shares = hardware.processes if is_shared else 1
    per_weight = bytes_per_weight(recipe, hardware.device)
    held = {name: round(trained * each) // shares for name, each in per_weight.items()}
    held["exchange"] = _whole_units_bytes(run.objective) if is_shared else 0
    if hardware.processes > 1 and not is_shared:
        held["exchange"] = held["gradients"]
    models = (run.objective, *run.parts.values())
    every = {id(weight): weight.numel() for model in models for weight in model.parameters()}
    held["frozen"] = (sum(every.values()) - trained) * FP32
    return held


def _whole_units_bytes(objective: nn.Module) -> int:
    """The weights that are whole on each process while a unit of a sharded objective runs."""
    units = [_count(each) for each in objective.modules() if isinstance(each, UNITS)]
    return (_count(objective) - sum(units) + max(units, default=0)) * FP32


def count_disk(run: Run, recipe: Estimated, num_images: int | None) -> Disk:
    """Sizes of what is cached: mean and deviation of each view, mirrored too if asked for; c and e unless live."""
    row, views = run.features.row, recipe.latent_views if isinstance(recipe, UniDiffRecipe) else recipe.views
    num_views = (1 + views.crops) * (1 if views.flip == "none" else 2)
    image = num_views * (row["z_mean"].nbytes + row["z_std"].nbytes)
    caption = sum(row[name].nbytes for name in ("c", "e_0") if name in row)
    total = None if num_images is None else num_images * (image + caption)
    return Disk(image=image, caption=caption, total=total)


def count_time(work: Work, recipe: Estimated, hardware: Hardware) -> Time | None:
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
