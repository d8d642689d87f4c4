"""Bootstrap intervals: how far a metric would move with other items of the same kind.

Here: intervals of a mean over items. Not here: what is measured (`naming_tasks.py`).
"""

import numpy as np
from torch import Tensor

NUM_RESAMPLES = 10_000
LEVEL = 0.95
RESAMPLED_AT_ONCE = 50_000_000  # counts held in memory


def bootstrap_interval(
    items: Tensor, num_resamples: int = NUM_RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of items, drawn with replacement.

    How often each different value is drawn is multinomial, so that a million hits cost as little as ten.

    Source: Efron and Tibshirani (1993), chapter 13.
    Shapes: items (n,) float -> lower and upper end.
    Raises: ValueError if there are no items, or one is not finite.
    """
    if items.ndim != 1 or not len(items) or not items.isfinite().all():
        raise ValueError(
            f"`items` has shape {tuple(items.shape)} in `bootstrap_interval`. Expected (n,), finite, n from 1 on. "
            "Pass one value for each item."
        )
    values, counts = np.unique(items.double().cpu().numpy(), return_counts=True)
    generator, n = np.random.default_rng(seed), len(items)
    size = max(1, RESAMPLED_AT_ONCE // len(values))
    means = np.concatenate([
        generator.multinomial(n, counts / n, min(size, num_resamples - start)) @ values / n
        for start in range(0, num_resamples, size)
    ])  # fmt: skip
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
