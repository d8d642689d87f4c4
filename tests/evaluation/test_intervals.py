"""intervals.py: against formulas, drawing by hand, simulated data of known truth; directions, and what is refused."""

import math

import numpy as np
import pytest
import torch

from palindiff.evaluation import intervals
from palindiff.evaluation.intervals import (
    Comparison,
    bootstrap_interval,
    bootstrap_p_value,
    compare,
    holm_levels,
    percentile_interval,
    resampled_means,
    verdict,
)

STUDENT_OF_THREE = 4.303 / 1.960 * 1.5**0.5  # how much further from their mean three drawn seeds are moved


def draws_by_hand(values, groups, num_resamples, units=None, seed=5):
    """Means of seeds and, within each group, of items or units of them, drawn one resample at a time."""
    draw, found, num_seeds = np.random.default_rng(seed), [], len(values)
    units = np.arange(values.shape[1]) if units is None else units
    for _ in range(num_resamples):
        of_seeds = np.zeros(num_seeds)
        for group in np.unique(groups):
            members = np.flatnonzero(groups == group)
            drawn = draw.choice(np.unique(units[members]), len(np.unique(units[members])))
            items = np.concatenate([members[units[members] == unit] for unit in drawn])
            of_seeds += values[:, items].mean(axis=1) / len(np.unique(groups))
        mean, drawn_mean = of_seeds.mean(), of_seeds[draw.integers(0, num_seeds, num_seeds)].mean()
        found.append(mean + (STUDENT_OF_THREE if num_seeds == 3 else 1) * (drawn_mean - mean))
    return np.array(found)


def check_quantiles(found, expected, atol):
    ends = [0.025, 0.5, 0.975]
    np.testing.assert_allclose(np.quantile(found, ends), np.quantile(expected, ends), atol=atol)


@pytest.mark.parametrize("has_few_values", [True, False])
@pytest.mark.parametrize("num_seeds", [1, 3])
@pytest.mark.parametrize("has_groups", [False, True])
def test_means_are_those_of_drawing_by_hand(has_few_values, num_seeds, has_groups):
    draw = np.random.default_rng(0)
    values = draw.normal(size=(num_seeds, 60)) + draw.normal(size=(num_seeds, 1))
    values = np.sign(values) if has_few_values else values
    groups = np.repeat([7, 2, 4], [6, 14, 40])
    expected = draws_by_hand(values, groups if has_groups else 0 * groups, 2000)
    items = torch.from_numpy(values if num_seeds > 1 else values[0])
    found = resampled_means(items, torch.from_numpy(groups) if has_groups else None, 10_000)
    assert found.shape == (10_000,)
    check_quantiles(found, expected, atol=0.15 * expected.std())  # a quantile of 2,000 draws


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_items_of_a_unit_are_drawn_together(num_seeds):
    """Four items of each of 15 units, which depend on each other, in two groups that share no unit."""
    draw = np.random.default_rng(0)
    values = np.repeat(draw.normal(size=(num_seeds, 15)), 4, axis=1) + 0.1 * draw.normal(size=(num_seeds, 60))
    units, groups = np.repeat(np.arange(15), 4), np.repeat([0, 1], [20, 40])
    expected = draws_by_hand(values, groups, 2000, units)
    found = resampled_means(torch.from_numpy(values), torch.from_numpy(groups), units=torch.from_numpy(units))
    check_quantiles(found, expected, atol=0.15 * expected.std())
    alone = resampled_means(torch.from_numpy(values), torch.from_numpy(groups))
    assert found.std() > 1.2 * alone.std()


def test_groups_that_share_units_share_the_draw():
    """Both directions of one pair are hit or missed together: their mean varies as one direction does."""
    hits = torch.tensor([1.0, 0.0] * 50)
    both, ways, pairs = hits.repeat(2), torch.arange(200) // 100, torch.arange(100).repeat(2)
    one, shared = resampled_means(hits).std(), resampled_means(both, ways, units=pairs).std()
    assert shared == pytest.approx(one, rel=0.03)
    assert resampled_means(both, ways).std() == pytest.approx(one / 2**0.5, rel=0.03)
    assert resampled_means(both, ways, units=pairs).mean() == pytest.approx(0.5, abs=0.01)


def test_units_of_one_item_are_items():
    items, groups = torch.rand(2, 90, generator=torch.Generator().manual_seed(0)), torch.arange(90) // 30
    alone = resampled_means(items, groups, units=torch.arange(90))
    assert np.array_equal(alone, resampled_means(items, groups))


def test_a_unit_that_alone_has_a_group_keeps_its_mean_when_it_is_not_drawn():
    found = resampled_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 1, 1]), units=torch.tensor([0, 0, 1]))
    assert set(found) == {(1 + 3) / 2, (1 + 4) / 2, (1 + 5) / 2}


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_seeds_that_differ_by_chance_alone_decide_as_rarely_as_the_level_says(num_seeds):
    """Items are all equal, so that the seeds are all there is: Student's case."""
    draw, decided = np.random.default_rng(0), 0
    for trial in range(400):
        items = torch.from_numpy(draw.normal(size=(num_seeds, 1))).expand(-1, 2)
        low, high = bootstrap_interval(items, num_resamples=1000, seed=trial)
        decided += not low <= 0 <= high
    assert abs(decided / 400 - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 400)


