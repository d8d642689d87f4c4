"""Bootstrap intervals, paired comparisons of two models, Holm's correction, and the verdict on a claim.

Here: how far a metric would move with other items and seeds of the same kind, and what follows from that. Not here:
what is measured (`naming_tasks.py`), and which comparisons are made (docs/protocol.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

NUM_RESAMPLES = 10_000
LEVEL = 0.95
RESAMPLED_AT_ONCE = 2**22  # numbers held in memory; changes the draws, not their distribution
MULTINOMIAL_COST = 12  # drawing the count of a value costs about as much as drawing so many items
# 0.975 quantiles of Student's t with 1 to 9 degrees of freedom, the last for more, and of the normal distribution
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # fmt: skip
NORMAL = 1.960

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Verdict = Literal["holds here", "does not hold here", "cannot be decided"]


def bootstrap_interval(
    items: Tensor,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    groups: Tensor | None = None,
    units: Tensor | None = None,
) -> tuple[float, float]:
    """Percentile interval of the mean of items, drawn with replacement.

    Source: Efron and Tibshirani (1993), chapter 13.
    Shapes: items, groups and units as in `resampled_means` -> lower and upper end.
    Raises: ValueError as `resampled_means`.
    """
    return percentile_interval(resampled_means(items, groups, num_resamples, seed, units), level)


def percentile_interval(resampled: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Cut (1 - level) / 2 of the resampled values off at each end. Shapes: resampled (r,) -> lower and upper end."""
    if not 0 < level < 1:
        raise ValueError(f"`level` is {level}. Expected a share between 0 and 1. Pass 0.95 for a 95 % interval.")
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_means(
    items: Tensor,
    groups: Tensor | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    units: Tensor | None = None,
) -> Floats:
    """Means over items drawn with replacement, and over seeds as `seed_weights` draws them if there are several.

    With `groups`, the mean of each group's mean, and items are drawn within their group: the sizes of groups are
    fixed. So hits by class give mean per-class recall, and queries of two directions the mean of both.

    With `units`, items that depend on each other are drawn together, such as all images of one concept, or an image
    and its captions: units are drawn, with all their items. Groups that share units share the draw.

    Source: Efron and Tibshirani (1993), chapter 13; groups are strata (chapter 8), seeds and items are crossed; units
            are clusters (Davison and Hinkley, 1997, section 3.8).
    Shapes: items (n,) or (s, n) float, of each training seed the same items; groups and units (n,) int64 ->
            (num_resamples,).
    Raises: ValueError if there are no items, one is not finite, or groups or units do not fit.
    """
    values = np.atleast_2d(items.double().cpu().numpy())  # (n,) or (s, n) -> (s, n)
    if items.ndim not in (1, 2) or not items.numel() or not items.isfinite().all():
        raise ValueError(
            f"`items` has shape {tuple(items.shape)} in `resampled_means`. Expected (n,) or (s, n), finite, n from 1 "
            "on. Pass one value for each item."
        )
    for name, given in (("groups", groups), ("units", units)):
        if given is not None and given.shape != items.shape[-1:]:
            raise ValueError(
                f"`{name}` has shape {tuple(given.shape)} with {items.shape[-1]} items in `resampled_means`. Expected "
                f"(n,). Pass one of the {name} for each item."
            )
    draw_items, draw_seeds = np.random.default_rng(seed).spawn(2)
    places = [np.arange(values.shape[1])] if groups is None else _places(groups.cpu().numpy())
    if units is None:
        sums = (_means_of_draws(values[:, place], num_resamples, draw_items) for place in places)
    else:
        of_item = units.cpu().numpy()
        sums = (
            _means_of_units(values, of_item, block, num_resamples, draw_items) for block in _blocks(places, of_item)
        )
    means = sum(sums) / len(places)  # (r, s)
    weights = seed_weights(len(values), num_resamples, draw_seeds)
    return np.asarray((means * weights).sum(axis=1), dtype=np.float64)


def seed_weights(num_seeds: int, num_resamples: int, draw: np.random.Generator) -> Floats:
    """Weights of seeds drawn with replacement, moved away from their mean, 1 / num_seeds.

    Few seeds, merely drawn, look surer than they are: where they differ by chance alone, three of them have one sign,
    and so decide at every level, in a quarter of the cases. The weights are moved so far that the interval of level
    0.95 of a mean of seeds is as wide as Student's.

    Source: Student (1908); the factor is the ratio of his quantile to the normal one, and of the unbiased variance to
            that of drawing s of s values.
    Shapes: -> (num_resamples, num_seeds), of sum 1; some are below 0.
    """
    drawn = draw.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples) / num_seeds
    if num_seeds == 1:
        return np.asarray(drawn, dtype=np.float64)
    student = STUDENT[min(num_seeds - 1, len(STUDENT)) - 1]
    factor = student / NORMAL * (num_seeds / (num_seeds - 1)) ** 0.5
    return np.asarray(1 / num_seeds + factor * (drawn - 1 / num_seeds), dtype=np.float64)


