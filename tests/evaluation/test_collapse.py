"""collapse.py: values by hand, and by loops over pairs."""

import math

import pytest
import torch
import torch.nn.functional as F

from palindiff.evaluation import collapse
from palindiff.evaluation.collapse import alignment, effective_rank, mean_pairwise_cosine, uniformity


def unit(n, d, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_statistics_are_those_of_all_pairs(monkeypatch):
    e = unit(30, 5)
    pairs = [(i, j) for i in range(30) for j in range(30) if i != j]
    assert mean_pairwise_cosine(e) == pytest.approx(sum(float(e[i] @ e[j]) for i, j in pairs) / len(pairs), abs=1e-6)
    potential = sum(math.exp(-2 * float((e[i] - e[j]).square().sum())) for i, j in pairs) / len(pairs)
    assert uniformity(e) == pytest.approx(math.log(potential), abs=1e-5)
    whole = uniformity(e)
    monkeypatch.setattr(collapse, "ROWS_AT_ONCE", 7)
    assert uniformity(e) == pytest.approx(whole, abs=1e-12)


def test_the_rank_counts_the_dimensions_in_use():
    axes = torch.cat([torch.eye(4), -torch.eye(4)])
    assert effective_rank(axes) == pytest.approx(4)
    assert effective_rank(torch.cat([axes, torch.zeros(8, 3)], dim=1)) == pytest.approx(4)
    line = torch.tensor([[1.0, 0], [-1, 0]])
    assert effective_rank(line) == pytest.approx(1)
    stretched = F.normalize(axes * torch.tensor([1.0, 1, 0.2, 0.2]) + torch.tensor([3.0, 0, 0, 0]), dim=-1)
    assert 1 < effective_rank(stretched) < 4


def test_matching_pairs_are_as_far_apart_as_their_cosine_says():
    e = unit(20, 6)
    assert alignment(e, e) == 0
    assert alignment(e, -e) == pytest.approx(4)
    other = unit(20, 6, seed=1)
    assert alignment(e, other) == pytest.approx(float((2 - 2 * (e * other).sum(dim=1)).mean()), abs=1e-6)


def test_one_point_is_collapsed():
    e = torch.zeros(5, 3)
    e[:, 0] = 1
    assert mean_pairwise_cosine(e) == pytest.approx(1)
    assert uniformity(e) == pytest.approx(0)
    with pytest.raises(ValueError, match="All 5 embeddings are equal"):
        effective_rank(e)


@pytest.mark.parametrize(
    ("e", "message"),
    [
        (unit(1, 3), "n from 2 on"),
        (unit(3, 3)[0], "n from 2 on"),
        (unit(3, 3) * math.nan, "not finite"),
        (2 * unit(3, 3), "lengths from 2 to 2"),
    ],
)
def test_what_are_no_embeddings_is_refused(e, message):
    for statistic in (effective_rank, mean_pairwise_cosine, uniformity):
        with pytest.raises(ValueError, match=message):
            statistic(e)


def test_pairs_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(4, 4\)"):
        alignment(unit(3, 4), unit(4, 4))
