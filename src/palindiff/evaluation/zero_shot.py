"""Zero-shot classification: images are scored against class names, and the labels give the right one.

Here: accuracies. Not here: prompts and scores (`inference/`).
"""

from collections.abc import Sequence

from torch import Tensor

from palindiff.evaluation.retrieval import one_positive_each, recall_at_k


def top_k_accuracy(scores: Tensor, labels: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """Share of images whose right class is among the k best.

    Source:  DiffDis, Table 1 (top-1).
    Shapes:  scores (n, classes) float; labels (n,) int64 -> {k: share in [0, 1]}.
    Raises:  TypeError or ValueError for a wrong dtype, shape or label, scores that are not finite, or k over classes.
    Departs: ties count against the model, as in `retrieval.recall_at_k`.
    """
    return recall_at_k(scores, one_positive_each(scores, labels, "labels"), ks)


def mean_class_recall(scores: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy of each class, averaged over classes, so that rare classes count as much as frequent ones.

    Source:  DiffDis, Table 1 (used for Pets, Flowers and others); scikit-learn's balanced accuracy.
    Shapes:  scores (n, classes) float; labels (n,) int64 -> share in [0, 1].
    Raises:  as `top_k_accuracy`.
    Departs: ties count against the model; a class without images is left out of the mean.
    """
    positives = one_positive_each(scores, labels, "labels")
    by_class = [
        recall_at_k(scores[of_class], positives[of_class], [1])[1]
        for of_class in (labels == label for label in labels.unique())
    ]
    return sum(by_class) / len(by_class)
