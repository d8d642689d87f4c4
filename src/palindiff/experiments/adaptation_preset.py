"""What `palindiff adapt` trains: chosen by the number of images and the memory of the device.

Here: the choice, and the sentences that say why. Not here: counting memory (`training/cost/`), the recipe that the
choice changes (`adapt.yaml`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from palindiff.training.recipes.unidiff_recipe import Trained

FEW_IMAGES = 1_000  # below, all weights would learn the images by heart: LoRA
EPOCHS = 40  # at most; training stops earlier where validation recall no longer rises
MAX_STEPS, MIN_STEPS = 10_000, 100
NUM_EVALUATIONS, MIN_STEPS_BETWEEN = 40, 10
SHARE_OF_WARM_UP = 0.05  # of the steps; it ends before the evaluations without a better score that stop training
BATCH_SIZE = 64  # unless another is asked for
MIN_ROWS, MORE_ROWS = 4, 16  # chunks of the gradient cache that are counted; smaller ones are slow, and a last resort
LEARNING_RATE: Mapping[Trained, float] = {"all": 1e-5, "attention": 1e-5, "lora": 1e-4}
GIB = 2**30


class Preset(BaseModel, frozen=True, extra="forbid"):
    """Settings of a recipe, and why they were chosen."""

    settings: tuple[str, ...]  # KEY=VALUE
    reasons: tuple[str, ...]
    images: tuple[str, ...] = ()  # fingerprints of those to train on and of those held out


class Trial(NamedTuple):
    """A way to train: what, how many rows have their activations in memory at once, and how."""

    trained: Trained
    rows: int
    checkpoints: bool  # gradient checkpointing
    is_chunk: bool  # rows are a chunk of the gradient cache; else they are the whole micro-batch


class Wishes(NamedTuple):
    """What the user sets in any case; None: free."""

    trained: Trained | None = None
    batch_size: int | None = None
    accumulation: int = 1
    grad_cache_size: int | None = None
    checkpoints: bool | None = None
    num_steps: int | None = None
    evaluate_every: int | None = None  # steps


class Device(NamedTuple):
    """What trains."""

    memory_bytes: int
    share: float  # of the memory that a step may take as it is counted
    computes_bf16: bool = False  # a GPU that computes in bfloat16 itself


Count = Callable[[Trial], int]  # bytes that a step takes of the device


def choose_preset(num_images: int, device: Device, count: Count, wishes: Wishes = Wishes()) -> Preset:  # noqa: B008
    """Choose what is trained, the batch, the rows in memory at once, and the number of steps.

    num_images: to train on.
    """
    room = round(device.share * device.memory_bytes)
    batch_size = wishes.batch_size or _batch_size(num_images, wishes.accumulation)
    micro_batch = max(1, batch_size // wishes.accumulation)
    candidates: tuple[Trained, ...] = ("all", "attention", "lora")
    why = f"as it is the most that fits into {device.memory_bytes / GIB:,.0f} GiB"
    if num_images < FEW_IMAGES:
        candidates, why = ("lora",), f"as {num_images:,} images are fewer than {FEW_IMAGES:,}"
    if wishes.trained is not None:
        candidates, why = (wishes.trained,), "which was asked for"
    for trained in candidates:
        trial, taken = _largest(trained, micro_batch, room, count, wishes, is_last=trained == candidates[-1])
        if taken <= room:
            break
    else:
        why = why if len(candidates) == 1 else "as it takes the least"
    steps = wishes.num_steps or max(MIN_STEPS, min(MAX_STEPS, EPOCHS * num_images // batch_size))
    usual = max(MIN_STEPS_BETWEEN, steps // NUM_EVALUATIONS)
    every = usual if wishes.evaluate_every is None else wishes.evaluate_every
    settings = (
        f"trained={trained}", f"optimizer.learning_rate={LEARNING_RATE[trained]:g}", f"loop.batch_size={batch_size}",
        f"loop.grad_cache_size={trial.rows if trial.is_chunk else 0}", f"loop.num_steps={steps}",
        f"optimizer.warmup_steps={max(1, round(SHARE_OF_WARM_UP * steps))}",
        f"loop.evaluate_every={every}", f"loop.save_every={every or usual}",
        f"machine.gradient_checkpointing={'true' if trial.checkpoints else 'false'}",
        f"machine.precision={'bf16' if device.computes_bf16 else 'fp32'}",
    )  # fmt: skip
    negatives = "all of which are" if micro_batch == batch_size else f"each {micro_batch} of which are each other's"
    cached = f", the activations of {trial.rows} in memory at once" if trial.is_chunk else ""
    passes, when = steps * batch_size / num_images, f"recall is measured every {every} steps"
    times = f"{passes:,.0f}" if passes >= 2 else f"{passes:.2g}"
    when = when if every else "recall is measured at the end"
    size = f"A step takes about {taken / GIB:,.1f} of {device.memory_bytes / GIB:,.1f} GiB, as counted beforehand"
    reasons = (
        f"Trained: {trained}, {why}.",
        f"Batches of {batch_size} images, {negatives} negatives{cached}.",
        f"{size}." if taken <= room else f"{size}: training may run out of memory.",
        f"At most {steps:,} steps, {times} times over the images; {when}.",
    )
    return Preset(settings=settings, reasons=reasons)


def _batch_size(num_images: int, accumulation: int) -> int:
    """As many images as are usual, and there are, in equal parts."""
    most = max(2, min(BATCH_SIZE, num_images))
    return max(accumulation, most - most % accumulation)


def _largest(
    trained: Trained, micro_batch: int, room: int, count: Count, wishes: Wishes, is_last: bool
) -> tuple[Trial, int]:
    """Find the quickest way to train that fits, and the bytes it takes; where none fits, the one that takes least.

    Chunks of less than MIN_ROWS rows are for the last of what may be trained.
    """
    options = (False, True) if wishes.checkpoints is None else (wishes.checkpoints,)
    chunk = wishes.grad_cache_size
    if chunk is None or not 0 < chunk < micro_batch:
        for checkpoints in options:
            trial = Trial(trained, micro_batch, checkpoints, is_chunk=False)
            if (taken := count(trial)) <= room:
                return trial, taken
        if chunk is not None or micro_batch == 1:
            return trial, taken
    few = Trial(trained, min(chunk or MIN_ROWS, micro_batch - 1), options[-1], is_chunk=True)
    of_few, more = count(few), min(MORE_ROWS, micro_batch - 1)
    if chunk is not None or more <= few.rows or (of_few > room and not is_last):
        return few, of_few
    per_row = max((count(few._replace(rows=more)) - of_few) / (more - few.rows), 1)
    rows = max(1, min(few.rows + int((room - of_few) // per_row), micro_batch - 1))
    return few._replace(rows=rows), round(of_few + (rows - few.rows) * per_row)


def read_preset(file: Path) -> Preset:
    """Read what was chosen when a run began.

    Raises: ValueError if the file was changed.
    """
    try:
        return Preset.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ValueError(
            f"`{file}` is not what `palindiff adapt` wrote when the run began: {error.errors()[0]['msg']}. Expected "
            "the settings that were chosen. Use another --output."
        ) from error
