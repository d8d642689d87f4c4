"""What `palindiff adapt` trains: chosen by the number of images and the memory of the device.

Here: the choice, and the sentence that says why. Not here: the recipe that it changes (`adapt.yaml`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from palindiff.training.recipes.unidiff_recipe import Trained

FEW_IMAGES = 1_000  # below, all weights would learn the images by heart: LoRA
EPOCHS = 40  # at most; training stops earlier where validation recall no longer rises
MAX_STEPS, MIN_STEPS = 10_000, 100
NUM_EVALUATIONS, MIN_STEPS_BETWEEN = 40, 10
SHARE_OF_WARM_UP = 0.05  # of the steps; it ends before the evaluations without a better score that stop training
SHARE_FOR_WEIGHTS = 0.6  # of the memory; the rest is for activations
BYTES_PER_WEIGHT = {"frozen": 4, "trained": 4 + 4 + 8 + 4}  # weights; and gradient, AdamW's moments, EMA
ROWS_PER_GIB = 2.0  # a guess, not measured: whose activations fit beside the weights, at full size, checkpointed
LEARNING_RATE: Mapping[Trained, float] = {"all": 1e-5, "attention": 1e-5, "lora": 1e-4}


@dataclass(frozen=True)
class Preset:
    """Settings of a recipe, and why they were chosen."""

    settings: tuple[str, ...]  # KEY=VALUE
    reasons: tuple[str, ...]


def choose_preset(
    num_images: int,
    memory_bytes: int,
    num_weights: int,
    num_attention: int,
    is_small: bool,
    asked_for: Trained | None = None,
    computes_bf16: bool = False,
) -> Preset:
    """Choose what is trained, the batch, the rows in memory at once, and the number of steps.

    num_images: to train on. memory_bytes: of the device. num_weights: of CLIP and the U-Net together; num_attention:
    of CLIP and the U-Net's attention. is_small: models so small that activations need no care. asked_for: what the
    user has trained in any case. computes_bf16: whether the device is a GPU that computes in bfloat16.
    """
    gib = memory_bytes / 2**30
    room = SHARE_FOR_WEIGHTS * memory_bytes
    fits: dict[Trained, float] = {
        "all": num_weights * BYTES_PER_WEIGHT["trained"],
        "attention": num_attention * BYTES_PER_WEIGHT["trained"]
        + (num_weights - num_attention) * BYTES_PER_WEIGHT["frozen"],
    }
    trained: Trained = next((each for each, taken in fits.items() if taken <= room), "lora")
    why = f"{trained} is what fits {gib:,.0f} GiB"
    if num_images < FEW_IMAGES:
        trained, why = "lora", f"{num_images:,} images are fewer than {FEW_IMAGES:,}"
    if asked_for is not None:
        trained, why = asked_for, "was asked for"
    batch_size = max(2, min(64, num_images))
    rows = 0 if is_small else max(1, min(batch_size, int(ROWS_PER_GIB * gib * (1 - SHARE_FOR_WEIGHTS))))
    steps = max(MIN_STEPS, min(MAX_STEPS, EPOCHS * num_images // batch_size))
    every = max(MIN_STEPS_BETWEEN, steps // NUM_EVALUATIONS)
    settings = (
        f"trained={trained}", f"optimizer.learning_rate={LEARNING_RATE[trained]:g}", f"loop.batch_size={batch_size}",
        f"loop.grad_cache_size={0 if rows >= batch_size else rows}", f"loop.num_steps={steps}",
        f"optimizer.warmup_steps={max(1, round(SHARE_OF_WARM_UP * steps))}",
        f"loop.evaluate_every={every}", f"loop.save_every={every}",
        f"machine.gradient_checkpointing={'false' if is_small else 'true'}",
        f"machine.precision={'bf16' if computes_bf16 else 'fp32'}",
    )  # fmt: skip
    cached = f", the activations of {rows} in memory at once" if 0 < rows < batch_size else ""
    reasons = (
        f"Trained: {trained}, {'which' if asked_for else 'as'} {why}.",
        f"Batches of {batch_size} images, all of which are negatives{cached}.",
        f"At most {steps:,} steps, {EPOCHS} times over the images; recall is measured every {every} steps.",
    )
    return Preset(settings, reasons)