def test_weights_of_seeds_sum_to_one_and_those_of_one_seed_are_one():
    weights = intervals.seed_weights(3, 500, np.random.default_rng(0))
    assert weights.sum(axis=1) == pytest.approx(np.ones(500))
    assert weights.mean(axis=0) == pytest.approx(np.full(3, 1 / 3), abs=0.1)
    assert (intervals.seed_weights(1, 5, np.random.default_rng(0)) == 1).all()
    assert intervals.seed_weights(30, 5, np.random.default_rng(0)).shape == (5, 30)


def test_an_interval_of_hits_has_the_binomial_s_quantiles():
    """The number of hits among 20 draws is binomial; its distribution is summed here."""
    share, n = 0.3, 20
    low, high = bootstrap_interval(torch.tensor([1.0] * 6 + [0.0] * 14))
    sums = np.cumsum([math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)])
    assert (low, high) == (np.searchsorted(sums, 0.025) / n, np.searchsorted(sums, 0.975) / n)


def test_both_ways_of_drawing_agree_and_parts_too(monkeypatch):
    items = torch.rand(400, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    by_count = resampled_means(items)
    monkeypatch.setattr(intervals, "MULTINOMIAL_COST", 10**9)
    check_quantiles(resampled_means(items), by_count, atol=0.002)
    monkeypatch.setattr(intervals, "RESAMPLED_AT_ONCE", 400 * 7)
    check_quantiles(resampled_means(items), by_count, atol=0.002)


def test_mean_per_class_recall_has_the_interval_of_its_classes():
    """A class of two images moves the mean as much as one of fifty: the variance of the mean of both class means."""
    hits, classes = torch.tensor([1.0, 0.0] + [1.0, 0.0] * 25), torch.tensor([0] * 2 + [1] * 50)
    found = resampled_means(hits, classes)
    assert found.mean() == pytest.approx(0.5, abs=0.01)
    assert found.var() == pytest.approx((0.25 / 2 + 0.25 / 50) / 4, rel=0.05)


def test_intervals_hold_the_truth_as_often_as_they_say():
    draw, truth, num_held = np.random.default_rng(0), 0.3, 0
    for trial in range(300):
        hits = torch.from_numpy((draw.random(60) < truth).astype(float))
        low, high = bootstrap_interval(hits, num_resamples=500, seed=trial)
        num_held += low <= truth <= high
    assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / 300) < num_held / 300 < 1  # 4 standard deviations


def test_more_items_more_seeds_and_a_lower_level_narrow_the_interval():
    draw = torch.Generator().manual_seed(0)
    items = torch.rand(1000, generator=draw)

    def width(*given, **options):
        low, high = bootstrap_interval(*given, **options)
        return high - low

    assert width(items) < width(items[:100]) / 2
    assert width(items, level=0.8) < width(items) < width(items, level=0.99)
    of_seeds = torch.rand(5, 1, generator=draw) + 0.01 * torch.rand(5, 100, generator=draw)
    assert width(of_seeds) > 5 * width(of_seeds[0])  # seeds that differ widen it


