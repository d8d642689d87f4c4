"""verdicts.py: pairing by seed and item, distances resampled, and Holm's correction over the claims of a budget."""

import pytest
import torch

from palindiff.evaluation.intervals import Comparison
from palindiff.experiments.reproduction import verdicts
from palindiff.experiments.reproduction.kernel_distance import KernelDistance
from palindiff.experiments.reproduction.measurement import Measurement
from palindiff.experiments.reproduction.plan_sections import ClaimPlan


def recalls(*hits):
    """A measurement for each seed: hits of three images, then of one caption."""
    return [
        Measurement(
            [],
            {"text": torch.tensor(each[:3]).float(), "image": torch.tensor(each[3:]).float()},
            {"text": torch.arange(3), "image": torch.tensor([1])},
        )
        for each in hits
    ]


def test_recall_is_compared_query_by_query_as_the_mean_of_both_directions():
    a, b = recalls([1, 1, 0, 1], [1, 0, 0, 1]), recalls([1, 0, 0, 0], [0, 0, 0, 1])
    found = verdicts.compare_points((a, b), ["text", "image"])
    of_images, of_captions = (1 + 1) / 6, (1 + 0) / 2  # hits more of A, over seeds and queries
    assert found.difference == pytest.approx(100 * (of_images + of_captions) / 2)
    assert found.num_seeds == 2
    low, high = found.interval()
    assert low < found.difference < high


def features(seed, shift=0.0, n=6):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed)) + shift


def squared_mmd(x, y):
    """The definition, pair by pair."""
    kernel = lambda a, b: (float(a @ b) / 5 + 1) ** 3  # noqa: E731
    within = [kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    of_y = [kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    between = [kernel(a, b) for a in x for b in y]
    return sum(within) / len(within) + sum(of_y) / len(of_y) - 2 * sum(between) / len(between)


def generated(real, *seeds, shift=0.0):
    units = {"generated": torch.tensor([0, 0, 1, 2, 3, 4])}
    return [Measurement([], {"generated": features(seed, shift), "real": real}, units) for seed in seeds]


def test_kernel_distances_are_those_of_the_definition_and_differences_their_mean_over_seeds():
    real = features(9, n=7)
    a, b = generated(real, 1, 2), generated(real, 3, 4, shift=0.5)
    found = verdicts.compare_kd((a, b), num_resamples=50)
    by_hand = [sum(squared_mmd(each.items["generated"], real) for each in side) / 2 for side in (a, b)]
    assert found.difference == pytest.approx(by_hand[0] - by_hand[1], abs=1e-5)
    assert found.resampled.shape == (50,)
    assert found.resampled.std() > 0
    assert found.num_seeds == 2


def test_an_image_that_is_drawn_twice_is_not_compared_with_itself():
    x, real = features(1), features(9)
    distance = KernelDistance.of({"generated": x, "real": real})
    counts = torch.tensor([[2.0, 1, 1, 1, 1, 0]]).double()
    drawn = x[[0, 0, 1, 2, 3, 4]]
    pairs = [(i, j) for i in range(6) for j in range(6) if not torch.equal(drawn[i], drawn[j])]
    within = sum((float(drawn[i] @ drawn[j]) / 5 + 1) ** 3 for i, j in pairs) / len(pairs)
    of_all = squared_mmd(drawn, real)
    kernel_within = [(float(drawn[i] @ drawn[j]) / 5 + 1) ** 3 for i in range(6) for j in range(6) if i != j]
    assert float(distance(counts)) == pytest.approx(
        of_all - sum(kernel_within) / len(kernel_within) + within, abs=1e-5
    )


def compared(name, values, budget="steps", num_planned=3, **claim):
    resampled = torch.tensor(values, dtype=torch.float64).numpy()
    comparison = Comparison(float(resampled.mean()), resampled, 3)
    plan = ClaimPlan(text="t", a="a", b="b", **claim)
    return verdicts.ComparedClaim(name, plan, budget, "a", "b", (1.0, 1.0), comparison, 10).row(num_planned)


def test_claims_of_a_budget_share_holm_s_correction_and_lower_kd_is_better():
    clear, none = [1.0 + 0.001 * i for i in range(1000)], [float(i % 2 * 2 - 1) for i in range(1000)]
    rows = verdicts.judge([
        compared("P1", clear), compared("P2", [-each for each in clear], metric="kd"), compared("P3", none),
        compared("P1", none, budget="flop"),
    ], {"steps": 3, "flop": 1})  # fmt: skip
    (accuracy,) = verdicts.judge([compared("E1", clear, metric="accuracy")], {"steps": 1})
    assert accuracy["verdict"] == "holds here"
    found = {(row["claim"], row["budget"]): row for row in rows}
    assert [row["verdict"] for row in rows] == ["holds here", "holds here", "cannot be decided", "cannot be decided"]
    assert found["P1", "steps"]["level"] == pytest.approx(1 - 0.05 / 3)
    assert found["P2", "steps"]["level"] == pytest.approx(1 - 0.05 / 2)
    assert found["P3", "steps"]["level"] == pytest.approx(0.95)
    assert found["P1", "flop"]["level"] == pytest.approx(0.95)
    assert found["P1", "steps"]["judged_low"] <= found["P1", "steps"]["ci_low"]


def test_a_claim_with_a_margin_is_one_of_equality():
    (row,) = verdicts.judge([compared("P7", [0.1 * (i % 5 - 2) for i in range(1000)], margin=1.0)], {"steps": 1})
    assert row["verdict"] == "holds here"


def test_a_claim_that_was_not_run_counts_in_holm_s_correction():
    (row,) = verdicts.judge([compared("P1", [1.0 + 0.001 * i for i in range(1000)], num_planned=8)], {"steps": 8})
    assert row["level"] == pytest.approx(1 - 0.05 / 8)


def test_images_of_one_unit_are_drawn_together():
    """Two generated images of one concept: a resample has both or neither."""
    seen = []

    def of_counts(counts):
        seen.append(counts)
        return counts.sum(dim=1)

    found = verdicts._compare_counted([[of_counts], [of_counts]], torch.tensor([7, 7, 3]), 200)
    drawn = torch.cat(seen[:-2])
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    assert (drawn > 0).sum(dim=1).min() >= 2
    assert found.difference == 0


def test_costs_count_as_equal_within_two_percent():
    assert verdicts.same_cost({"a": 100, "b": 98.1}, "a", "b")
    assert not verdicts.same_cost({"a": 100, "b": 97.9}, "a", "b")
