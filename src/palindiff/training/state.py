"""All that resuming needs: weights, their average, the optimizer's moments and the step, as safetensors and JSON.

Random numbers and the place in the data follow from seed and step (`order.py`) and need no keeping.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from palindiff.data.publish import published_folder

KEPT_STATES = 2  # the newest, and the one before it in case the newest cannot be read


class TrainState:
    """Weights, EMA, optimizer and step of one run, saved under `state_dir/step-00000000/`."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema_decay: float,
        state_dir: str,
        made_from: Mapping[str, str] | None = None,
    ) -> None:
        """made_from: fingerprints of what the run learns from, by name; a state of others is not gone on with."""
        self.step = self._resumed_from = 0
        self.module, self.optimizer, self.state_dir = module, optimizer, Path(state_dir)
        self.made_from = dict(made_from or {})
        self._trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.ema = EMAModel(self._trained.values(), decay=ema_decay, foreach=True)

    @property
    def has_learned(self) -> bool:
        """Whether a step was made since the run began or went on, so that what was written of it before is old."""
        return self.step > self._resumed_from

    def advance(self) -> None:
        """Count a finished optimizer step and move the average."""
        self.step += 1
        self.ema.step(self._trained.values())

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Put the average in the weights' place for a while."""
        self.ema.store(self._trained.values())
        self.use_ema_weights()
        was_training = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(was_training)
            self.ema.restore(self._trained.values())

    def use_ema_weights(self) -> None:
        """Put the average in the weights' place for good."""
        self.ema.copy_to(self._trained.values())

    def save(self, accelerator: Accelerator) -> None:
        """Write the state whole or not at all, then drop old ones; a failure leaves the last good state in place.

        Raises: OSError if it cannot be written, for instance on a full disk.
        """
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _remove_incomplete(self.state_dir)
            target = self.state_dir / f"step-{self.step:08d}"
            if not target.exists():
                self._write(target)
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
            step, made_from = int(told["step"]), dict(told["made_from"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            before = f"from `{states[-2].name}`" if len(states) > 1 else "from the start"
            raise ValueError(
                f"The saved state `{folder}` cannot be read ({error}). Expected four whole files: weights, ema and "
                f"optimizer .safetensors, state.json. Remove that folder, and the same command goes on {before}."
            ) from error
        self._check_made_from(folder, made_from)
        self._check_fits(folder, weights)
        self._check_fits(folder, average)
        with torch.no_grad():
            for name, weight in self._trained.items():
                weight.copy_(weights[name])
        self.ema.shadow_params = [average[name].to(weight.device) for name, weight in self._trained.items()]
        self.step = self._resumed_from = self.ema.optimization_step = step
        self._load_optimizer(moments)

    def _write(self, target: Path) -> None:
        average = dict(zip(self._trained, self.ema.shadow_params, strict=True))
        try:
            with published_folder(target) as folder:
                for name, tensors in (("weights", self._trained), ("ema", average), ("optimizer", self._moments())):
                    whole = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
                    save_file(whole, folder / f"{name}.safetensors")
                (folder / "state.json").write_text(json.dumps({"step": self.step, "made_from": self.made_from}))
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"Step {self.step} could not be saved as `{target}` ({error}). Expected a disk with room for it. "
                "Free some, and the same command goes on from the state saved before."
            ) from error

    def _check_made_from(self, folder: Path, made_from: dict[str, str]) -> None:
        differing = [name for name in made_from | self.made_from if made_from.get(name) != self.made_from.get(name)]
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
        return {
            f"{name}/{key}": value
            for name, weight in self._trained.items()
            for key, value in self.optimizer.state.get(weight, {}).items()
        }

    def _load_optimizer(self, moments: dict[str, Tensor]) -> None:
        for key, value in moments.items():
            name, _, moment = key.rpartition("/")
            weight = self._trained[name]
            self.optimizer.state[weight][moment] = value.to(weight.device)


def saved_states(state_dir: Path) -> list[Path]:
    """Complete states below a folder, oldest first; what a killed save left behind starts with a dot and is none."""
    return sorted(path for path in state_dir.glob("step-*") if (path / "state.json").exists())


def _remove_incomplete(state_dir: Path) -> None:
    """Remove what a kill left behind: a save begun under a dotted name, or an old state half removed."""
    half_removed = set(state_dir.glob("step-*")) - set(saved_states(state_dir))
    for folder in half_removed | set(state_dir.glob(".step-*")):
        shutil.rmtree(folder)
