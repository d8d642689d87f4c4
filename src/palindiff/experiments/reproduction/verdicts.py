"""The claims of docs/protocol.md, judged on the trained models of a scale.

Here: pairing two variants by seed and item, Holm's correction over the claims of a budget, verdicts. Not here: the
statistics (`evaluation/intervals.py`), what is measured (`measurement.py`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from palindiff.evaluation.collapse import counted_mean_cosine
from palindiff.evaluation.intervals import (
    LEVEL,
    NUM_RESAMPLES,
    Comparison,
    Floats,
    compare,
    holm_levels,
    seed_weights,
    verdict,
)
from palindiff.evaluation.results import Row
from palindiff.experiments.reproduction.kernel_distance import KernelDistance
from palindiff.experiments.reproduction.measurement import IMAGE_EMBEDDINGS, Measurement
from palindiff.experiments.reproduction.plan_sections import BUDGETS, ClaimPlan

PERCENT = 100.0
POINTS = ("recall", "accuracy")  # metrics in percentage points, higher is better; of the others lower is better
ACCURACY = "acc1"
RESAMPLED_AT_ONCE = 1_000
SAME_FLOP = 0.02  # training costs that differ by a smaller share count as equal
Sides = tuple[Sequence[Measurement], Sequence[Measurement]]  # A and B, a measurement for each seed
Statistics = Sequence[Sequence[Callable[[Tensor], Tensor]]]  # of A and B, for each seed: how often each item -> value


@dataclass(frozen=True)
class ComparedClaim:
    """A claim, its comparison, and where both stand."""

    name: str
    claim: ClaimPlan
    budget: str
    a: str
    b: str
    train_tflop: tuple[float, float]  # of A and of B, mean over seeds
    comparison: Comparison
    n: int  # items of a seed
    commits: tuple[str, ...] = ()  # of the code that trained both sides
    plan_hash: str = ""  # of what is compared

    def row(self, num_planned: int) -> Row:
        """All but the verdict, with the interval of each level at which it may be judged among so many claims."""
        found, intervals = self.comparison, dict[str, float]()
        for k in range(1, num_planned + 1):
            intervals |= dict(zip(level_keys(k), found.interval(1 - (1 - LEVEL) / k), strict=True))
        return {
            "claim": self.name, "text": self.claim.text, "budget": self.budget, "a": self.a, "b": self.b,
            "metric": self.claim.metric, "difference": found.difference, **intervals,
            "p_value": found.p_value(self.claim.margin), "margin": self.claim.margin,
            "num_seeds": found.num_seeds, "n": self.n, "a_train_tflop": self.train_tflop[0],
            "b_train_tflop": self.train_tflop[1], "commits": " ".join(self.commits), "plan_hash": self.plan_hash,
        }  # fmt: skip


def num_planned(claims: Iterable[ClaimPlan]) -> dict[str, int]:
    """How many claims of a family each budget has, run or not."""
    counts = Counter(budget for claim in claims for budget in claim.budgets)
    return {budget: counts[budget] for budget in BUDGETS}


def level_keys(k: int) -> tuple[str, str]:
    """Keys of a row for the ends of its interval of level 1 - 0.05 / k, as Holm's correction asks for."""
    return ("ci_low", "ci_high") if k == 1 else (f"low_by_{k}", f"high_by_{k}")


def judge(claims: Sequence[Row], planned: Mapping[str, int]) -> list[Row]:
    """Give the verdict on each claim, with Holm's correction over all claims planned for its budget.

    claims: as `ComparedClaim.row` writes them. planned: how many claims a budget has; one that was not run counts as
    undecided.

    Source: docs/protocol.md, rules 2 to 6.
    """
    rows: list[Row] = []
    for budget in BUDGETS:
        of_budget = [row for row in claims if row["budget"] == budget]
        p_values = [float(str(row["p_value"])) for row in of_budget]
        not_run = [1.0] * (planned.get(budget, 0) - len(of_budget))
        levels = holm_levels([*p_values, *not_run])[: len(of_budget)] if of_budget else []
        for row, level in zip(of_budget, levels, strict=True):
            low, high = (float(str(row[key])) for key in level_keys(round((1 - LEVEL) / (1 - level))))
            margin = None if row["margin"] is None else float(str(row["margin"]))
            of_claim = verdict(low, high, margin, 1 if row["metric"] in POINTS else -1)
            rows.append({**row, "level": level, "judged_low": low, "judged_high": high, "verdict": of_claim})
    return rows


