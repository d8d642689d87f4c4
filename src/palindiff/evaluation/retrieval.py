"""Image-text retrieval: ranks, recall@k and mean reciprocal rank, each with its chance level and a shuffled control.

Here: ranks from a matrix of scores, and metrics from ranks. Not here: ranks from embeddings, without a matrix
(`ranks.py`), computing scores (`inference/`), which captions count as equal (`objectives/`), generated images
(`thumbnails.py`).

The rank of a query is the number of wrong candidates that score at least as much as its best right one: 0 is first.
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
    controls = [recall_from_ranks(_ranks(each, positives), ks) for each in shuffled]  # the same scores, checked above
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
    return recall_from_ranks(ranks, ks)


def recall_from_ranks(ranks: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """Share of queries with any right candidate among the k best: those with a rank below k.

    Shapes: ranks (q,) int64 from 0 on, as `best_ranks` or `ranks.first_ranks` gives them -> {k: share in [0, 1]}.
    """
    return {k: int((ranks < k).sum()) / len(ranks) for k in ks}


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


def num_wrong(scores: Tensor, best: Tensor) -> Tensor:
    """Rank: the number of wrong candidates that score at least as much as the best right one.

    Shapes: scores (n, c), -inf where right; best (n,), the highest score of the right ones -> (n,) int64.
    """
    return (scores >= best[:, None]).count_nonzero(dim=1)


def chance_recall(positives: Tensor, k: int) -> float:
    """Exact expected recall@k of a random ranking.

    Source: `chance_recall_of_counts`.
    Shapes: positives (n_queries, n_candidates) bool -> share in [0, 1], mean over queries.
    Raises: as `recall_at_k`.
    """
    _check_positives(positives)
    return chance_recall_of_counts(positives.sum(dim=1), positives.shape[1], k)


def chance_recall_of_counts(num_right: Tensor, num_candidates: int, k: int) -> float:
    """Exact expected recall@k of a random ranking, from the number of right candidates of each query.

    Source: hypergeometric distribution: 1 - C(n_candidates - p, k) / C(n_candidates, k) for p right candidates.
    Shapes: num_right (q,) int64 from 1 to num_candidates -> share in [0, 1], mean over queries.
    Raises: ValueError for a number of right candidates, or a k, that is not from 1 to num_candidates.
    """
    _check_counts(num_right, num_candidates)
    _check_ks(num_candidates, [k])
    whole = math.comb(num_candidates, k)
    numbers, num_queries = num_right.unique(return_counts=True)
    found = [
        count * (whole - math.comb(num_candidates - p, k)) / whole
        for p, count in zip(numbers.tolist(), num_queries.tolist(), strict=True)
    ]
    return math.fsum(found) / len(num_right)


def chance_reciprocal_rank(num_right: Tensor, num_candidates: int) -> float:
    """Exact expected mean reciprocal rank of a random ranking, from the number of right candidates of each query.

    Source: the first of p right among n candidates is at place r with probability C(n - r, p - 1) / C(n, p): p / n at
            first, then (n - r - p + 1) / (n - r) times that of the place before.
    Shapes: num_right (q,) int64 from 1 to num_candidates -> a number in (0, 1], mean over queries.
    Raises: as `chance_recall_of_counts`.
    """
    _check_counts(num_right, num_candidates)
    n, expected = num_candidates, []
    place = torch.arange(1, n + 1, dtype=torch.float64)
    numbers, num_queries = num_right.unique(return_counts=True)
    for p, count in zip(numbers.tolist(), num_queries.tolist(), strict=True):
        steps = ((n - place[:-1] - p + 1) / (n - place[:-1])).clamp(min=0)  # (n - 1,)
        probability = torch.cat([torch.ones(1, dtype=torch.float64), steps]).cumprod(dim=0) * p / n  # (n,)
        expected.append(count * float((probability / place).sum()))
    return math.fsum(expected) / len(num_right)


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


def _ranks(scores: Tensor, positives: Tensor) -> Tensor:
    chunks = zip(scores.split(QUERIES_AT_ONCE), positives.split(QUERIES_AT_ONCE), strict=True)
    return torch.cat([_best_rank(*chunk) for chunk in chunks])  # (n_queries,)


def _best_rank(scores: Tensor, positives: Tensor) -> Tensor:
    """Shapes: (n, n_candidates) twice -> (n,) int64."""
    best = scores.masked_fill(~positives, -math.inf).amax(dim=1)  # (n,)
    return num_wrong(scores.masked_fill(positives, -math.inf), best)


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


def _check_counts(num_right: Tensor, num_candidates: int) -> None:
    if num_right.ndim != 1 or not len(num_right) or not 1 <= num_right.min() <= num_right.max() <= num_candidates:
        span = f" from {int(num_right.min())} to {int(num_right.max())}" if num_right.numel() else ""
        raise ValueError(
            f"`num_right` has shape {tuple(num_right.shape)}{span} with {num_candidates} candidates. Expected (q,), "
            "from 1 to their number. Pass the number of right candidates of each query."
        )


def _check_ks(n: int, ks: Sequence[int]) -> None:
    if not ks:
        raise ValueError("`ks` is empty. Expected one k or more. Pass for example (1, 5, 10).")
    for k in ks:
        if not 1 <= k <= n:
            raise ValueError(f"k is {k} with {n} candidates. Expected 1 to {n}. Pass a smaller k or more candidates.")
