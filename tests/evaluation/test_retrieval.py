"""retrieval.py against sorting by hand and counting every ranking, its conventions, controls and refusals."""

import itertools

import pytest
import torch

from palindiff.evaluation.retrieval import (
    best_ranks,
    both_ways,
    chance_recall,
    chance_recall_of_counts,
    chance_reciprocal_rank,
    random_orders,
    recall_at_k,
    recall_from_ranks,
)


def make_table(num_images=7, num_captions=9, seed=0, num_levels=None):
    """Random scores, with ties if there are few levels; every image and caption has one to several positives."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(num_images, num_captions, generator=generator)
    if num_levels:
        scores = torch.randint(num_levels, scores.shape, generator=generator).float()
    positives = torch.rand(scores.shape, generator=generator) < 0.15
    positives[torch.arange(num_captions) % num_images, torch.arange(num_captions)] = True
    return scores, positives


def recall_by_hand(scores, positives, k):
    """Each query's candidates sorted, best first, the wrong one first among equals."""
    num_found = 0
    for row, right in zip(scores.tolist(), positives.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda j: (-row[j], right[j]))
        num_found += any(right[j] for j in order[:k])
    return num_found / len(scores)


@pytest.mark.parametrize("num_levels", [None, 3])
@pytest.mark.parametrize("seed", range(5))
def test_recall_equals_sorting_by_hand(seed, num_levels):
    scores, positives = make_table(seed=seed, num_levels=num_levels)
    ks = [1, 2, 5, 9]
    assert recall_at_k(scores, positives, ks) == {k: recall_by_hand(scores, positives, k) for k in ks}


def test_recall_is_the_same_in_chunks(monkeypatch):
    scores, positives = make_table(num_levels=4)
    whole = recall_at_k(scores, positives, [1, 3])
    monkeypatch.setattr("palindiff.evaluation.retrieval.QUERIES_AT_ONCE", 3)  # 7 queries: 3, 3 and 1
    assert recall_at_k(scores, positives, [1, 3]) == whole


def test_recall_ignores_the_order_of_queries_and_candidates():
    scores, positives = make_table(num_levels=4)
    queries, candidates = torch.tensor([3, 0, 6, 1, 5, 2, 4]), torch.tensor([8, 2, 0, 1, 7, 5, 3, 6, 4])
    shuffled = recall_at_k(scores[queries][:, candidates], positives[queries][:, candidates], [1, 2, 4])
    assert shuffled == recall_at_k(scores, positives, [1, 2, 4])


def test_one_of_several_positives_is_enough():
    scores = torch.tensor([[0.9, 0.8, 0.1, 0.0]])
    assert recall_at_k(scores, torch.tensor([[False, True, False, True]]), [1, 2]) == {1: 0.0, 2: 1.0}


def test_ties_count_against_the_model():
    scores, positives = torch.zeros(6, 6), torch.eye(6, dtype=torch.bool)
    assert recall_at_k(scores, positives, [1, 5, 6]) == {1: 0.0, 5: 0.0, 6: 1.0}
    tied_among_positives = torch.tensor([[1.0, 1.0, 0.0]])
    assert recall_at_k(tied_among_positives, torch.tensor([[True, True, False]]), [1]) == {1: 1.0}


@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_chance_equals_counting_every_ranking(k):
    positives = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 1, 0, 1], [0, 0, 0, 1, 0]]).bool()
    rankings = list(itertools.permutations(range(5)))
    found = [any(right[j] for j in ranking[:k]) for right in positives.tolist() for ranking in rankings]
    assert chance_recall(positives, k) == pytest.approx(sum(found) / len(found), abs=1e-12)  # float64 sum of 4 terms


def test_chance_is_k_of_n_with_one_positive_in_many():
    positives = torch.zeros(3, 25_000, dtype=torch.bool)
    positives[:, 17] = True
    assert chance_recall(positives, 10) == pytest.approx(10 / 25_000, abs=1e-12)


