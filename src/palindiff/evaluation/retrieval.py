"""Image-text retrieval: recall@k, each with its chance level and a shuffled control.

Here: recall from a matrix of scores. Not here: computing scores (`inference/`), which captions count as equal
(`objectives/`), generated images (`thumbnails.py`).
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from palindiff.evaluation.results import Row

IMAGE_TO_TEXT = "image_to_text"
TEXT_TO_IMAGE = "text_to_image"
NUM_SHUFFLES = 20
QUERIES_AT_ONCE = 1024  # bounds the memory of the comparison, not its result


def both_ways(
    scores: Tensor, positives: Tensor, ks: Sequence[int], num_shuffles: int = NUM_SHUFFLES, seed: int = 0
) -> list[Row]:
    """Recall from images to captions and from captions to images.

    Source:  DiffDis, Table 2.
    Shapes:  scores (images, captions) float; positives (images, captions) bool.
    Returns: one row for each direction and k: direction, k, recall, chance, shuffled (the same scores with the
             images in random order, mean of `num_shuffles` orders), n (queries). Shares of queries in [0, 1].
    Raises:  as `recall_at_k`; an image or a caption without a positive is refused.
    Departs: see `recall_at_k`. `shuffled` equals `chance` on average where each caption belongs to equally many
             images; it is higher if the model prefers frequent captions whatever the image, lower if scores tie.
    """
    orders = random_orders(len(scores), num_shuffles, seed)
    forth = recall_rows(IMAGE_TO_TEXT, scores, positives, ks, (scores[order] for order in orders))
    back = recall_rows(TEXT_TO_IMAGE, scores.T, positives.T, ks, (scores[order].T for order in orders))
    return forth + back


def recall_rows(
    direction: str, scores: Tensor, positives: Tensor, ks: Sequence[int], shuffled: Iterable[Tensor]
) -> list[Row]:
    """Recall, chance and control of one direction, one row for each k.

    Shapes: scores, each of shuffled (n_queries, n_candidates) float; positives (n_queries, n_candidates) bool.
    """
    recall = recall_at_k(scores, positives, ks)
    controls = [_shares(_ranks(each, positives), ks) for each in shuffled]  # the same scores, checked above
    rows: list[Row] = []
    for k in recall:
        shuffled_recall = math.fsum(control[k] for control in controls) / len(controls)
        measured = {"recall": recall[k], "chance": chance_recall(positives, k), "shuffled": shuffled_recall}
        rows.append({"direction": direction, "k": k, **measured, "n": len(scores)})
    return rows


def recall_at_k(scores: Tensor, positives: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """Share of queries with any of their positives among their k best candidates.

    Source:  the usual R@k with several right answers (DiffDis, Table 2).
    Shapes:  scores (n_queries, n_candidates) float; positives (n_queries, n_candidates) bool -> {k: share in [0, 1]}.
    Raises:  TypeError or ValueError for a wrong dtype or shape, scores that are not finite, a query without positives,
             or a k that is not from 1 to n_candidates.
    Departs: ties count against the model: a wrong candidate that scores as much as the best positive ranks before it.
             So a model that gives every candidate the same score finds nothing (unless fewer than k candidates are
             wrong); with sorting, the order of the candidates would decide.
    """
    ranks = best_ranks(scores, positives)
    _check_ks(scores.shape[1], ks)
    return _shares(ranks, ks)


def best_ranks(scores: Tensor, positives: Tensor) -> Tensor:
    """Number of wrong candidates that score at least as much as the best positive of each query.

    Shapes: scores (n_queries, n_candidates) float; positives (n_queries, n_candidates) bool -> (n_queries,) int64.
    Raises: as `recall_at_k`.
    """
    _check_positives(positives)
    if not scores.is_floating_point():
        raise TypeError(f"`scores` is {scores.dtype}. Expected floating point. Pass `scores.float()`.")
    if scores.shape != positives.shape:
        raise ValueError(
            f"`scores` has shape {tuple(scores.shape)} and `positives` {tuple(positives.shape)}. Expected the same "
            "(queries, candidates). If only the order differs, pass `positives.T`."
        )
    if num_broken := int((~scores.isfinite()).sum()):
        raise ValueError(
            f"{num_broken:,} of {scores.numel():,} numbers in `scores` are not finite. Expected all finite: "
            "NaN has no rank. Fix the division by zero or overflow where they are computed."
        )
    return _ranks(scores, positives)


def chance_recall(positives: Tensor, k: int) -> float:
    """Exact expected recall@k of a random ranking.

    Source: hypergeometric distribution: 1 - C(n_candidates - p, k) / C(n_candidates, k) for p positives.
    Shapes: positives (n_queries, n_candidates) bool -> share in [0, 1], mean over queries.
    Raises: as `recall_at_k`.
    """
    _check_positives(positives)
    _check_ks(positives.shape[1], [k])
    n = positives.shape[1]
    numbers, num_queries = positives.sum(dim=1).unique(return_counts=True)
    found = [
        count * (math.comb(n, k) - math.comb(n - p, k)) / math.comb(n, k)
        for p, count in zip(numbers.tolist(), num_queries.tolist(), strict=True)
    ]
    return math.fsum(found) / len(positives)


def random_orders(n: int, num_shuffles: int = NUM_SHUFFLES, seed: int = 0) -> list[Tensor]:
    """Shapes: -> num_shuffles random orders, each (n,) int64; the same for the same seed."""
    if num_shuffles < 1:
        raise ValueError(f"`num_shuffles` is {num_shuffles}. Expected at least 1, for the control. Pass 1 or more.")
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=generator) for _ in range(num_shuffles)]


def one_positive_each(scores: Tensor, index: Tensor, name: str) -> Tensor:
    """Mark the one right candidate of each query.

    Shapes: scores (n_queries, n_candidates) float; index (n_queries,) int64 -> (n_queries, n_candidates) bool.
    Raises: TypeError or ValueError, which call the index `name`, if shapes, dtype or range do not fit.
    """
    if scores.ndim != 2 or index.shape != scores.shape[:1] or not scores.numel():
        raise ValueError(
            f"`scores` has shape {tuple(scores.shape)} and `{name}` {tuple(index.shape)}. Expected (n, candidates) "
            f"and (n,), both above 0. Pass one of `{name}` for each row of scores."
        )
    if index.dtype != torch.int64:
        raise TypeError(f"`{name}` is {index.dtype}. Expected int64 column numbers. Pass `{name}.long()`.")
    low, high, num_candidates = int(index.min()), int(index.max()), scores.shape[1]
    if not 0 <= low <= high < num_candidates:
        raise ValueError(
            f"`{name}` runs from {low} to {high} with {num_candidates} candidates. Expected 0 to "
            f"{num_candidates - 1}. Pass one score for each candidate."
        )
    return F.one_hot(index, num_candidates).bool().to(scores.device)  # (n,) -> (n, candidates)


def _shares(ranks: Tensor, ks: Sequence[int]) -> dict[int, float]:
    return {k: int((ranks < k).sum()) / len(ranks) for k in ks}


def _ranks(scores: Tensor, positives: Tensor) -> Tensor:
    chunks = zip(scores.split(QUERIES_AT_ONCE), positives.split(QUERIES_AT_ONCE), strict=True)
    return torch.cat([_best_rank(*chunk) for chunk in chunks])  # (n_queries,)


def _best_rank(scores: Tensor, positives: Tensor) -> Tensor:
    """Shapes: (n, n_candidates) twice -> (n,) int64, number of wrong candidates before the best positive."""
    best = scores.masked_fill(~positives, -math.inf).amax(dim=1, keepdim=True)  # (n, 1)
    return ((scores >= best) & ~positives).sum(dim=1)


def _check_positives(positives: Tensor) -> None:
    if positives.dtype != torch.bool:
        raise TypeError(f"`positives` is {positives.dtype}. Expected bool: True where right. Pass `positives.bool()`.")
    if positives.ndim != 2 or not positives.numel():
        raise ValueError(
            f"`positives` has shape {tuple(positives.shape)}. Expected (queries, candidates), both above 0. "
            "Pass one row for each query."
        )
    if num_empty := int((~positives.any(dim=1)).sum()):
        raise ValueError(
            f"{num_empty:,} of {len(positives):,} queries have no positive. Expected at least one each: others "
            "cannot be found. Remove those queries."
        )


def _check_ks(n: int, ks: Sequence[int]) -> None:
    if not ks:
        raise ValueError("`ks` is empty. Expected one k or more. Pass for example (1, 5, 10).")
    for k in ks:
        if not 1 <= k <= n:
            raise ValueError(f"k is {k} with {n} candidates. Expected 1 to {n}. Pass a smaller k or more candidates.")
