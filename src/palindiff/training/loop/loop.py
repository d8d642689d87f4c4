"""The training loop: batch, objective, backward, clip, step, EMA, log, evaluate, save.

Here: the order of those nine and nothing of what is trained. Not here: losses (`objectives/`), what a batch holds
(`features.py`, `vae.py`), what is kept for resuming (`state.py`). The loop knows no modality.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import torch
from accelerate import Accelerator
from pydantic import BaseModel, Field
from torch import Tensor, nn

from palindiff.training.loop.attention import attention_backend
from palindiff.training.loop.checkpoint import TrainState
from palindiff.training.loop.distributed import Placed, gradients_wait, place, trained_weights, whole
from palindiff.training.loop.ema import EMA, Place
from palindiff.training.loop.order import random_generator, rows_of_step
from palindiff.training.loop.run_log import RunLog


class OptimizerConfig(BaseModel, frozen=True, extra="forbid"):
    """AdamW with two learning rates, warm-up, and an optional decay to zero at the end."""

    kind: Literal["adamw", "adamw_8bit"] = "adamw"  # "adamw_8bit": moments in a quarter of the memory; extra `memory`
    learning_rate: float = Field(1e-5, gt=0)  # of weights that start from a trained model (the paper: U-Net)
    new_learning_rate: float = Field(1e-4, gt=0)  # of new weights (the paper: the second stream)
    weight_decay: float = Field(1e-4, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = Field(1000, ge=0)  # linear from 0; 0 turns it off
    decay: Literal["none", "cosine", "linear"] = "none"  # how the rate falls to zero over the last `decay_steps`
    decay_steps: int = Field(0, ge=0)
    cycles: int = Field(1, gt=0)  # equal parts of a run, each with its own warm-up and decay (warm restarts)
    clip_norm: float = Field(1.0, ge=0)  # of the gradient over all parameters; 0 turns clipping off

    def rate_factor(self, step: int, num_steps: int) -> float:
        """Share of the full learning rate at a step counted from 0; the last step of a decay still learns.

        Source: SGDR (Loshchilov and Hutter, ICLR 2017) for `cycles`; what does not divide evenly lengthens the last.
        """
        cycle_steps = max(1, num_steps // self.cycles)
        cycle = min(step // cycle_steps, self.cycles - 1)
        num_steps = num_steps - cycle * cycle_steps if cycle == self.cycles - 1 else cycle_steps
        step -= cycle * cycle_steps
        factor = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        decay_steps = min(self.decay_steps, num_steps)
        if self.decay != "none" and decay_steps:
            remaining = min(1.0, (num_steps - step) / decay_steps)
            factor *= remaining if self.decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * remaining)
        return factor


class LoopConfig(BaseModel, frozen=True, extra="forbid"):
    """How long, how much at once, how often to look."""

    num_steps: int = Field(gt=0)
    batch_size: int = Field(64, gt=0)  # rows of one step, over all processes and accumulation together
    accumulation: int = Field(1, gt=0)  # a step's rows go through in so many parts; negatives stay within a part
    seed: int = Field(0, ge=0)
    ema_decay: float = Field(0.9999, ge=0, lt=1)  # of the weights' average, each step; warms up; 0 follows the weights
    ema_every: int = Field(1, gt=0)  # steps between two moves of the average; each makes up for the steps between
    evaluate_every: int = Field(500, ge=0)  # steps; 0 evaluates only at the end
    save_every: int = Field(500, ge=0)  # steps; 0 saves only at the end
    log_every: int = Field(50, gt=0)  # steps


class MachineConfig(BaseModel, frozen=True, extra="forbid"):
    """What may change from machine to machine; only `precision` alters numbers and is part of a run's identity."""

    precision: Literal["fp32", "bf16"] = "fp32"
    num_threads: int = Field(0, ge=0)  # of torch on a CPU; 0 leaves torch's choice
    gradient_checkpointing: bool = False  # True: the U-Net's activations are computed twice, for less memory
    sharding: Literal["none", "fsdp"] = "none"  # "fsdp": each of several processes holds a share of the weights
    ema_device: Place = "same"  # where the average lies; "cpu" frees as much of a GPU as the weights take
    num_workers: int = Field(0, ge=0)  # processes that decode images; 0 decodes in the main process
    cache_dir: str | None = None  # where features are kept; None is $PALINDIFF_CACHE or the user's cache folder


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


Evaluator = Callable[[int], dict[str, float]]  # step -> named numbers; runs on the EMA weights


@dataclass
class Run:
    """All that the loop needs: what to train, on what, how, and who looks at it."""

    objective: nn.Module
    parameter_groups: list[dict[str, Any]]  # as torch.optim takes them: params and lr
    training_set: TrainingSet
    loop: LoopConfig
    optimizer: OptimizerConfig
    machine: MachineConfig
    run_log: RunLog
    state_dir: str
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # fingerprints of data and frozen models, by name
    evaluators: Sequence[Evaluator] = field(default_factory=tuple)