def test_draws_depend_on_the_seed_alone():
    items = torch.rand(3, 30, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(resampled_means(items), resampled_means(items))
    assert not np.array_equal(resampled_means(items), resampled_means(items, seed=1))


def test_pairing_removes_what_both_models_share():
    """Items differ widely, and A is better by the same step on each: the paired interval is a point."""
    b = torch.linspace(0, 100, 50).repeat(3, 1)
    found = compare(b + 0.5, b)
    assert found.interval() == (pytest.approx(0.5), pytest.approx(0.5))
    assert (found.difference, found.num_seeds) == (pytest.approx(0.5), 3)


def test_a_comparison_swaps_with_its_sides():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.rand(3, 40, generator=draw) + 0.3, torch.rand(3, 40, generator=draw)
    forth, back = compare(a, b), compare(b, a)
    assert forth.difference == pytest.approx(float((a.double() - b.double()).mean()), abs=1e-12) == -back.difference
    assert forth.interval() == pytest.approx([-end for end in reversed(back.interval())], abs=0.01)
    assert forth.interval()[0] < forth.difference < forth.interval()[1]
    groups = torch.arange(40) // 30
    expected = ((a - b)[:, :30].mean() + (a - b)[:, 30:].mean()) / 2
    assert compare(a, b, groups).difference == pytest.approx(float(expected), abs=1e-6)
    assert compare(a, b[0]).num_seeds == 1
    assert compare(a, b[0]).difference == pytest.approx(float((a.double() - b[:1].double()).mean()), abs=1e-12)


def test_p_value_is_the_smallest_level_that_decides():
    resampled = np.arange(1, 1000) - 11.5  # 11 of 999 at or below 0
    assert bootstrap_p_value(resampled) == pytest.approx(2 * 12 / 1000)
    assert bootstrap_p_value(-resampled) == bootstrap_p_value(resampled)
    for alpha, decides in ((0.03, True), (0.02, False)):
        found = verdict(*percentile_interval(resampled, 1 - alpha))
        assert (found == "holds here") is decides
    assert bootstrap_p_value(np.ones(99)) == pytest.approx(0.02)
    assert bootstrap_p_value(np.zeros(99)) == 1
    assert Comparison(0.0, resampled, 1).p_value() == bootstrap_p_value(resampled)


def test_p_value_with_a_margin_is_of_being_within_or_outside_of_it():
    resampled = np.linspace(-1, 1, 999)
    assert bootstrap_p_value(resampled, margin=2) == pytest.approx(2 / 1000)
    assert bootstrap_p_value(resampled + 4, margin=2) == pytest.approx(2 / 1000)
    assert bootstrap_p_value(resampled - 4, margin=2) == pytest.approx(2 / 1000)
    assert bootstrap_p_value(resampled + 2, margin=2) == pytest.approx(1, abs=0.01)
    at_0_9 = 2 * (1 + int((resampled >= 0.9).sum())) / 1000
    assert bootstrap_p_value(resampled, margin=0.9) == pytest.approx(at_0_9)


def test_p_values_of_equal_models_are_uniform_enough():
    """Where there is no difference, 5 % of the p-values are below 0.05."""
    draw, num_below = np.random.default_rng(0), 0
    for trial in range(300):
        a, b = (torch.from_numpy(draw.normal(size=50)) for _ in range(2))
        num_below += compare(a, b, num_resamples=500, seed=trial).p_value() < 0.05
    assert num_below / 300 == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 300))  # 4 standard deviations


def holm(p_values):
    """Holm (1979): the i-th smallest of m times m - i + 1, no smaller than those before it, 1 at most."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def test_levels_decide_as_adjusted_p_values_do():
    draw = np.random.default_rng(0)
    for _ in range(200):
        p_values = (draw.random(5) ** 3).tolist()
        levels = holm_levels(p_values)
        decided = [p <= 1 - level + 1e-12 for p, level in zip(p_values, levels, strict=True)]
        assert decided == [p <= 0.05 for p in holm(p_values)]
    assert holm_levels([0.001, 0.012, 0.02]) == pytest.approx([1 - 0.05 / 3, 1 - 0.05 / 2, 0.95])
    assert holm_levels([0.001, 0.03, 0.04]) == pytest.approx([1 - 0.05 / 3, 1 - 0.05 / 2, 1 - 0.05 / 2])


@pytest.mark.parametrize(
    ("interval", "options", "expected"),
    [
        ((0.1, 0.3), {}, "holds here"),
        ((-0.3, -0.1), {}, "does not hold here"),
        ((-0.1, 0.3), {}, "cannot be decided"),
        ((0.0, 0.3), {}, "cannot be decided"),
        ((-0.3, 0.0), {}, "cannot be decided"),
        ((0.1, 0.3), {"sign": -1}, "does not hold here"),
        ((-0.3, -0.1), {"sign": -1}, "holds here"),
        ((-0.5, 0.9), {"margin": 1}, "holds here"),
        ((0.2, 0.9), {"margin": 1}, "holds here"),
        ((-0.5, 1.0), {"margin": 1}, "cannot be decided"),
        ((-2.0, 2.0), {"margin": 1}, "cannot be decided"),
        ((1.1, 2.0), {"margin": 1}, "does not hold here"),
        ((-2.0, -1.1), {"margin": 1}, "does not hold here"),
    ],
)
def test_verdict_follows_from_the_interval(interval, options, expected):
    assert verdict(*interval, **options) == expected


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: bootstrap_interval(torch.zeros(0)), "Pass one value for each item"),
        (lambda: bootstrap_interval(torch.zeros(2, 2, 2)), r"shape \(2, 2, 2\)"),
        (lambda: bootstrap_interval(torch.tensor([1.0, math.nan])), "Pass one value for each item"),
        (lambda: bootstrap_interval(torch.zeros(3), level=95), "`level` is 95"),
        (lambda: resampled_means(torch.zeros(3), torch.zeros(4)), r"shape \(4,\) with 3 items"),
        (lambda: compare(torch.zeros(3), torch.zeros(4)), r"shapes \(3,\) and \(4,\)"),
        (lambda: compare(torch.zeros(2, 3), torch.zeros(3, 3)), r"shapes \(2, 3\) and \(3, 3\)"),
        (lambda: holm_levels([]), "0 p-values were given"),
        (lambda: holm_levels([0.1, math.nan]), "2 p-values were given"),
        (lambda: verdict(1, 0), "runs from 1 to 0"),
        (lambda: verdict(math.nan, 0), "runs from nan to 0"),
        (lambda: verdict(0, 1, margin=0), "`margin` is 0"),
    ],
)
def test_what_has_no_interval_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
