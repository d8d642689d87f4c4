"""The exponential moving average (EMA) of the weights: how often it is updated, and on which device it is kept."""

import math
from collections.abc import Iterable

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from palindiff.training.loop.device import EMADevice
from palindiff.training.loop.distributed import local_shard


class EMA(EMAModel):
    """diffusers' `EMAModel` over each process's own shards, updated at the first step, every few, and the last.

    Source: EMAModel; the decay and its warm-up are those of single steps (decisions row 20).
    Departs: an update after n steps takes the product of their n decays, so a longer interval forgets no faster.
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], decay: float, every: int = 1, device: EMADevice = "same"
    ) -> None:
        self.every, self.device, self.updated_at = every, device, 0
        super().__init__([self._on_device(weight) for weight in weights], decay=decay, foreach=True)

    def update(self, weights: Iterable[nn.Parameter], num_steps: int, is_last: bool = False) -> None:
        """Update the average, if that is due after `num_steps` finished steps: also after the first and the last."""
        if is_last or num_steps == 1 or num_steps % self.every == 0:
            self.optimization_step = num_steps - 1  # `step` adds one
            self.step([self._on_device(weight) for weight in weights])
            self.updated_at = num_steps

    def get_decay(self, optimization_step: int) -> float:
        """The share of the old average that is kept, over the steps since the last update."""
        decay_of_step = super().get_decay
        steps = range(self.updated_at + 1, optimization_step + 1)
        return math.prod(decay_of_step(step) for step in steps)

    def load(self, averages: Iterable[Tensor], updated_at: int) -> None:
        """Resume from averages, sharded as the weights are, whose last update was after so many steps."""
        self.shadow_params = [self._on_device(each).detach().clone() for each in averages]
        self.optimization_step = self.updated_at = updated_at

    @torch.no_grad()
    def exchange(self, weights: Iterable[nn.Parameter]) -> None:
        """Exchange the averages with the weights, one by one, so that no third copy of all is in memory."""
        for weight, average in zip(weights, self.shadow_params, strict=True):
            kept = weight.detach().to(average.device, copy=True)
            weight.copy_(average)
            average.copy_(kept)

    def _on_device(self, weight: Tensor) -> Tensor:
        """A weight's own shard on the EMA's device; it requires a gradient, as EMAModel copies what does not."""
        shard = local_shard(weight.detach())
        return (shard if self.device == "same" else shard.to(self.device)).requires_grad_()