def test_both_ways_reads_rows_as_images_and_columns_as_captions():
    """Every image puts caption 0 first, rightly for image 0 alone; every caption's best image is its own."""
    scores = torch.tensor([[9.0, 1.0, 0.0], [8.0, 7.0, 0.0], [8.0, 2.0, 5.0]])
    rows = both_ways(scores, torch.eye(3, dtype=torch.bool), [1])
    assert [(row["direction"], row["k"], row["n"]) for row in rows] == [
        ("image_to_text", 1, 3),
        ("text_to_image", 1, 3),
    ]
    assert [row["recall"] for row in rows] == [pytest.approx(1 / 3), 1.0]


def test_both_ways_counts_queries_of_each_direction():
    rows = both_ways(*make_table(num_images=4, num_captions=9), [1, 3])
    assert [(row["direction"], row["k"], row["n"]) for row in rows] == [
        ("image_to_text", 1, 4),
        ("image_to_text", 3, 4),
        ("text_to_image", 1, 9),
        ("text_to_image", 3, 9),
    ]


def test_both_ways_swaps_its_directions_with_the_table():
    scores, positives = make_table(num_levels=5)
    recall = {row["direction"]: row["recall"] for row in both_ways(scores, positives, [2])}
    swapped = {row["direction"]: row["recall"] for row in both_ways(scores.T, positives.T, [2])}
    assert (recall["image_to_text"], recall["text_to_image"]) == (swapped["text_to_image"], swapped["image_to_text"])


def test_shuffled_falls_to_chance_when_the_model_is_perfect():
    scores = torch.eye(100)
    scores += 1e-3 * torch.randn(100, 100, generator=torch.Generator().manual_seed(0))  # no ties
    for row in both_ways(scores, torch.eye(100, dtype=torch.bool), [1, 10], num_shuffles=50):
        assert row["recall"] == 1
        assert row["chance"] == pytest.approx(row["k"] / 100)
        deviation = (row["chance"] * (1 - row["chance"]) / (100 * 50)) ** 0.5  # of 50 means of 100 queries
        assert row["shuffled"] == pytest.approx(row["chance"], abs=4 * deviation)


def test_shuffled_shows_what_a_frequent_caption_wins_blindly():
    """Caption 0 is right for 9 of 10 images and always named: only the shuffled control sees that."""
    scores, positives = torch.zeros(10, 4), torch.zeros(10, 4, dtype=torch.bool)
    scores[:, 0], positives[:9, 0], positives[9, 1:] = 1, True, True
    forth = both_ways(scores, positives, [1])[0]
    assert (forth["recall"], forth["shuffled"]) == (0.9, pytest.approx(0.9))
    assert forth["chance"] == pytest.approx((9 / 4 + 3 / 4) / 10)


def test_shuffled_equals_recall_of_each_shuffled_table():
    scores, positives = make_table()
    tables = [scores[order] for order in random_orders(len(scores), 3, seed=5)]
    by_hand = sum(recall_by_hand(table.T, positives.T, 2) for table in tables) / 3
    row = both_ways(scores, positives, [2], num_shuffles=3, seed=5)[1]
    assert row["shuffled"] == pytest.approx(by_hand, abs=1e-12)


