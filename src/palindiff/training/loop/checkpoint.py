"""All that resuming needs: weights, their EMA, the optimizer's moments and the step, as safetensors and JSON.

Random numbers and the data position follow from seed and step (`order.py`) and are not stored.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from palindiff.atomic import atomic_folder
from palindiff.training.loop.distributed import (
    Distributed,
    as_sharded,
    from_main,
    gather,
    shard_like,
    tensors_from_main,
    trained_weights,
    whole,
)
from palindiff.training.loop.ema import EMA

NUM_SAVED_STATES = 2  # the newest, and the one before it in case the newest cannot be read
FILES = ("weights", "ema", "optimizer")
SHARED_TABLES = "qmap"  # 8-bit AdamW's tables of the values of a byte


class TrainState:
    """Weights, EMA, optimizer and step of one run, saved under `state_dir/step-00000000/`.

    Saved tensors are whole, however many processes share them, so a run may resume with another number of processes.
    Where weights are sharded, every process must make the same calls.
    """

    def __init__(
        self, distributed: Distributed, ema: EMA, state_dir: Path, fingerprints: Mapping[str, str] | None = None
    ) -> None:
        """ema: of the trained weights of `distributed`, in their order.

        fingerprints: of the data and frozen models, by name; a state with other fingerprints is not resumed.
        """
        self.step = self._resumed_from = 0
        self.distributed, self.ema, self.state_dir = distributed, ema, Path(state_dir)
        self.fingerprints = dict(fingerprints or {})
        self._trained = trained_weights(distributed.sharded_model)

    @property
    def has_learned(self) -> bool:
        """Whether a step was made since the run began or resumed, so that files written before are outdated."""
        return self.step > self._resumed_from

    def advance(self, num_steps: int) -> None:
        """Count a finished optimizer step of a run of `num_steps`, and update the EMA, if that is due."""
        self.step += 1
        self.ema.update(self._trained.values(), self.step, is_last=self.step == num_steps)

    @contextmanager
    def ema_weights(self, is_used: bool = True) -> Iterator[None]:
        """Put the EMA weights into the full model for a while, on this process's device.

        is_used: whether this process uses the full model; if not, it only takes part in gathering shards.
        """
        if not is_used:
            gather(self._ema_tensors(), is_kept=False)
            yield
            return
        model = self.distributed.full_model
        was_training, device = model.training, next(model.parameters()).device
        if self.distributed.is_sharded:
            self.use_ema_weights()  # into the full model, which is another one
        else:
            self.ema.exchange(self._trained.values())
        model.eval()
        try:
            yield
        finally:
            model.train(was_training).to(device)
            if not self.distributed.is_sharded:
                self.ema.exchange(self._trained.values())

    @torch.no_grad()
    def use_ema_weights(self) -> None:
        """Put the EMA weights into the full model for good, and move it to the device."""
        device = next(self.distributed.sharded_model.parameters()).device
        weights = trained_weights(self.distributed.full_model.to(device))
        for name, average in self._ema_tensors():
            weights[name].copy_(whole(average))

    def save(self, accelerator: Accelerator) -> None:
        """Write the whole state or nothing, then remove old states; a failure leaves the last good state in place.

        Raises: OSError if it cannot be written, for instance on a full disk.
        """
        target = self.state_dir / f"step-{self.step:08d}"
        is_written = from_main(lambda: target in saved_states(self.state_dir), accelerator)
        if accelerator.is_main_process:
            _remove_outdated(self.state_dir)
        if not is_written:
            self._write(target, accelerator.is_main_process)
        if accelerator.is_main_process:
            _remove_outdated(self.state_dir)
        accelerator.wait_for_everyone()

    def resume(self, accelerator: Accelerator) -> None:
        """Continue from the main process's newest state, if it has one; other processes may have another disk.

        Raises: ValueError, on every process, if that state is damaged, or belongs to other parameters or data.
        """
        files: dict[str, dict[str, Tensor]] = {}

        def read() -> tuple[int, int] | None:
            """Read the files, here alone -> step, and step of the last update of the EMA."""
            states = saved_states(self.state_dir)
            if not states:
                return None
            step, ema_step, *tensors = self._read(states)
            files.update(zip(FILES, tensors, strict=True))
            return step, ema_step

        found = from_main(read, accelerator)
        if found is None:
            return
        shared = {name: tensors_from_main(files.get(name, {}), accelerator) for name in FILES}
        with torch.no_grad():
            for name, weight in shared["weights"]:
                self._trained[name].copy_(shard_like(weight, self._trained[name]))
        averages = {name: shard_like(average, self._trained[name]) for name, average in shared["ema"]}
        self.ema.load((averages[name] for name in self._trained), found[1])
        self.step = self._resumed_from = found[0]
        for key, value in shared["optimizer"]:
            name, _, moment = key.rpartition("/")
            weight = self._trained[name]
            is_number = value.dtype == torch.int64  # AdamW counts steps in a float tensor, 8-bit AdamW in an int
            self.distributed.optimizer.state[weight][moment] = int(value) if is_number else shard_like(value, weight)

    def _read(self, states: list[Path]) -> tuple[Any, ...]:
        """Read the newest state -> step, step of the last update of the EMA, weights, EMA, moments."""
        folder = states[-1]
        try:
            weights, average, moments = (load_file(folder / f"{name}.safetensors") for name in FILES)
            saved = json.loads((folder / "state.json").read_text())
            step, ema_step, fingerprints = int(saved["step"]), int(saved["ema_step"]), dict(saved["fingerprints"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            before = f"from `{states[-2].name}`" if len(states) > 1 else "from the start"
            raise ValueError(
                f"The saved state `{folder}` cannot be read ({error}). Expected four whole files: weights, ema and "
                f"optimizer .safetensors, state.json. Remove that folder; the same command then resumes {before}."
            ) from error
        self._check_fits(folder, fingerprints, weights, average)
        return step, ema_step, weights, average, moments

    def _write(self, target: Path, is_main: bool) -> None:
        """Gather and write file by file; only the main process keeps and writes tensors."""
        sources = (self._trained.items, self._ema_tensors, self._moments)
        try:
            with atomic_folder(target) if is_main else nullcontext(target) as folder:
                for name, source in zip(FILES, sources, strict=True):
                    tensors = gather(source(), is_main)
                    if is_main:
                        save_file(tensors, folder / f"{name}.safetensors")
                if is_main:
                    state = {"step": self.step, "ema_step": self.ema.updated_at, "fingerprints": self.fingerprints}
                    (folder / "state.json").write_text(json.dumps(state))
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"Step {self.step} could not be saved as `{target}` ({error}). Expected a disk with room for it. "
                "Free some space; the same command then resumes from the state saved before."
            ) from error

    def _ema_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for (name, weight), shard in zip(self._trained.items(), self.ema.shadow_params, strict=True):
            yield name, as_sharded(shard.detach(), weight)

    def _moments(self) -> Iterator[tuple[str, Tensor]]:
        """The optimizer's state of each weight: a plain number as a tensor, a table shared by all as copies."""
        for name, weight in self._trained.items():
            for key, value in self.distributed.optimizer.state.get(weight, {}).items():
                yield f"{name}/{key}", value.clone() if key.startswith(SHARED_TABLES) else torch.as_tensor(value)

    def _check_fits(self, folder: Path, fingerprints: dict[str, str], *files: dict[str, Tensor]) -> None:
        ours = self.fingerprints
        if others := [name for name in fingerprints | ours if fingerprints.get(name) != ours.get(name)]:
            raise ValueError(
                f"`{folder}` was trained with another {' and another '.join(others)} than is found now. Expected "
                "the same: weights trained with one cannot be used with another. Put it back, or use another output "
                "folder."
            )
        expected = {name: tuple(weight.shape) for name, weight in self._trained.items()}
        for tensors in files:
            found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            differing = [name for name in sorted(expected | found) if expected.get(name) != found.get(name)]
            if differing:
                raise ValueError(
                    f"`{folder}` and this recipe differ in {len(differing)} trained tensors, first `{differing[0]}`. "
                    "Expected the state of a run of the same recipe. Use another output folder, or that run's recipe."
                )


def saved_states(state_dir: Path) -> list[Path]:
    """Complete states in a folder, oldest first; what a killed save left behind starts with a dot and is none."""
    return sorted(path for path in state_dir.glob("step-*") if (path / "state.json").exists())


def _remove_outdated(state_dir: Path) -> None:
    """Remove old states, and what a kill left behind: a save begun under a dotted name, or a state half removed."""
    found = {*state_dir.glob("step-*"), *state_dir.glob(".step-*")}
    for folder in found.difference(saved_states(state_dir)[-NUM_SAVED_STATES:]):
        shutil.rmtree(folder)
