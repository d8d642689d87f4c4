"""Zero-shot naming: images are scored against class names, and the labels say which name was right.

Here: accuracies, and an evaluator that takes a predict function. Not here: prompts and scores (`inference/`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from palindiff.evaluation.retrieval import recall_at_k

Images = TypeVar("Images")

TOP_K_ACCURACY = "top_{k}_accuracy"
CHANCE_TOP_K = "chance_top_{k}"
MEAN_CLASS_RECALL = "mean_class_recall"


def evaluate_zero_shot(
    predict: Callable[[Images], Tensor], batches: Iterable[tuple[Images, Tensor]], ks: Sequence[int] = (1, 5)
) -> Iterator[tuple[str, float]]:
    """Score every batch with `predict` and yield named numbers over all of them.

    Shapes: predict: one batch of images -> (b, classes) float, higher is likelier; batches: (images, labels (b,)).
    Yields: top_k_accuracy and chance_top_k for each k, then mean_class_recall; shares in [0, 1].
    Raises: ValueError if there are no batches or scores and labels do not fit.
    """
    scores, labels = [], []
    for images, batch_labels in batches:
        scores.append(predict(images).detach().cpu())
        labels.append(batch_labels.cpu())
    if not scores:
        raise ValueError("`batches` is empty in `evaluate_zero_shot`. Expected one batch or more. Look at the split.")
    all_scores, all_labels = torch.cat(scores), torch.cat(labels)
    for k, accuracy in top_k_accuracy(all_scores, all_labels, ks).items():
        yield TOP_K_ACCURACY.format(k=k), accuracy
        yield CHANCE_TOP_K.format(k=k), k / all_scores.shape[1]
    yield MEAN_CLASS_RECALL, mean_class_recall(all_scores, all_labels)


def top_k_accuracy(scores: Tensor, labels: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """Share of images whose right class is among the k best.

    Source:  DiffDis, Table 1 (top-1).
    Shapes:  scores (n, classes) float; labels (n,) int64 -> {k: share in [0, 1]}.
    Raises:  TypeError or ValueError for a wrong dtype, shape or label, scores that are not finite, or k over classes.
    Departs: ties count against the model, as in `retrieval.recall_at_k`.
    """
    _check_labels(scores, labels)
    return recall_at_k(scores, _is_right(scores, labels), ks)


def mean_class_recall(scores: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy within each class, then the mean of the classes, so that a frequent class weighs no more.

    Source:  DiffDis, Table 1 (Pets, Flowers and others are reported so); scikit-learn's balanced accuracy.
    Shapes:  scores (n, classes) float; labels (n,) int64 -> share in [0, 1].
    Raises:  as `top_k_accuracy`.
    Departs: ties count against the model; a class that no image has is left out of the mean.
    """
    _check_labels(scores, labels)
    is_right = _is_right(scores, labels)
    by_class = [
        recall_at_k(scores[of_class], is_right[of_class], [1])[1]
        for of_class in (labels == label for label in labels.unique())
    ]
    return sum(by_class) / len(by_class)


def _is_right(scores: Tensor, labels: Tensor) -> Tensor:
    return F.one_hot(labels, scores.shape[1]).bool()  # (n,) -> (n, classes)


def _check_labels(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not scores.numel():
        raise ValueError(
            f"`scores` has shape {tuple(scores.shape)} and `labels` {tuple(labels.shape)}. Expected (n, classes) and "
            "(n,), both above 0: one label for each image."
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"`labels` is {labels.dtype}. Expected int64 class numbers. Pass `labels.long()`.")
    if int(labels.min()) < 0 or int(labels.max()) >= scores.shape[1]:
        raise ValueError(
            f"`labels` run from {int(labels.min())} to {int(labels.max())} with {scores.shape[1]} classes. "
            f"Expected 0 to {scores.shape[1] - 1}. Give one score for each class name."
        )
