"""All that resuming needs: weights, their average, the optimizer's moments and the step, as safetensors and JSON.

Random numbers and the place in the data follow from seed and step (`order.py`) and need no keeping.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from palindiff.data.publish import published_folder

KEPT_STATES = 2  # the newest, and the one before it in case the newest cannot be read


class TrainState:
    """Weights, EMA, optimizer and step of one run, saved under `state_dir/step-00000000/`."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, ema_decay: float, state_dir: str) -> None:
        self.step = 0
        self.module, self.optimizer, self.state_dir = module, optimizer, Path(state_dir)
        self._trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.ema = EMAModel(self._trained.values(), decay=ema_decay, foreach=True)

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
        """Write the state whole or not at all, then drop old ones; a failure leaves the last good state in place."""
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            target = self.state_dir / f"step-{self.step:08d}"
            if not target.exists():
                with published_folder(target) as folder:
                    save_file({n: w.detach().contiguous() for n, w in self._trained.items()}, folder / "weights.safetensors")
                    average = dict(zip(self._trained, self.ema.shadow_params, strict=True))
                    save_file({n: w.contiguous() for n, w in average.items()}, folder / "ema.safetensors")
                    save_file(self._optimizer_tensors(), folder / "optimizer.safetensors")
                    (folder / "state.json").write_text(json.dumps({"step": self.step}))
            for old in saved_states(self.state_dir)[:-KEPT_STATES]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the newest state, if there is one.

        Raises: ValueError if that state belongs to other parameters.
        """
        states = saved_states(self.state_dir)
        if not states:
            return
        folder = states[-1]
        weights, average = load_file(folder / "weights.safetensors"), load_file(folder / "ema.safetensors")
        if missing := set(self._trained) ^ set(weights):
            raise ValueError(
                f"`{folder}` and this recipe differ in {len(missing)} trained tensors, first `{min(missing)}`. Expected "
                "the state of a run of the same recipe. Name another output folder, or go back to that run's recipe."
            )
        with torch.no_grad():
            for name, weight in self._trained.items():
                weight.copy_(weights[name])
        self.ema.shadow_params = [average[name].to(weight.device) for name, weight in self._trained.items()]
        self.step = json.loads((folder / "state.json").read_text())["step"]
        self.ema.optimization_step = self.step
        self._load_optimizer(load_file(folder / "optimizer.safetensors"))

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": value.contiguous()
            for name, weight in self._trained.items()
            for key, value in self.optimizer.state.get(weight, {}).items()
        }

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        for key, value in tensors.items():
            name, _, moment = key.rpartition("/")
            weight = self._trained[name]
            self.optimizer.state[weight][moment] = value if moment == "step" else value.to(weight.device)


def saved_states(state_dir: Path) -> list[Path]:
    """Complete states below a folder, oldest first; what a killed save left behind starts with a dot and is none."""
    return sorted(path for path in state_dir.glob("step-*") if (path / "state.json").exists())