@dataclass(frozen=True)
class Comparison:
    """A difference A - B, and its values in resamples of the same items and seeds for both."""

    difference: float
    resampled: Floats  # (num_resamples,)
    num_seeds: int  # 1: the interval says nothing about other seeds

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Percentile interval of the difference."""
        return percentile_interval(self.resampled, level)

    def p_value(self, margin: float | None = None) -> float:
        """Two-sided p-value, as `bootstrap_p_value`."""
        return bootstrap_p_value(self.resampled, margin)


def compare(
    a: Tensor,
    b: Tensor,
    groups: Tensor | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    units: Tensor | None = None,
) -> Comparison:
    """Compare two models item by item and seed by seed.

    Shapes: a, b (n,) or (s, n) float, the same items in the same order, row i of both of the same seed; one of them
            may have one seed and the other several. groups and units (n,) as in `resampled_means`.
    Raises: ValueError if the shapes do not fit; as `resampled_means`.
    """
    seeds = {len(each) if each.ndim == 2 else 1 for each in (a, b)}
    if a.shape[-1:] != b.shape[-1:] or (len(seeds) > 1 and 1 not in seeds):
        raise ValueError(
            f"Items have shapes {tuple(a.shape)} and {tuple(b.shape)} in `compare`. Expected the same (n,) or (s, n): "
            "both models on the same items and seeds. Remove what only one of them has."
        )
    difference = a.double() - b.double()
    resampled = resampled_means(difference, groups, num_resamples, seed, units)
    parts = [difference] if groups is None else [difference[..., groups == each] for each in groups.unique()]
    return Comparison(float(sum(part.mean() for part in parts) / len(parts)), resampled, min(seeds))


def bootstrap_p_value(resampled: Floats, margin: float | None = None) -> float:
    """Two-sided p-value of a difference: the smallest alpha at which the interval of level 1 - alpha decides.

    Without a margin, the interval decides when it leaves 0 out. With one, when it lies within the margin or outside.

    Source: inverted percentile interval (Efron and Tibshirani, 1993, chapter 16), each count plus one (Davison and
            Hinkley, 1997, section 4.2), so that it is never 0.
    Shapes: resampled (r,), the difference in each resample -> a number in (0, 1].
    """
    m = margin or 0.0
    above, not_below = int((resampled >= m).sum()), int((resampled >= -m).sum())
    below, not_above = int((resampled <= -m).sum()), int((resampled <= m).sum())
    counts = [max(above, below), min(not_above, not_below)]  # against within the margin; against outside of it
    return min(1.0, *(2 * (1 + count) / (1 + len(resampled)) for count in counts))


def holm_levels(p_values: Sequence[float], alpha: float = 1 - LEVEL) -> list[float]:
    """Levels of the intervals by which comparisons are judged, in the order given.

    Source: Holm (1979), inverted: 1 - alpha / (m - i + 1) for the i-th smallest p-value of m. From the first one that
            is not decided on, all have its level, since Holm's procedure stops there.
    Raises: ValueError if there are none, or one is not from 0 to 1.
    """
    levels, has_stopped, share = [0.0] * len(p_values), False, alpha
    for rank, place in enumerate(_by_size(p_values)):
        share = share if has_stopped else alpha / (len(p_values) - rank)
        has_stopped = has_stopped or p_values[place] > share
        levels[place] = 1 - share
    return levels


def verdict(low: float, high: float, margin: float | None = None, sign: Literal[1, -1] = 1) -> Verdict:
    """Judge a claim by the interval of A - B alone.

    "A is better than B": holds here if the interval lies wholly above 0, does not hold here if it lies wholly below,
    and cannot be decided otherwise; an end at 0 is not above or below. With `sign=-1` lower is better, as in FID.

    "A is as good as B", with a margin: holds here if the interval lies within (-margin, margin), does not hold here if
    it lies wholly above the margin or wholly below minus the margin, and cannot be decided otherwise.

    Source: docs/protocol.md, rule 5; the margin as in tests of equivalence (Schuirmann, 1987).
    Raises: ValueError if the ends are no interval, or the margin is not above 0.
    """
    if not low <= high:  # NaN fails too
        raise ValueError(f"The interval runs from {low} to {high}. Expected a lower and an upper end. Pass them so.")
    if margin is None:
        low, high = (low, high) if sign == 1 else (-high, -low)
        holds, fails = low > 0, high < 0
    elif margin > 0:
        holds, fails = -margin < low and high < margin, low > margin or high < -margin
    else:
        raise ValueError(f"`margin` is {margin}. Expected above 0. Pass None for a claim that A is better than B.")
    return "holds here" if holds else "does not hold here" if fails else "cannot be decided"


def _places(groups: Ints) -> list[Ints]:
    """Shapes: (n,) -> for each group: (items of it,), their places."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def _blocks(places: Sequence[Ints], units: Ints) -> list[list[Ints]]:
    """Put the groups that share units, directly or through others, together."""
    blocks: list[tuple[set[int], list[Ints]]] = []
    for place in places:
        own, members = set(units[place].tolist()), [place]
        separate = []
        for its_units, its_members in blocks:
            if own & its_units:
                own, members = own | its_units, its_members + members
            else:
                separate.append((its_units, its_members))
        blocks = [*separate, (own, members)]
    return [members for _, members in blocks]


