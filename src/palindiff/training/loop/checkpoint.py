"""All that resuming needs: weights, their average, the optimizer's moments and the step, as safetensors and JSON.

Random numbers and the place in the data follow from seed and step (`order.py`) and need no keeping.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from palindiff.atomic import atomic_folder
from palindiff.training.loop.distributed import join_shares, placed_like, trained_weights, whole_tensors
from palindiff.training.loop.ema import EMA

KEPT_STATES = 2  # the newest, and the one before it in case the newest cannot be read
SHARED_TABLES = "qmap"  # 8-bit AdamW's tables of what each byte stands for


class TrainState:
    """Weights, EMA, optimizer and step of one run, saved under `state_dir/step-00000000/`.

    What is saved is whole, however many processes share it, and goes on with any number of them. Where weights are
    shared out, every process must make the same calls.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: EMA,
        state_dir: str,
        fingerprints: Mapping[str, str] | None = None,
        shown: nn.Module | None = None,
    ) -> None:
        """average: of `module`'s trained weights, in their order; shown: the whole module, if `module` is sharded.

        fingerprints: fingerprints of what the run learns from, by name; a state of others is not gone on with.
        """
        self.step = self._resumed_from = 0
        self.module, self.optimizer, self.ema, self.state_dir = module, optimizer, average, Path(state_dir)
        self.fingerprints = dict(fingerprints or {})
        self.shown = module if shown is None else shown
        self._trained = trained_weights(module)

    @property
    def has_learned(self) -> bool:
        """Whether a step was made since the run began or went on, so that what was written of it before is old."""
        return self.step > self._resumed_from

    def advance(self) -> None:
        """Count a finished optimizer step and move the average, if that is due."""
        self.step += 1
        self.ema.follow(self._trained.values(), self.step)

    @contextmanager
    def ema_weights(self, is_seen: bool = True) -> Iterator[None]:
        """Show the average instead of the weights for a while, on this process's device.

        is_seen: whether anyone looks on this process; where not, it only takes part in gathering shares.
        """
        if not is_seen:
            self._show_average(is_seen)
            yield
            return
        is_lent, device = self.shown is self.module, next(self.shown.parameters()).device
        if is_lent:
            self.ema.store(self._trained.values())
        was_training = self.shown.training
        self.use_ema_weights()
        self.shown.eval()
        try:
            yield
        finally:
            self.shown.train(was_training).to(device)
            if is_lent:
                self.ema.restore(self._trained.values())

    def use_ema_weights(self) -> None:
        """Put the whole average into the shown module, for good, and that on the device."""
        self.shown.to(next(self.module.parameters()).device)
        self._show_average(is_seen=True)

    @torch.no_grad()
    def _show_average(self, is_seen: bool) -> None:
        shown = trained_weights(self.shown)
        for (name, weight), share in zip(self._trained.items(), self.ema.shadow_params, strict=True):
            average = join_shares(share, weight)
            if is_seen:
                shown[name].copy_(average)

    def save(self, accelerator: Accelerator) -> None:
        """Write the state whole or not at all, then drop old ones; a failure leaves the last good state in place.

        Raises: OSError if it cannot be written, for instance on a full disk.
        """
        target = self.state_dir / f"step-{self.step:08d}"
        is_written = target in saved_states(self.state_dir)  # asked before anyone writes: all hear the same
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _remove_incomplete(self.state_dir)
        if not is_written:
            self._write(target, accelerator.is_main_process)
        if accelerator.is_main_process:
            for old in saved_states(self.state_dir)[:-KEPT_STATES]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the newest state, if there is one.

        Raises: ValueError if that state is damaged, or belongs to other parameters or data.
        """
        states = saved_states(self.state_dir)
        if not states:
            return
        folder = states[-1]
        try:
            weights, average = load_file(folder / "weights.safetensors"), load_file(folder / "ema.safetensors")
            moments = load_file(folder / "optimizer.safetensors")
            told = json.loads((folder / "state.json").read_text())
            step, fingerprints = int(told["step"]), dict(told["fingerprints"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            before = f"from `{states[-2].name}`" if len(states) > 1 else "from the start"
            raise ValueError(
                f"The saved state `{folder}` cannot be read ({error}). Expected four whole files: weights, ema and "
                f"optimizer .safetensors, state.json. Remove that folder, and the same command goes on {before}."
            ) from error
        self._check_made_from(folder, fingerprints)
        self._check_fits(folder, weights)
        self._check_fits(folder, average)
        with torch.no_grad():
            for name, weight in self._trained.items():
                weight.copy_(placed_like(weights[name], weight))
        self.ema.load((placed_like(average[name], weight) for name, weight in self._trained.items()), step)
        self.step = self._resumed_from = step
        self._load_optimizer(moments)

    def _write(self, target: Path, is_main: bool) -> None:
        """Gather and write file by file; only the main process keeps and writes anything."""
        try:
            with atomic_folder(target) if is_main else nullcontext(target) as folder:
                for name in ("weights", "ema", "optimizer"):
                    tensors = self._whole(name, is_main)
                    if is_main:
                        save_file(tensors, folder / f"{name}.safetensors")
                if is_main:
                    (folder / "state.json").write_text(
                        json.dumps({"step": self.step, "fingerprints": self.fingerprints})
                    )
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"Step {self.step} could not be saved as `{target}` ({error}). Expected a disk with room for it. "
                "Free some, and the same command goes on from the state saved before."
            ) from error

    def _whole(self, name: str, is_kept: bool) -> dict[str, Tensor]:
        if name == "ema":
            pairs = zip(self._trained.items(), self.ema.shadow_params, strict=True)
            joined = ((key, join_shares(share.detach(), weight)) for (key, weight), share in pairs)
            return {key: tensor.contiguous() for key, tensor in joined if is_kept}
        return whole_tensors(self._trained if name == "weights" else self._moments(), is_kept)

    def _check_made_from(self, folder: Path, fingerprints: dict[str, str]) -> None:
        differing = [
            name for name in fingerprints | self.fingerprints if fingerprints.get(name) != self.fingerprints.get(name)
        ]
        if differing:
            raise ValueError(
                f"`{folder}` was trained with another {' and another '.join(differing)} than lies there now. Expected "
                "the same: weights learned from one are worth nothing with another. Put it back, or name another "
                "output folder."
            )

    def _check_fits(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        expected = {name: tuple(weight.shape) for name, weight in self._trained.items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        differing = [name for name in sorted(expected | found) if expected.get(name) != found.get(name)]
        if differing:
            raise ValueError(
                f"`{folder}` and this recipe differ in {len(differing)} trained tensors, first `{differing[0]}`. "
                "Expected the state of a run of the same recipe. Name another output folder, or go back to that "
                "run's recipe."
            )

    def _moments(self) -> dict[str, Tensor]:
        """What the optimizer keeps of each weight; a plain number as a tensor, a table that all share as copies."""
        moments: dict[str, Tensor] = {}
        for name, weight in self._trained.items():
            for key, value in self.optimizer.state.get(weight, {}).items():
                is_shared = key.startswith(SHARED_TABLES)
                moments[f"{name}/{key}"] = value.clone() if is_shared else torch.as_tensor(value)
        return moments

    def _load_optimizer(self, moments: dict[str, Tensor]) -> None:
        for key, value in moments.items():
            name, _, moment = key.rpartition("/")
            weight = self._trained[name]
            is_number = value.dtype == torch.int64  # AdamW counts steps in a float tensor, 8-bit AdamW in an int
            self.optimizer.state[weight][moment] = int(value) if is_number else placed_like(value, weight)


def saved_states(state_dir: Path) -> list[Path]:
    """Complete states below a folder, oldest first; what a killed save left behind starts with a dot and is none."""
    return sorted(path for path in state_dir.glob("step-*") if (path / "state.json").exists())


def _remove_incomplete(state_dir: Path) -> None:
    """Remove what a kill left behind: a save begun under a dotted name, or an old state half removed."""
    half_removed = set(state_dir.glob("step-*")) - set(saved_states(state_dir))
    for folder in half_removed | set(state_dir.glob(".step-*")):
        shutil.rmtree(folder)
