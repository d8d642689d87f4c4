"""The kernel distance of generated images to real ones, of any number of times that each generated image counts.

Here: the distance that claims and columns resample. Not here: the distance that `palindiff evaluate` prints, a mean
over random subsets (`evaluation/distances.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KernelDistance:
    """The squared MMD of generated images to real ones, each generated image counted so often."""

    of_generated: Tensor  # (n, n), of generated images with each other
    of_both: Tensor  # (n,), mean over the real images
    of_real: Tensor  # (), of real images with each other

    @classmethod
    def of(cls, items: Mapping[str, Tensor]) -> "KernelDistance":
        """Shapes: generated (n, d), real (m, d)."""
        x, y = items["generated"].double(), items["real"].double()
        of_real, m = _kernel(y, y), len(y)
        return cls(_kernel(x, x), _kernel(x, y).mean(dim=1), (of_real.sum() - of_real.trace()) / (m * (m - 1)))

    def of_all(self) -> float:
        """The distance where each generated image counts once."""
        return float(self(torch.ones(1, len(self.of_both), dtype=torch.float64)))

    def __call__(self, counts: Tensor) -> Tensor:
        """Shapes: counts (r, n) -> (r,)."""
        n, square = counts.sum(dim=1), counts.square()
        of_pairs = ((counts @ self.of_generated) * counts).sum(dim=1) - square @ self.of_generated.diagonal()
        within = of_pairs / (n * n - square.sum(dim=1))
        return within - 2 * (counts @ self.of_both) / n + self.of_real


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