def _means_of_units(
    values: Floats, units: Ints, block: Sequence[Ints], num_resamples: int, draw: np.random.Generator
) -> Floats:
    """Sum over some groups of the mean of each, of u units drawn from u.

    In a resample that has no item of a group, which only one of few units can be, the group keeps its mean.

    Shapes: values (s, n), units (n,), block: places of each group's items -> (num_resamples, s).
    """
    of_block, numbers = np.unique(units[np.concatenate(block)], return_inverse=True)
    num_units, num_items = len(of_block), len(numbers)
    if len(block) == 1 and num_units == num_items:
        return _means_of_draws(values[:, block[0]], num_resamples, draw)
    of_groups = np.split(numbers, np.cumsum([len(place) for place in block])[:-1])
    sizes = [np.bincount(number, minlength=num_units).astype(np.float64) for number in of_groups]  # (u,)
    sums = [
        np.stack([np.bincount(number, of_seed[place], num_units) for of_seed in values], axis=1)  # (u, s)
        for place, number in zip(block, of_groups, strict=True)
    ]
    found, at_once = [], max(1, RESAMPLED_AT_ONCE // num_units)
    for start in range(0, num_resamples, at_once):
        counts = draw.multinomial(num_units, np.full(num_units, 1 / num_units), min(at_once, num_resamples - start))
        total: Floats = np.zeros((len(counts), len(values)))
        for size, of_group, place in zip(sizes, sums, block, strict=True):
            n = (counts @ size)[:, None]  # (r, 1), items drawn
            own = values[:, place].mean(axis=1)
            total += np.where(n > 0, counts @ of_group / np.maximum(n, 1), own)
        found.append(total)
    return np.concatenate(found)


def _means_of_draws(values: Floats, num_resamples: int, draw: np.random.Generator) -> Floats:
    """Means of n items drawn from n; all seeds have the same items.

    How often each different item is drawn is multinomial, so that a million hits cost as little as ten. Where most
    items differ, drawing items is faster.

    Shapes: (s, n) -> (num_resamples, s).
    """
    n = values.shape[1]
    different, counts = np.unique(values, axis=1, return_counts=True)  # (s, u)
    num_different = len(counts)
    is_multinomial = num_different * MULTINOMIAL_COST <= n or num_different == 1
    size = max(1, RESAMPLED_AT_ONCE // (num_different if is_multinomial else n))
    found = []
    for start in range(0, num_resamples, size):
        num_draws = min(size, num_resamples - start)
        if is_multinomial:
            found.append(draw.multinomial(n, counts / n, num_draws) @ different.T / n)
        else:
            drawn = draw.integers(0, n, (num_draws, n), dtype=np.int32)
            found.append(np.stack([of_seed[drawn].mean(axis=1) for of_seed in values], axis=1))
    return np.concatenate(found)


def _by_size(p_values: Sequence[float]) -> list[int]:
    if not p_values or not all(0 <= p <= 1 for p in p_values):
        raise ValueError(
            f"{len(p_values)} p-values were given, not all from 0 to 1, or none. Expected one for each comparison. "
            "Pass those of the comparisons that were run."
        )
    return sorted(range(len(p_values)), key=lambda place: p_values[place])
