"""The claims of docs/protocol.md, judged on the trained models of a scale.

Here: pairing two variants by seed and item, Holm's correction over the claims of a budget, verdicts. Not here: the
statistics (`evaluation/intervals.py`), what is measured (`measurement.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from palindiff.evaluation.intervals import (
    NUM_RESAMPLES,
    Comparison,
    compare,
    holm_levels,
    resampled_statistic,
    verdict,
)
from palindiff.evaluation.results import Row
from palindiff.experiments.reproduction.measurement import Measurement
from palindiff.experiments.reproduction.plan import ClaimPlan

BUDGETS = ("steps", "flop")
PERCENT = 100.0
SAME_FLOP = 0.02  # training costs that differ by a smaller share count as equal
Sides = tuple[Sequence[Measurement], Sequence[Measurement]]  # A and B, a measurement for each seed


@dataclass(frozen=True)
class JudgedClaim:
    """A claim, its comparison, and where both stand."""

    name: str
    claim: ClaimPlan
    budget: str
    a: str
    b: str
    train_tflop: tuple[float, float]  # of A and of B, mean over seeds
    comparison: Comparison
    n: int  # items of a seed


def judge(claims: Sequence[JudgedClaim]) -> list[Row]:
    """Give the verdict on each claim, with Holm's correction over the claims of each budget.

    Source: docs/protocol.md, rules 2 to 6.
    """
    rows: list[Row] = []
    for budget in BUDGETS:
        of_budget = [each for each in claims if each.budget == budget]
        p_values = [each.comparison.p_value(each.claim.margin) for each in of_budget]
        levels = holm_levels(p_values) if of_budget else []
        for each, p_value, level in zip(of_budget, p_values, levels, strict=True):
            low, high = each.comparison.interval(level)
            plain_low, plain_high = each.comparison.interval()
            rows.append({
                "claim": each.name, "text": each.claim.text, "budget": budget, "a": each.a, "b": each.b,
                "metric": each.claim.metric, "difference": each.comparison.difference,
                "ci_low": plain_low, "ci_high": plain_high, "level": level, "judged_low": low, "judged_high": high,
                "p_value": p_value, "margin": each.claim.margin, "num_seeds": each.comparison.num_seeds, "n": each.n,
                "a_train_tflop": each.train_tflop[0], "b_train_tflop": each.train_tflop[1],
                "verdict": verdict(low, high, each.claim.margin, -1 if each.claim.metric == "kd" else 1),
            })  # fmt: skip
    return rows


def compare_recall(sides: Sides) -> Comparison:
    """Compare recall query by query and seed by seed, in percentage points.

    Shapes: items `recall` (n,) of each seed, of which `recall_groups` (n,) are the two directions.
    """
    a, b = (torch.stack([each.items["recall"] for each in side]) for side in sides)
    return compare(PERCENT * a, PERCENT * b, sides[0][0].items["recall_groups"])


def compare_kd(sides: Sides, num_resamples: int = NUM_RESAMPLES) -> Comparison:
    """Compare the kernel distance to the same real images, over seeds and captions drawn with replacement.

    Source: Bińkowski et al. (ICLR 2018), kernel (x·y / d + 1)³; pairs of one image with itself are left out, those of
            an image that was drawn twice too.
    Shapes: items `generated` (n, d) of each seed, `real` (m, d).
    """
    distances = [[_kernel_distance(each.items["generated"], each.items["real"]) for each in side] for side in sides]
    num_items = len(sides[0][0].items["generated"])
    num_seeds = min(map(len, distances))

    def difference(seeds: Sequence[int], items: Sequence[int]) -> float:
        counts = torch.bincount(torch.as_tensor(items), minlength=num_items).double()
        a, b = (
            sum(of_side[seed if len(of_side) > 1 else 0](counts) for seed in seeds) / len(seeds)
            for of_side in distances
        )
        return a - b

    resampled = resampled_statistic(difference, num_items, num_seeds, num_resamples)  # type: ignore[arg-type]
    return Comparison(difference(range(num_seeds), range(num_items)), resampled, num_seeds)


def _kernel_distance(generated: Tensor, real: Tensor) -> Callable[[Tensor], float]:
    """Return the squared MMD of generated images, each counted so often. Shapes: (n, d), (m, d); counts (n,)."""
    x, y = generated.double(), real.double()
    of_generated, of_both = _kernel(x, x), _kernel(x, y).mean(dim=1)  # (n, n), (n,)
    of_real, m = _kernel(y, y), len(y)
    constant = (of_real.sum() - of_real.diagonal().sum()) / (m * (m - 1))
    own = of_generated.diagonal()

    def distance(counts: Tensor) -> float:
        n, square = counts.sum(), counts.square()
        within = (counts @ of_generated @ counts - square @ own) / (n * n - square.sum())
        return float(within - 2 * (of_both @ counts) / n + constant)

    return distance


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def same_cost(tflop: Mapping[str, float], a: str, b: str) -> bool:
    """Whether two trainings cost the same, to SAME_FLOP."""
    return abs(tflop[a] - tflop[b]) <= SAME_FLOP * max(tflop[a], tflop[b])
