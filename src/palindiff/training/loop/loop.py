"""The training loop: batch, objective, backward, clip, step, EMA, log, evaluate, save.

Here: the order of those nine steps, for any objective. Not here: losses (`objectives/`), what a batch holds
(`features/`), what is saved for resuming (`checkpoint.py`).
"""

import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from palindiff.seeds import seeded_generator
from palindiff.training.loop.checkpoint import TrainState
from palindiff.training.loop.device import MachineConfig, attention_backend
from palindiff.training.loop.distributed import (
    Distributed,
    check_agreement,
    distribute,
    no_gradient_sync,
    trained_weights,
    whole,
)
from palindiff.training.loop.ema import EMA
from palindiff.training.loop.loop_config import LoopConfig, check_shares
from palindiff.training.loop.optimizer import OptimizerConfig
from palindiff.training.loop.order import rows_of_step
from palindiff.training.loop.run_log import RunLog

MicroBatch = tuple[dict[str, Tensor], dict[str, Tensor]]  # batch and draws, as `Objective` takes them
StepBatches = Future[list[MicroBatch]]


class TrainingSet(Protocol):
    """Rows that can be read by number, with two uniform numbers each for what is drawn per row (flip, caption)."""

    def __len__(self) -> int: ...

    def read(self, rows: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        """Read rows (b,) int64 with uniform (b, 2) in [0, 1) -> tensors whose first dimension is b."""
        ...


class Objective(Protocol):
    """A module of trainable parts: batch and draws in, named losses out; `loss` is what is minimised."""

    def draw(self, b: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw all random numbers that a batch of b rows needs, so that any share of it can be computed alone."""
        ...

    def __call__(self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute named losses () from a batch and its draws."""
        ...


class Run(Protocol):
    """All that the loop needs: what to train, on what, how, and how it is evaluated. A `Trainer` is one."""

    loop: LoopConfig
    optimizer: OptimizerConfig
    machine: MachineConfig
    objective: nn.Module
    training_set: TrainingSet
    fingerprints: Mapping[str, str]  # of data and frozen models, by name
    run_log: RunLog
    output: Path  # states are saved below `output / "state"`

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group the trained weights as torch.optim takes them: params and lr."""
        ...

    def evaluate(self, step: int) -> dict[str, float]:
        """Compute named numbers of the EMA weights, which the objective then holds."""
        ...

    @property
    def evaluates_start(self) -> bool:
        """Whether to evaluate before the first step too."""
        ...

    def stops_early(self, step: int) -> bool:
        """Whether the last evaluations were no better than one before; asked on the main process, after each."""
        ...


def train(run: Run, accelerator: Accelerator) -> TrainState:
    """Train until `num_steps`, or until the run stops early, resuming from the newest saved state.

    The objective then holds the EMA weights.

    Raises: FloatingPointError if the loss or the gradient is not finite; ValueError if the newest state is damaged or
        of another recipe; OSError if a state cannot be written.
    """
    check_shares(run.loop, accelerator.num_processes)
    settings = {"`loop`": run.loop.model_dump_json(), "`optimizer`": run.optimizer.model_dump_json()}
    check_agreement({**run.fingerprints, **settings}, accelerator)
    distributed = distribute(run.objective, run.parameter_groups(), run.optimizer, run.machine, accelerator)
    trained = trained_weights(distributed.sharded_model).values()
    ema = EMA(trained, run.loop.ema_decay, run.loop.ema_every, run.machine.ema_device)
    state = TrainState(distributed, ema, run.output / "state", run.fingerprints)
    state.resume(accelerator)
    run.run_log.start(state.step, run.loop, accelerator)
    batches = None
    if state.step == 0 and run.evaluates_start:
        evaluate(run, state, accelerator)
    is_over = stops_early(run, state.step, accelerator)
    try:
        while state.step < run.loop.num_steps and not is_over:
            with read_ahead(run, accelerator, state.step + 1) as following:
                numbers = train_step(run, distributed, accelerator, state.step, batches)
            batches = following
            state.advance(run.loop.num_steps)
            run.run_log.step(state.step, numbers)
            is_last = state.step == run.loop.num_steps
            if _is_due(state.step, run.loop.evaluate_every, is_last):
                evaluate(run, state, accelerator)
                is_over = stops_early(run, state.step, accelerator)
            if _is_due(state.step, run.loop.save_every, is_last or is_over):
                state.save(accelerator)
    finally:
        run.run_log.finish()
    state.use_ema_weights()
    return state


def train_step(
    run: Run, distributed: Distributed, accelerator: Accelerator, step: int, batches: StepBatches | None = None
) -> dict[str, Tensor]:
    """Change the weights once: losses, gradient, clipping, AdamW at this step's learning rate.

    batches: of this step, being read in another thread; None reads them now.

    Returns: the named losses, `gradient_norm` before clipping and `rate_factor`, () float32 each.
    Raises: FloatingPointError if the loss or the gradient is not finite; the weights are then unchanged.
    """
    factor = run.optimizer.rate_factor(step, run.loop.num_steps)
    for group in distributed.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    losses = backward_step(run, distributed.objective, accelerator, step, batches)
    norm = whole(accelerator.clip_grad_norm_(distributed.objective.parameters(), run.optimizer.clip_norm or math.inf))
    run.run_log.check_finite(step, losses, norm)
    distributed.optimizer.step()
    distributed.optimizer.zero_grad()
    return losses | {"gradient_norm": norm, "rate_factor": torch.tensor(factor)}


def backward_step(
    run: Run, objective: nn.Module, accelerator: Accelerator, step: int, batches: StepBatches | None = None
) -> dict[str, Tensor]:
    """One step's losses and gradients, of `batches` if they are being read already.

    Returns: named losses () float32, mean over the micro-batches of this process.
    """
    loop = run.loop
    total: dict[str, Tensor] = {}
    micro_batches = batches.result() if batches is not None else read_batches(run, accelerator, step)
    for number, (batch, draws) in enumerate(micro_batches, start=1):
        is_last = number == loop.accumulation
        with no_gradient_sync(objective, accelerator, is_last):
            losses = compute_losses(objective, batch, draws, accelerator)
            with attention_backend(accelerator.device.type, accelerator.mixed_precision):
                accelerator.backward(losses["loss"] / loop.accumulation)
        for name, loss in losses.items():
            total[name] = total.get(name, 0) + loss.detach().float() / loop.accumulation
    return total


def read_batches(run: Run, accelerator: Accelerator, step: int) -> list[MicroBatch]:
    """Read this process's share of a step's micro-batches, and draw their random numbers.

    Rows and draws depend on seed and step alone, not on the number of processes.
    """
    loop, num_processes = run.loop, accelerator.num_processes
    size = loop.batch_size // loop.accumulation  # rows of a micro-batch, over all processes
    first, last = (size * (accelerator.process_index + one) // num_processes for one in (0, 1))
    rows = rows_of_step(step, loop.batch_size, len(run.training_set), loop.seed)
    generator = seeded_generator(loop.seed, "draws", step)
    found = []
    for micro_batch in rows.split(size):
        uniform = torch.rand(size, 2, generator=generator)
        draws = cast("Objective", run.objective).draw(size, generator)
        batch = run.training_set.read(micro_batch[first:last], uniform[first:last])
        found.append((batch, {name: tensor[first:last] for name, tensor in draws.items()}))
    return found


@contextmanager
def read_ahead(run: Run, accelerator: Accelerator, step: int) -> Iterator[StepBatches | None]:
    """Read a step's micro-batches in a thread while the block runs; None after the last step.

    The block ends when they are read, so that evaluation and saving never run beside it.
    """
    if step >= run.loop.num_steps:
        yield None
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        yield thread.submit(read_batches, run, accelerator, step)


def compute_losses(
    objective: nn.Module, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor], accelerator: Accelerator
) -> dict[str, Tensor]:
    """Compute an objective's losses on the accelerator's device and in its precision."""
    on_device = [{name: each.to(accelerator.device) for name, each in tensors.items()} for tensors in (batch, draws)]
    with attention_backend(accelerator.device.type, accelerator.mixed_precision), accelerator.autocast():
        losses: dict[str, Tensor] = objective(*on_device)
    return losses


def evaluate(run: Run, state: TrainState, accelerator: Accelerator) -> None:
    """Evaluate the EMA weights, on the main process alone, and log the numbers."""
    started = time.perf_counter()
    with state.ema_weights(accelerator.is_main_process), torch.no_grad():  # all processes take part in gathering
        if accelerator.is_main_process:
            numbers = run.evaluate(state.step)
            run.run_log.evaluation(state.step, numbers, time.perf_counter() - started)
    accelerator.wait_for_everyone()


def stops_early(run: Run, step: int, accelerator: Accelerator) -> bool:
    """Ask the main process whether training is over, so that all processes stop at the same step."""
    answer = [run.stops_early(step)] if accelerator.is_main_process else [False]
    return bool(broadcast_object_list(answer)[0])


def _is_due(step: int, every: int, is_last: bool) -> bool:
    return is_last or bool(every and step % every == 0)
