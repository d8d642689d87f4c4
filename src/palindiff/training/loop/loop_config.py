"""The recipe section `loop`: how long to train, how large the batches are, how often to evaluate, save and log."""

from pydantic import BaseModel, Field


class LoopConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Number of steps, batch size, EMA, and the intervals of evaluation, saving and logging."""

    num_steps: int = Field(gt=0)
    batch_size: int = Field(64, gt=0)  # rows per step, over all processes and micro-batches
    accumulation: int = Field(1, gt=0)  # micro-batches per step; negatives are found within one micro-batch
    grad_cache_size: int = Field(0, ge=0)
    """Rows of a process whose activations are in memory at once; all of a micro-batch are negatives; 0: all rows"""
    seed: int = Field(0, ge=0)
    ema_decay: float = Field(0.9999, ge=0, lt=1)  # per step; warms up; 0 makes the average equal to the weights
    ema_every: int = Field(1, gt=0)  # steps between EMA updates, besides the first and the last; decays multiply
    evaluate_every: int = Field(500, ge=0)  # steps; 0 evaluates only at the end
    save_every: int = Field(500, ge=0)  # steps; 0 saves only at the end
    log_every: int = Field(50, gt=0)  # steps


def check_shares(loop: LoopConfig, num_processes: int) -> None:
    """Refuse a batch that does not divide evenly over processes and micro-batches.

    Raises: ValueError.
    """
    if loop.batch_size % (loop.accumulation * num_processes):
        raise ValueError(
            f"`loop.batch_size` is {loop.batch_size} with accumulation {loop.accumulation} and {num_processes} "
            f"processes. Expected a multiple of {loop.accumulation * num_processes}. Change one of the three."
        )
