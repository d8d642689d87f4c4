"""naming_tasks.py and intervals.py: against values by hand, scikit-learn, and loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from palindiff.evaluation.intervals import bootstrap_interval
from palindiff.evaluation.naming_tasks import caption_retrieval, class_retrieval, classification, retrieval
from palindiff.evaluation.retrieval import chance_recall, chance_reciprocal_rank


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_name(metrics):
    return {each.name: each for each in metrics}


def test_classification_is_what_sorting_finds():
    e_0_hat, e, truth = unit(40, 8), unit(7, 8, seed=1), torch.arange(40) % 6  # a class without images
    found = by_name(classification(e_0_hat, e, truth))
    order = (e_0_hat @ e.T).argsort(dim=1, descending=True)
    for k in (1, 5):
        hits = [int(truth[i]) in order[i, :k].tolist() for i in range(40)]
        assert found[f"acc{k}"].value == pytest.approx(sum(hits) / 40)
        assert found[f"acc{k}"].items.tolist() == hits
        assert found[f"acc{k}"].chance == k / 7
    expected = balanced_accuracy_score(truth.numpy(), order[:, 0].numpy(), adjusted=False)
    assert found["mean_per_class_recall"].value == pytest.approx(expected)
    assert all(each.items.double().mean() == pytest.approx(each.value) for each in found.values())
    assert list(by_name(classification(e_0_hat, e[:6], truth, ks=(1, 7)))) == ["acc1", "mean_per_class_recall"]


def test_mean_average_precision_is_scikit_learn_s():
    e_0_hat, e, truth = unit(40, 8), unit(7, 8, seed=1), torch.arange(40) % 6  # a class without images
    (found,) = class_retrieval(e_0_hat, e, truth)
    expected = [average_precision_score((truth == c).numpy(), (e_0_hat @ e[c]).numpy()) for c in range(6)]
    assert found.items.tolist() == pytest.approx(expected)
    assert found.value == pytest.approx(sum(expected) / 6)
    assert (found.name, found.n) == ("class_retrieval_map", 6)


def test_chance_of_average_precision_is_that_of_random_orders_and_ties_count_against_the_model():
    truth = torch.tensor([0] * 3 + [1] * 9)
    values = [class_retrieval(unit(12, 4, seed=s), unit(2, 4, seed=s + 1000), truth)[0] for s in range(2000)]
    assert sum(each.value for each in values) / 2000 == pytest.approx(values[0].chance, abs=0.01)  # 3 standard errors
    (tied,) = class_retrieval(unit(1, 4).expand(12, 4), unit(2, 4, seed=1), truth)
    by_hand = [(1 / 10 + 2 / 11 + 3 / 12) / 3, sum(k / (k + 3) for k in range(1, 10)) / 9]
    assert tied.items.tolist() == pytest.approx(by_hand)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="Expected two or more"):
        classification(unit(3, 4), unit(1, 4), torch.zeros(3, dtype=torch.int64))


def test_retrieval_is_what_sorting_finds():
    """Two captions an image, one of them shared by two images."""
    e_0_hat, e = unit(12, 8), unit(23, 8, seed=1)
    positives = torch.zeros(12, 23, dtype=torch.bool)
    for image in range(12):
        positives[image, [2 * image % 23, (2 * image + 1) % 23]] = True
    found = by_name(retrieval(e_0_hat, e, positives.nonzero()))
    for name, scores, right in (("text", e_0_hat @ e.T, positives), ("image", e @ e_0_hat.T, positives.T)):
        order = scores.argsort(dim=1, descending=True)
        first = [next(place for place, c in enumerate(order[q]) if right[q, c]) for q in range(len(order))]
        for k in (1, 5, 10):
            value = found[f"{name}_retrieval_recall@{k}"].value
            assert value == pytest.approx(sum(place < k for place in first) / len(first))
        assert found[f"{name}_retrieval_mrr"].value == pytest.approx(sum(1 / (p + 1) for p in first) / len(first))
        assert found[f"{name}_retrieval_mrr"].n == len(first)
        for k in (1, 5, 10):
            assert found[f"{name}_retrieval_recall@{k}"].chance == chance_recall(right, k)
        chance = chance_reciprocal_rank(right.sum(dim=1), right.shape[1])
        assert found[f"{name}_retrieval_mrr"].chance == pytest.approx(chance, abs=1e-12)


def test_a_caption_of_two_images_is_right_for_both_and_counts_once():
    """Images 0 and 1 share `a`; image 2 lists its caption twice."""
    e = torch.eye(4)
    order = {"a": 0, "b": 1, "c": 2}
    found = by_name(caption_retrieval(
        e[[0, 0, 2]], [["a", "b"], ["a"], ["c", "c"]], lambda texts: e[[order[text] for text in texts]], ks=(1,)
    ))  # fmt: skip
    assert found["text_retrieval_recall@1"].value == 1
    assert found["image_retrieval_recall@1"].items.tolist() == [1, 0, 1]  # `b` finds no image
    assert found["text_retrieval_recall@1"].chance == pytest.approx((2 + 1 + 1) / 9)


def test_fewer_answers_than_k_are_refused():
    with pytest.raises(ValueError, match=r"recall@5 was asked for with 4 answers"):
        retrieval(unit(4, 3), unit(4, 3), torch.eye(4, dtype=torch.bool).nonzero())


def test_features_that_are_not_finite_are_refused():
    e = unit(10, 3)
    with pytest.raises(ValueError, match="not finite"):
        retrieval(e.index_fill(0, torch.tensor([1]), math.nan), e, torch.eye(10, dtype=torch.bool).nonzero())


def test_an_interval_of_hits_is_binomial():
    hits = torch.tensor([1.0] * 30 + [0.0] * 70)
    low, high = bootstrap_interval(hits)
    assert low == pytest.approx(0.3 - 1.96 * math.sqrt(0.21 / 100), abs=0.011)
    assert high == pytest.approx(0.3 + 1.96 * math.sqrt(0.21 / 100), abs=0.011)
    assert bootstrap_interval(hits) == (low, high)
    assert bootstrap_interval(torch.ones(5)) == (1, 1)


def test_an_interval_is_that_of_drawing_items(monkeypatch):
    items = torch.rand(30, generator=torch.Generator().manual_seed(0))
    generator = np.random.default_rng(1)
    means = [items[generator.integers(0, 30, 30)].mean().item() for _ in range(4000)]
    expected = np.quantile(means, [0.05, 0.95])
    np.testing.assert_allclose(bootstrap_interval(items, level=0.9), expected, atol=0.01)
    whole = bootstrap_interval(items, num_resamples=1000)
    monkeypatch.setattr("palindiff.evaluation.intervals.RESAMPLED_AT_ONCE", 30 * 100)
    np.testing.assert_allclose(bootstrap_interval(items, num_resamples=1000), whole, atol=0.02)


@pytest.mark.parametrize("items", [torch.zeros(0), torch.tensor([math.nan]), torch.zeros(2, 2, 2)])
def test_items_without_an_interval_are_refused(items):
    with pytest.raises(ValueError, match="Pass one value for each item"):
        bootstrap_interval(items)