def compare_points(sides: Sides, metrics: Sequence[str]) -> Comparison:
    """Compare accuracy, or the mean of recall in both directions, item by item and seed by seed.

    Units:  percentage points.
    Shapes: items (n,) of each metric and seed.
    """
    a, b = (torch.stack([torch.cat([each.items[name] for name in metrics]) for each in side]) for side in sides)
    first = sides[0][0]
    groups = torch.cat([torch.full((len(first.items[name]),), way) for way, name in enumerate(metrics)])
    units = torch.cat([first.units[name] for name in metrics])
    return compare(PERCENT * a, PERCENT * b, groups, units=units)


def compare_kd(sides: Sides, num_resamples: int = NUM_RESAMPLES) -> Comparison:
    """Compare the kernel distance to the same real images, over seeds and captions drawn with replacement.

    Source: Bińkowski et al. (ICLR 2018), kernel (x·y / d + 1)³; pairs of one image with itself are left out, those of
            an image that was drawn twice too.
    Shapes: items `generated` (n, d) of each seed, `real` (m, d).
    """
    distances = [[KernelDistance.of(each.items) for each in side] for side in sides]
    return _compare_counted(distances, sides[0][0].units["generated"], num_resamples)


def mean_kd(side: Sequence[Measurement], num_resamples: int = NUM_RESAMPLES) -> Comparison:
    """Mean kernel distance over seeds, as its difference from 0; source and shapes as `compare_kd`."""
    distances = [KernelDistance.of(each.items) for each in side]
    return _compare_counted([distances, [_zero] * len(side)], side[0].units["generated"], num_resamples)


def compare_cosine(sides: Sides, num_resamples: int = NUM_RESAMPLES) -> Comparison:
    """Compare the mean cosine of different images, over seeds and images drawn with replacement.

    An image that was drawn twice is not compared with itself.

    Shapes: items IMAGE_EMBEDDINGS (n, d) of each seed, unit length.
    """
    return _compare_counted(
        [[partial(counted_mean_cosine, each.items[IMAGE_EMBEDDINGS]) for each in side] for side in sides],
        sides[0][0].units[IMAGE_EMBEDDINGS], num_resamples,
    )  # fmt: skip


def _zero(counts: Tensor) -> Tensor:
    return counts.new_zeros(len(counts))


def _compare_counted(statistics: Statistics, units: Tensor, num_resamples: int) -> Comparison:
    """Compare statistics of counted items of both sides, for each seed: (r, n) -> (r,). Shapes: units (n,)."""
    num_seeds = min(map(len, statistics))
    draw = np.random.default_rng(0)
    seeds = seed_weights(num_seeds, num_resamples, draw)  # (r, s)
    numbers = units.unique(return_inverse=True)[1]
    parts = [
        _difference(statistics, seeds[start : start + RESAMPLED_AT_ONCE], draw, numbers)
        for start in range(0, num_resamples, RESAMPLED_AT_ONCE)
    ]
    once = torch.ones(1, len(units), dtype=torch.float64)
    own = [sum(float(each(once)) for each in of_side) / len(of_side) for of_side in statistics]
    return Comparison(own[0] - own[1], np.concatenate(parts), num_seeds)


def _difference(statistics: Statistics, seeds: Floats, draw: np.random.Generator, units: Tensor) -> Floats:
    """Shapes: seeds (r, s), the weight of each seed in each resample; units (n,), of u numbers from 0 on -> (r,)."""
    u = int(units.max()) + 1
    counts = torch.from_numpy(draw.multinomial(u, np.full(u, 1 / u), len(seeds))).double()[:, units]  # (r, n)
    counts[(counts > 0).sum(dim=1) < 2] = 1  # one item alone has no pairs; only of few units it is ever drawn so
    sides = []
    for of_side in statistics:
        of_seeds = np.stack([each(counts).numpy() for each in of_side], axis=1)  # (r, s), or (r, 1)
        sides.append((of_seeds * seeds).sum(axis=1) if len(of_side) > 1 else of_seeds[:, 0])
    return np.asarray(sides[0] - sides[1])


def same_cost(tflop: Mapping[str, float], a: str, b: str) -> bool:
    """Whether two trainings cost the same, to SAME_FLOP."""
    return abs(tflop[a] - tflop[b]) <= SAME_FLOP * max(tflop[a], tflop[b])
