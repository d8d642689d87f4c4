"""ranks.py: equal to the matrix of all scores, its ties, its memory, CLIP_benchmark's recall, and what it refuses."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from palindiff.evaluation import ranks
from palindiff.evaluation.ranks import first_ranks, first_ranks_both_ways
from palindiff.evaluation.retrieval import best_ranks, random_orders, recall_from_ranks


def unit(n, d, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make_pairs(num_images, num_captions, seed=0):
    """Every caption has one image, in random order; some have a second one, so captions are shared."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.stack([torch.arange(num_captions) % num_images, torch.arange(num_captions)], dim=1)
    shared = torch.stack([torch.randint(num_images, (9,), generator=generator), torch.arange(9)], dim=1)
    pairs = torch.cat([pairs, shared])
    return pairs[torch.randperm(len(pairs), generator=generator)]


def matrix(images, captions, pairs):
    positives = torch.zeros(len(images), len(captions), dtype=torch.bool)
    positives[pairs[:, 0], pairs[:, 1]] = True
    return (images.double() @ captions.double().T).float(), positives


@pytest.mark.parametrize("scores_at_once", [1, 200, 2**22])
def test_ranks_are_those_of_the_whole_matrix(monkeypatch, scores_at_once):
    monkeypatch.setattr(ranks, "SCORES_AT_ONCE", scores_at_once)  # 60 captions: one image, 3 or all at once
    images, captions, pairs = unit(20, 8), unit(60, 8, seed=1), make_pairs(20, 60)
    scores, positives = matrix(images, captions, pairs)
    of_images, of_captions = best_ranks(scores, positives), best_ranks(scores.T, positives.T)
    assert torch.equal(first_ranks(images, captions, pairs), of_images)
    assert torch.equal(first_ranks(captions, images, pairs.flip(1)), of_captions)
    both = first_ranks_both_ways(images, captions, pairs)
    assert torch.equal(both[0], of_images)
    assert torch.equal(both[1], of_captions)
    assert of_images.unique().numel() > 5


def test_ranks_are_counted_by_hand():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    captions = torch.tensor([[0.9, 0.3], [0.8, 0.1], [0.1, 0.7], [1.0, 0.9]])
    pairs = torch.tensor([[0, 1], [1, 2], [0, 2], [1, 0], [1, 3], [1, 2]])  # caption 2 is of both, and listed twice
    of_images, of_captions = first_ranks_both_ways(images, captions, pairs)
    assert of_images.tolist() == [2, 0]  # 0.8 of caption 1 after 1.0 and 0.9; 0.9 of caption 3
    assert of_captions.tolist() == [1, 0, 0, 1]  # 0.3 after 0.9; 0.8; 0.7 of its images; 0.9 after 1.0


@pytest.mark.parametrize("n", [5, 8, 13, 17])
def test_equal_candidates_tie_wherever_they_are(n):
    """All embeddings are one point: every wrong candidate is before the right one, the last of a vector width too."""
    e = unit(1, 37).repeat(n, 1)
    pairs = torch.arange(n)[:, None].expand(n, 2)
    for found in first_ranks_both_ways(e, e, pairs):
        assert found.tolist() == [n - 1] * n


def test_the_order_of_queries_candidates_and_pairs_changes_nothing():
    images, captions, pairs = unit(20, 8), unit(60, 8, seed=1), make_pairs(20, 60)
    order, of_captions = random_orders(20, 1)[0], random_orders(60, 1)[0]
    moved = torch.stack([order.argsort()[pairs[:, 0]], of_captions.argsort()[pairs[:, 1]]], dim=1)
    found = first_ranks(images[order], captions[of_captions], moved[random_orders(len(pairs), 1)[0]])
    assert torch.equal(found, first_ranks(images, captions, pairs)[order])


def test_shuffled_images_fall_to_chance():
    """The control without a matrix: the same images in another order."""
    e = unit(2000, 32)
    pairs = torch.arange(2000)[:, None].expand(2000, 2)
    assert recall_from_ranks(first_ranks(e, e, pairs), [1]) == {1: 1.0}
    shuffled = recall_from_ranks(first_ranks(e[random_orders(2000, 1)[0]], e, pairs), [100])[100]
    assert shuffled == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 2000))