def train(run: Run, accelerator: Accelerator) -> TrainState:
    """Train until `num_steps`, going on from the newest saved state; afterwards the objective holds the EMA weights.

    Raises: FloatingPointError if the loss or the gradient is not finite; ValueError if the newest state is damaged or
        another recipe's; OSError if a state cannot be written.
    """
    check_shares(run.loop, accelerator.num_processes)
    placed = place(run, accelerator)
    average = EMA(
        trained_weights(placed.module).values(), run.loop.ema_decay, run.loop.ema_every, run.machine.ema_device
    )
    state = TrainState(placed.module, placed.optimizer, average, run.state_dir, run.fingerprints, placed.shown)
    state.resume()
    run.run_log.start(state.step, run.loop, accelerator)
    try:
        while state.step < run.loop.num_steps:
            numbers = train_step(run, placed, accelerator, state.step)
            state.advance()
            run.run_log.step(state.step, numbers)
            is_last = state.step == run.loop.num_steps
            if _is_due(state.step, run.loop.evaluate_every, is_last):
                evaluate(run, state, accelerator)
            if _is_due(state.step, run.loop.save_every, is_last):
                state.save(accelerator)
    finally:
        run.run_log.finish()
    state.use_ema_weights()
    return state


def train_step(run: Run, placed: Placed, accelerator: Accelerator, step: int) -> dict[str, Tensor]:
    """Change the weights once: losses, gradient, clipping, AdamW at this step's learning rate.

    Returns: the named losses, `gradient_norm` before clipping and `rate_factor`, () float32 each.
    Raises: FloatingPointError if the loss or the gradient is not finite; the weights are then as they were.
    """
    factor = run.optimizer.rate_factor(step, run.loop.num_steps)
    for group in placed.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    losses = backward_step(run, placed.objective, accelerator, step)
    norm = whole(accelerator.clip_grad_norm_(placed.objective.parameters(), run.optimizer.clip_norm or math.inf))
    run.run_log.check_finite(step, losses, norm)
    placed.optimizer.step()
    placed.optimizer.zero_grad()
    return losses | {"gradient_norm": norm, "rate_factor": torch.tensor(factor)}


def backward_step(run: Run, objective: nn.Module, accelerator: Accelerator, step: int) -> dict[str, Tensor]:
    """One step's losses and gradients; rows and draws depend on seed and step alone, not on the number of processes.

    Returns: named losses () float32, mean over the parts of this process's share.
    """
    loop, num_processes = run.loop, accelerator.num_processes
    part_size = loop.batch_size // loop.accumulation
    rows = rows_of_step(step, loop.batch_size, len(run.training_set), loop.seed)
    generator = random_generator(loop.seed, "draws", step)
    total: dict[str, Tensor] = {}
    for part in range(loop.accumulation):
        uniform = torch.rand(part_size, 2, generator=generator)
        draws = cast("Objective", run.objective).draw(part_size, generator)
        share = slice(
            part_size * accelerator.process_index // num_processes,
            part_size * (accelerator.process_index + 1) // num_processes,
        )
        batch = run.training_set.read(rows[part * part_size : (part + 1) * part_size][share], uniform[share])
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        draws = {name: tensor[share].to(accelerator.device) for name, tensor in draws.items()}
        is_last = part == loop.accumulation - 1
        with gradients_wait(objective, accelerator, is_last), attention_backend(accelerator):
            with accelerator.autocast():
                losses = objective(batch, draws)
            accelerator.backward(losses["loss"] / loop.accumulation)
        for name, loss in losses.items():
            total[name] = total.get(name, 0) + loss.detach().float() / loop.accumulation
    return total


def evaluate(run: Run, state: TrainState, accelerator: Accelerator) -> None:
    """Run every evaluator on the EMA weights, on the main process alone, and write down what they say."""
    if run.evaluators:
        started, is_main = time.perf_counter(), accelerator.is_main_process
        with state.ema_weights(is_seen=is_main), torch.no_grad():  # on every process: shares are gathered by all
            if is_main:
                numbers = {name: value for each in run.evaluators for name, value in each(state.step).items()}
                run.run_log.evaluation(state.step, numbers, time.perf_counter() - started)
    accelerator.wait_for_everyone()


def check_shares(loop: LoopConfig, num_processes: int) -> None:
    """Refuse a batch that does not divide evenly over processes and accumulation."""
    if loop.batch_size % (loop.accumulation * num_processes):
        raise ValueError(
            f"`loop.batch_size` is {loop.batch_size} with accumulation {loop.accumulation} and {num_processes} "
            f"processes. Expected a multiple of {loop.accumulation * num_processes}. Change one of the three."
        )


def _is_due(step: int, every: int, is_last: bool) -> bool:
    return is_last or bool(every and step % every == 0)
