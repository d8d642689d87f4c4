"""What a run reports: `log.jsonl`, accelerate's trackers, a progress bar, and an error at the first NaN."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from palindiff.atomic import atomic_text
from palindiff.training.loop.loop_config import LoopConfig

LOG_FILE = "log.jsonl"
PROJECT = "palindiff"  # under which trackers list the runs


class RunLog:
    """Writes `log.jsonl` and the accelerator's trackers; silent on all but the main process."""

    def __init__(self, run_dir: Path, show_progress: bool = True) -> None:
        self.run_dir, self.show_progress = run_dir, show_progress
        self._sums: dict[str, Tensor] = {}
        self._log: TextIO | None = None

    def start(self, step: int, loop: LoopConfig, accelerator: Accelerator) -> None:
        """Open log and trackers; lines of steps after `step`, written by a run that was killed, are dropped."""
        self._loop, self._accelerator, self._last_step = loop, accelerator, step
        self._sums, self._elapsed_s, self._since = {}, 0.0, time.perf_counter()
        is_shown = self.show_progress and accelerator.is_main_process
        self._bar = tqdm(desc="training", total=loop.num_steps, initial=step, unit="step", disable=not is_shown)
        if not accelerator.is_main_process:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        path = self.run_dir / LOG_FILE
        kept = [line for line in read_log(path) if line["step"] <= step] if step else []  # 0: all begins anew
        self._elapsed_s = max((line.get("elapsed_s", 0.0) for line in kept), default=0.0)
        atomic_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._log = path.open("a", buffering=1)
        tensorboard = {"purge_step": step + 1 if step else 0}  # drops the same steps as the log does
        wandb = {"name": self.run_dir.absolute().name, "dir": str(self.run_dir)}
        accelerator.init_trackers(PROJECT, init_kwargs={"tensorboard": tensorboard, "wandb": wandb})

    def check_finite(self, step: int, losses: dict[str, Tensor], norm: Tensor) -> None:
        """Stop a run that diverged before its weights are changed.

        Raises: FloatingPointError.
        """
        if not bool(torch.isfinite(losses["loss"] + norm)):
            shown = ", ".join(f"{name} {float(loss):.4g}" for name, loss in losses.items())
            raise FloatingPointError(
                f"Step {step}: {shown}, gradient norm {float(norm):.4g}. Expected finite numbers. The last saved "
                "state is sound; lower the learning rates or `optimizer.clip_norm`, or use `machine.precision: fp32`."
            )

    def step(self, step: int, numbers: Mapping[str, Tensor]) -> None:
        """Add one step's numbers; every `log_every` steps their means over steps and processes are written."""
        for name, number in numbers.items():
            self._sums[name] = self._sums.get(name, 0) + number.detach().float().to(self._accelerator.device)
        self._bar.update()
        if step % self._loop.log_every and step != self._loop.num_steps:
            return
        num_steps, elapsed_s = step - self._last_step, time.perf_counter() - self._since
        totals = self._accelerator.reduce(torch.stack(list(self._sums.values())), "mean")
        means = {name: round(float(total) / num_steps, 6) for name, total in zip(self._sums, totals, strict=True)}
        rate = num_steps * self._loop.batch_size / elapsed_s
        self._elapsed_s += elapsed_s
        self._write(step, means | {"images_per_s": round(rate, 2), "elapsed_s": round(self._elapsed_s, 1)})
        self._bar.set_postfix_str(f"loss {means['loss']:.4f}, {rate:.0f} images/s")
        self._sums, self._last_step, self._since = {}, step, time.perf_counter()

    def evaluation(self, step: int, numbers: Mapping[str, float], elapsed_s: float) -> None:
        """Write an evaluation's numbers; its time does not count as training time."""
        self._since += elapsed_s
        trained_s = self._elapsed_s + time.perf_counter() - self._since  # so that an early stop loses none of it
        rounded = {name: round(value, 6) for name, value in numbers.items()}
        self._write(step, rounded | {"evaluation_s": round(elapsed_s, 1), "elapsed_s": round(trained_s, 1)})
        if not self._bar.disable:
            shown = "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())
            self._bar.write(f"step {step}: {shown}", file=sys.stderr)

    def finish(self) -> None:
        """Close what was opened."""
        self._bar.close()
        if self._log is not None:
            self._log.close()
            while self._accelerator.trackers:  # `end_training` would also leave the process group
                self._accelerator.trackers.pop().finish()

    def _write(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._log is not None:
            self._log.write(json.dumps({"step": step, **numbers}) + "\n")
            self._accelerator.log(dict(numbers), step=step)


def training_cost(log: Sequence[Mapping[str, float]]) -> tuple[int, float]:
    """Return how many steps and seconds a log tells of."""
    return int(max(line["step"] for line in log)), max(line.get("elapsed_s", 0.0) for line in log)


def read_log(path: Path) -> list[dict[str, float]]:
    """Read a run's JSON lines; other lines, such as a last one that a crash cut short, are left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            numbers = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(numbers, dict) and "step" in numbers:
            lines.append(numbers)
    return lines