def test_random_orders_depend_on_the_seed_alone():
    orders = torch.stack(random_orders(20, 5, seed=1))
    assert torch.equal(orders, torch.stack(random_orders(20, 5, seed=1)))
    assert not torch.equal(orders, torch.stack(random_orders(20, 5, seed=2)))
    assert torch.equal(orders.sort(dim=1).values, torch.arange(20).expand(5, 20))


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda s, p: (s, p, [10]), ValueError, r"k is 10 with 9 candidates. Expected 1 to 9"),
        (lambda s, p: (s, p, [0]), ValueError, r"k is 0 with 9 candidates"),
        (lambda s, p: (s, p, []), ValueError, r"`ks` is empty"),
        (lambda s, p: (s.T, p, [1]), ValueError, r"shape \(9, 7\) and `positives` \(7, 9\).*pass `positives.T`"),
        (
            lambda s, p: (s[0], p[0], [1]),
            ValueError,
            r"`positives` has shape \(9,\). Expected \(queries, candidates\)",
        ),
        (lambda s, p: (s[:0], p[:0], [1]), ValueError, r"`positives` has shape \(0, 9\)"),
        (lambda s, p: (s, p.float(), [1]), TypeError, r"`positives` is torch.float32. Expected bool"),
        (lambda s, p: (s.long(), p, [1]), TypeError, r"`scores` is torch.int64. Expected floating point"),
        (lambda s, p: (s.log(), p, [1]), ValueError, r"of 63 numbers in `scores` are not finite"),
        (lambda s, p: (s / 0, p, [1]), ValueError, r"63 of 63 numbers in `scores` are not finite"),
        (lambda s, p: (s, p & False, [1]), ValueError, r"7 of 7 queries have no positive"),
    ],
)
def test_recall_refuses(change, error, sentence):
    arguments = change(*make_table())
    with pytest.raises(error, match=sentence):
        recall_at_k(*arguments)


def test_both_ways_refuses_k_over_the_smaller_side():
    with pytest.raises(ValueError, match="k is 8 with 7 candidates"):
        both_ways(*make_table(), [8])


def test_both_ways_refuses_a_caption_of_no_image():
    scores, positives = make_table()
    positives[:, 4], positives[4, 0] = False, True
    with pytest.raises(ValueError, match="1 of 9 queries have no positive"):
        both_ways(scores, positives, [1])


def test_controls_are_never_left_out():
    with pytest.raises(ValueError, match="`num_shuffles` is 0"):
        both_ways(*make_table(), [1], num_shuffles=0)


def test_chance_refuses_k_over_the_candidates():
    with pytest.raises(ValueError, match="k is 4 with 3 candidates"):
        chance_recall(torch.eye(3, dtype=torch.bool), 4)


def test_recall_from_ranks_is_recall_at_k():
    scores, positives = make_table(num_levels=4)
    assert recall_from_ranks(best_ranks(scores, positives), [1, 3]) == recall_at_k(scores, positives, [1, 3])


def test_chance_of_the_reciprocal_rank_equals_counting_every_ranking():
    positives = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]]).bool()
    rankings = list(itertools.permutations(range(5)))
    found = [
        1 / next(place for place, j in enumerate(ranking, 1) if right[j])
        for right in positives.tolist()
        for ranking in rankings
    ]
    chance = chance_reciprocal_rank(positives.sum(dim=1), 5)
    assert chance == pytest.approx(sum(found) / len(found), abs=1e-12)  # float64 sum of 4 terms


def test_chance_of_the_reciprocal_rank_with_one_right_answer_is_the_harmonic_mean():
    harmonic = sum(1 / place for place in range(1, 25_001)) / 25_000
    assert chance_reciprocal_rank(torch.tensor([1, 1]), 25_000) == pytest.approx(harmonic, rel=1e-9)


def test_chance_of_counts_is_that_of_the_table():
    _, positives = make_table()
    assert chance_recall_of_counts(positives.sum(dim=1), 9, 3) == chance_recall(positives, 3)


@pytest.mark.parametrize(
    "num_right", [torch.tensor([0, 1]), torch.tensor([1, 6]), torch.tensor([], dtype=torch.int64)]
)
def test_chance_refuses_counts_that_cannot_be(num_right):
    for chance in (lambda: chance_recall_of_counts(num_right, 5, 1), lambda: chance_reciprocal_rank(num_right, 5)):
        with pytest.raises(ValueError, match=r"`num_right` has shape.*with 5 candidates"):
            chance()
