"""What `palindiff adapt` trains: chosen by the number of images and the memory of the device.

Here: the choice, and the sentences that say why. Not here: counting memory (`training/cost/`), the recipe that the
choice changes (`adapt.yaml`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from palindiff.training.recipes.unidiff_recipe import Trained

FEW_IMAGES = 1_000  # below, all weights would learn the images by heart: LoRA
EPOCHS = 40  # at most; training stops earlier where validation recall no longer rises
MAX_STEPS, MIN_STEPS = 10_000, 100
NUM_EVALUATIONS, MIN_STEPS_BETWEEN = 40, 10
SHARE_OF_WARM_UP = 0.05  # of the steps; it ends before the evaluations without a better score that stop training
BATCH_SIZE = 64  # unless another is asked for
FEW_ROWS = 4  # beside the whole batch, what the memory of a row is counted on; fewer at once train slowly
SHARE_OF_MEMORY = 0.85  # that a step may take as it is counted; the rest is for kernels, allocator and driver
LEARNING_RATE: Mapping[Trained, float] = {"all": 1e-5, "attention": 1e-5, "lora": 1e-4}
GIB = 2**30


@dataclass(frozen=True)
class Preset:
    """Settings of a recipe, and why they were chosen."""

    settings: tuple[str, ...]  # KEY=VALUE
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """A way to train: what, and how many rows have their activations in memory at once."""

    trained: Trained
    rows: int
    checkpoints: bool  # gradient checkpointing


@dataclass(frozen=True)
class Taken:
    """Bytes of the device that a step takes."""

    at_once: int  # if the rows are the whole batch
    in_chunks: int  # if they are a chunk of the gradient cache: all gradients are there from the first one on


Count = Callable[[Trial], Taken]


def choose_preset(
    num_images: int,
    memory_bytes: int,
    count: Count,
    asked_for: Trained | None = None,
    batch_size: int | None = None,
    computes_bf16: bool = False,
) -> Preset:
    """Choose what is trained, the batch, the rows in memory at once, and the number of steps.

    num_images: to train on. memory_bytes: of the device. asked_for, batch_size: what the user wants in any case; None:
    free. computes_bf16: whether the device is a GPU that computes in bfloat16.
    """
    room = round(SHARE_OF_MEMORY * memory_bytes)
    batch_size = max(2, min(BATCH_SIZE, num_images)) if batch_size is None else batch_size
    candidates: tuple[Trained, ...] = ("all", "attention", "lora")
    why = f"as it is the most that fits into {memory_bytes / GIB:,.0f} GiB"
    if num_images < FEW_IMAGES:
        candidates, why = ("lora",), f"as {num_images:,} images are fewer than {FEW_IMAGES:,}"
    if asked_for is not None:
        candidates, why = (asked_for,), "which was asked for"
    for trained in candidates:
        trial, taken = _largest(trained, batch_size, room, count)
        if taken <= room:
            break
    rows, steps = trial.rows, max(MIN_STEPS, min(MAX_STEPS, EPOCHS * num_images // batch_size))
    every = max(MIN_STEPS_BETWEEN, steps // NUM_EVALUATIONS)
    settings = (
        f"trained={trained}", f"optimizer.learning_rate={LEARNING_RATE[trained]:g}", f"loop.batch_size={batch_size}",
        f"loop.grad_cache_size={0 if rows >= batch_size else rows}", f"loop.num_steps={steps}",
        f"optimizer.warmup_steps={max(1, round(SHARE_OF_WARM_UP * steps))}",
        f"loop.evaluate_every={every}", f"loop.save_every={every}",
        f"machine.gradient_checkpointing={'true' if trial.checkpoints else 'false'}",
        f"machine.precision={'bf16' if computes_bf16 else 'fp32'}",
    )  # fmt: skip
    cached = f", the activations of {rows} in memory at once" if rows < batch_size else ""
    size = f"A step takes about {taken / GIB:,.1f} GiB, as counted beforehand; there are {memory_bytes / GIB:,.0f} GiB"
    reasons = (
        f"Trained: {trained}, {why}.",
        f"Batches of {batch_size} images, all of which are negatives{cached}.",
        f"{size}." if taken <= room else f"{size}, so training may run out of memory.",
        f"At most {steps:,} steps, {EPOCHS} times over the images; recall is measured every {every} steps.",
    )
    return Preset(settings, reasons)


def _largest(trained: Trained, batch_size: int, room: int, count: Count) -> tuple[Trial, int]:
    """Find the quickest way to train that fits, and the bytes it takes; where none fits, one of single rows."""
    whole = Trial(trained, batch_size, checkpoints=False)
    if (taken := count(whole).at_once) <= room:
        return whole, taken
    few = Trial(trained, min(FEW_ROWS, batch_size), checkpoints=True)
    if (of_few := count(few).in_chunks) > room:
        return Trial(trained, 1, checkpoints=True), of_few
    whole = Trial(trained, batch_size, checkpoints=True)
    if (of_all := count(whole)).at_once <= room:
        return whole, of_all.at_once
    per_row = max((of_all.in_chunks - of_few) / max(batch_size - few.rows, 1), 1)
    rows = min(few.rows + int((room - of_few) / per_row), max(batch_size - 1, 1))
    return Trial(trained, rows, checkpoints=True), round(of_few + (rows - few.rows) * per_row)
