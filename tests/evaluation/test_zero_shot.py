"""zero_shot.py against counting by hand, its independence of the order of images and classes, and what it refuses."""

import pytest
import torch

from palindiff.evaluation.zero_shot import mean_class_recall, top_k_accuracy


def make_scores(n=40, num_classes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, num_classes, generator=generator)
    return scores, torch.randint(num_classes - 1, (n,), generator=generator)  # the last class has no image


def test_accuracy_equals_counting_by_hand():
    scores, labels = make_scores()
    for k, accuracy in top_k_accuracy(scores, labels, [1, 3, 6]).items():
        best = [sorted(range(6), key=lambda j, row=row: -row[j])[:k] for row in scores.tolist()]
        assert accuracy == sum(label in of_row for label, of_row in zip(labels.tolist(), best, strict=True)) / 40


def test_mean_class_recall_equals_counting_by_hand():
    scores, labels = make_scores()
    shares = []
    for label in range(5):
        named = [max(range(6), key=lambda j, row=row: row[j]) for row in scores[labels == label].tolist()]
        shares.append(sum(name == label for name in named) / len(named))
    assert mean_class_recall(scores, labels) == pytest.approx(sum(shares) / 5, abs=1e-12)


def test_mean_class_recall_weighs_a_rare_class_as_much_as_a_frequent_one():
    scores = torch.tensor([[1.0, 0.0]]).repeat(10, 1)  # always class 0
    labels = torch.tensor([0] * 9 + [1])
    assert top_k_accuracy(scores, labels, [1]) == {1: 0.9}
    assert mean_class_recall(scores, labels) == 0.5


def test_equal_scores_name_nothing():
    scores, labels = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
    assert top_k_accuracy(scores, labels, [1, 2]) == {1: 0.0, 2: 0.0}
    assert mean_class_recall(scores, labels) == 0.0


def test_numbers_ignore_the_order_of_images_and_classes():
    scores, labels = make_scores()
    classes = torch.tensor([4, 0, 5, 2, 1, 3])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    shuffled, relabelled = scores[order][:, classes], classes.argsort()[labels[order]]
    assert top_k_accuracy(shuffled, relabelled, [1, 2]) == top_k_accuracy(scores, labels, [1, 2])
    assert mean_class_recall(shuffled, relabelled) == pytest.approx(mean_class_recall(scores, labels), abs=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda s, y: (s, y[:3]), ValueError, r"shape \(40, 6\) and `labels` \(3,\)"),
        (lambda s, y: (s[:0], y[:0]), ValueError, r"shape \(0, 6\).*both above 0"),
        (lambda s, y: (s, y.float()), TypeError, r"`labels` is torch.float32. Expected int64"),
        (lambda s, y: (s, y + 2), ValueError, r"`labels` runs from 2 to 6 with 6 candidates. Expected 0 to 5"),
        (lambda s, y: (s, y - 1), ValueError, r"`labels` runs from -1"),
        (lambda s, y: (s / 0, y), ValueError, r"not finite"),
    ],
)
def test_accuracies_refuse(change, error, sentence):
    scores, labels = change(*make_scores())
    with pytest.raises(error, match=sentence):
        top_k_accuracy(scores, labels, [1])
    with pytest.raises(error, match=sentence):
        mean_class_recall(scores, labels)


def test_accuracy_refuses_k_over_the_classes():
    with pytest.raises(ValueError, match="k is 7 with 6 candidates"):
        top_k_accuracy(*make_scores(), [7])
