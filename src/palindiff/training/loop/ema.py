"""The moving average of the weights: how often it moves, and where it lies."""

import math
from collections.abc import Iterable
from typing import Literal

from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from palindiff.training.loop.distributed import own_share

Place = Literal["same", "cpu"]  # "same": the weights' own device


class EMA(EMAModel):
    """diffusers' `EMAModel` over each process's own shares, moved every few steps.

    Source: EMAModel; the decay and its warm-up are those of single steps (decisions row 20).
    Departs: a move after n steps takes the product of their n decays, so a longer stride forgets no faster.
    """

    def __init__(self, weights: Iterable[nn.Parameter], decay: float, every: int = 1, place: Place = "same") -> None:
        self.every, self.place = every, place
        super().__init__([self._beside(weight) for weight in weights], decay=decay, foreach=True)

    def follow(self, weights: Iterable[nn.Parameter], num_steps: int) -> None:
        """Move towards the weights, if `num_steps` finished steps make a move due."""
        if num_steps % self.every == 0:
            self.optimization_step = num_steps - 1  # `step` counts one on
            self.step([self._beside(weight) for weight in weights])

    def get_decay(self, optimization_step: int) -> float:
        """The share of the old average that stays, over the steps since the last move."""
        of_one_step = super().get_decay
        steps = range(optimization_step - self.every + 1, optimization_step + 1)
        return math.prod(of_one_step(step) for step in steps)

    def load(self, averages: Iterable[Tensor], num_steps: int) -> None:
        """Go on from averages that lie as the weights do, taken after so many steps."""
        self.shadow_params = [self._beside(each).detach().clone() for each in averages]
        self.optimization_step = num_steps

    def _beside(self, weight: Tensor) -> Tensor:
        """A weight's own share where the average lies; it asks for a gradient, as EMAModel copies what does not."""
        share = own_share(weight.detach())
        return (share if self.place == "same" else share.to(self.place)).requires_grad_()