@pytest.mark.ecosystem
def test_recall_is_clip_benchmark_s():
    """Three captions an image, none of them shared, no ties: there both definitions are the same."""
    for package in ("clip_benchmark", "tqdm"):
        pytest.importorskip(package, reason=f"needs {package}, which `make test` installs")
    theirs = importlib.import_module("clip_benchmark.metrics.zeroshot_retrieval").recall_at_k
    images, captions = unit(30, 8), unit(90, 8, seed=1)
    pairs = torch.stack([torch.arange(90) // 3, torch.arange(90)], dim=1)
    scores, positives = matrix(images, captions, pairs)
    of_images, of_captions = first_ranks_both_ways(images, captions, pairs)
    for k in (1, 5, 10):
        expected = (theirs(scores, positives, k) > 0, theirs(scores.T, positives.T, k) > 0)
        assert torch.equal(of_images < k, expected[0])
        assert torch.equal(of_captions < k, expected[1])
        assert 0 < expected[0].float().mean() < 1


class Largest(TorchDispatchMode):
    """The largest tensor that is made."""

    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        self.num_bytes = max([self.num_bytes, *(each.nbytes for each in tree_leaves(made) if torch.is_tensor(each))])
        return made


def test_memory_is_that_of_the_candidates_and_of_a_part_of_the_scores(monkeypatch):
    monkeypatch.setattr(ranks, "SCORES_AT_ONCE", 10_000)
    pairs = torch.stack([torch.arange(3000) // 5, torch.arange(3000)], dim=1)
    with Largest() as largest:
        first_ranks_both_ways(unit(600, 4), unit(3000, 4), pairs)
    assert largest.num_bytes == max(3000 * 4 * 8, 9000 * 8)  # in float64; all scores would be 14.4 MB


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda q, c, r: (q, c[:, :5], r), ValueError, r"shape \(20, 8\) and `candidates` \(60, 5\)"),
        (lambda q, c, r: (q[0], c, r), ValueError, r"`queries` has shape \(8,\)"),
        (lambda q, c, r: (q[:0], c, r), ValueError, r"`queries` has shape \(0, 8\)"),
        (lambda q, c, r: (q.long(), c, r), TypeError, r"`queries` is torch.int64. Expected floating point"),
        (lambda q, c, r: (q, c.index_fill(0, torch.tensor([2, 5]), math.nan), r), ValueError,
         r"2 of 60 `candidates` are not finite"),
        (lambda q, c, r: (q, c, r.int()), ValueError, r"`relevant` is torch.int32"),
        (lambda q, c, r: (q, c, r[:, 0]), ValueError, r"Expected int64 \(p, 2\)"),
        (lambda q, c, r: (q, c, r[:0]), ValueError, r"shape \(0, 2\)"),
        (lambda q, c, r: (q, c, r.flip(1)), ValueError, r"with 20 queries and 60 candidates.*relevant.flip\(1\)"),
        (lambda q, c, r: (q, c, r - 1), ValueError, r"runs from \[-1, -1\]"),
        (lambda q, c, r: (q, c, r[r[:, 0] > 1]), ValueError, r"2 of 20 queries have no positive"),
    ],
)  # fmt: skip
def test_what_has_no_ranks_is_refused(change, error, sentence):
    given = change(unit(20, 8), unit(60, 8, seed=1), make_pairs(20, 60))
    for ranked in (first_ranks, first_ranks_both_ways):
        with pytest.raises(error, match=sentence):
            ranked(*given)


def test_a_caption_of_no_image_is_refused_as_a_query_only():
    images, captions, pairs = unit(4, 8), unit(6, 8, seed=1), torch.tensor([[0, 0], [1, 1], [2, 2], [3, 4]])
    assert len(first_ranks(images, captions, pairs)) == 4
    with pytest.raises(ValueError, match="2 of 6 captions have no positive"):
        first_ranks_both_ways(images, captions, pairs)
