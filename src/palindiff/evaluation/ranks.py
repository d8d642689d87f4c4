"""Ranks from embeddings, without a matrix of all scores: retrieval among any number of images and captions.

Here: ranks, computed in parts. Not here: what a rank is, and metrics from ranks (`retrieval.py`); computing embeddings
(`inference/embeddings.py`).
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from palindiff.evaluation.retrieval import num_wrong

SCORES_AT_ONCE = 2**22  # bounds the memory of the scores, not their ranks


@torch.no_grad()
def first_ranks(queries: Tensor, candidates: Tensor, relevant: Tensor) -> Tensor:
    """Rank of each query's best right candidate by inner product, without a matrix of all scores.

    A pair is a query and a right candidate of it. A query may have several, and a candidate may be right for several
    queries, as a caption that belongs to two images. Recall@k is then the share of queries with any right candidate
    among the k best, as in CLIP-like papers: `retrieval.recall_from_ranks`.

    Source:  the usual R@k with several right answers (DiffDis, Table 2; CLIP_benchmark's `zeroshot_retrieval`).
    Shapes:  queries (q, d), candidates (c, d) float; relevant (p, 2) int64, pairs (row of queries, row of candidates)
             in any order, a repeated pair counts once -> (q,) int64 from 0 on. A matrix of positives in this form:
             `positives.nonzero()`.
    Units:   scores are sums of products in float64, rounded to float32. So equal candidates tie, and neither the parts
             that are computed at once nor the place of a candidate change a rank. Memory: 8 c d bytes, and parts.
    Raises:  TypeError or ValueError if dtypes, shapes or rows do not fit, a number is not finite, or a query has no
             right candidate.
    Departs: ties count against the model, as in `retrieval.recall_at_k`; CLIP_benchmark leaves them to the order of
             `topk`. It also takes each caption as an item of its own: a text that two images share is wrong for one.
    """
    pairs = _check_pairs(queries, candidates, relevant)
    best = _best(_pair_scores(queries, candidates, pairs), pairs[:, 0], len(queries))
    ranks = pairs.new_zeros(len(queries))
    for rows, scores in _wrong_scores(queries, candidates, pairs):
        ranks[rows] = num_wrong(scores, best[rows])
    return ranks


@torch.no_grad()
def first_ranks_both_ways(images: Tensor, captions: Tensor, relevant: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks from images to captions and from captions to images, from one pass over the scores.

    Shapes:  images (i, d), captions (c, d) float; relevant (p, 2) int64, pairs (image, caption)
             -> of images (i,), of captions (c,) int64: as `first_ranks` gives them for `relevant` and for its columns
             in the other order.
    Raises:  as `first_ranks`; ValueError too if a caption has no image.
    Departs: as `first_ranks`.
    """
    pairs = _check_pairs(images, captions, relevant)
    _check_all_have_one(pairs[:, 1], len(captions), "captions")
    of_pairs = _pair_scores(images, captions, pairs)
    best_caption = _best(of_pairs, pairs[:, 0], len(images))  # (i,)
    best_image = _best(of_pairs, pairs[:, 1], len(captions))  # (c,)
    of_images, of_captions = pairs.new_zeros(len(images)), pairs.new_zeros(len(captions))
    for rows, scores in _wrong_scores(images, captions, pairs):
        of_images[rows] = num_wrong(scores, best_caption[rows])
        of_captions += num_wrong(scores.T, best_image)
    return of_images, of_captions


def _wrong_scores(queries: Tensor, candidates: Tensor, pairs: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the scores of some queries at once, -inf where right; pairs are sorted by query. Shapes: (rows, c).

    All parts are written into the same memory: fresh memory for each is slower, and the allocator keeps much of it. So
    should results be: small tensors that are kept between large ones that are freed double the memory of the process.
    """
    num_rows = min(len(queries), max(1, SCORES_AT_ONCE // len(candidates)))
    transposed, query = candidates.double().T, pairs[:, 0].contiguous()  # (c, d) -> (d, c)
    products = transposed.new_empty(num_rows, len(candidates))
    scores = products.float()
    for start in range(0, len(queries), num_rows):
        rows = slice(start, min(start + num_rows, len(queries)))
        num = rows.stop - start
        torch.mm(queries[rows].double(), transposed, out=products[:num])
        scores[:num].copy_(products[:num])  # rounded to float32
        first, end = torch.searchsorted(query, pairs.new_tensor([rows.start, rows.stop])).tolist()
        row, column = pairs[first:end].T
        scores[row - start, column] = -math.inf
        yield rows, scores[:num]


def _pair_scores(queries: Tensor, candidates: Tensor, pairs: Tensor) -> Tensor:
    """Scores of the pairs alone. Shapes: -> (p,) float32."""
    parts = pairs.split(max(1, SCORES_AT_ONCE // queries.shape[1]))
    return torch.cat([
        (queries[part[:, 0]].double() * candidates[part[:, 1]].double()).sum(dim=1).float() for part in parts
    ])  # fmt: skip


def _best(of_pairs: Tensor, index: Tensor, n: int) -> Tensor:
    """Shapes: scores and query of each pair, (p,) twice -> (n,): the highest score of each query."""
    return of_pairs.new_full((n,), -math.inf).scatter_reduce(0, index, of_pairs, "amax")


def _check_pairs(queries: Tensor, candidates: Tensor, relevant: Tensor) -> Tensor:
    """Refuse what does not fit. Shapes: -> (p, 2) int64, sorted by query, each pair once."""
    for name, e in (("queries", queries), ("candidates", candidates)):
        if not e.is_floating_point():
            raise TypeError(f"`{name}` is {e.dtype}. Expected floating point. Pass `{name}.float()`.")
        if e.ndim != 2 or not e.numel() or e.shape[1] != queries.shape[-1]:
            raise ValueError(
                f"`queries` has shape {tuple(queries.shape)} and `candidates` {tuple(candidates.shape)}. Expected "
                "(q, d) and (c, d), all above 0. Pass embeddings of one space."
            )
        if num_broken := int((~e.isfinite()).any(dim=1).sum()):
            raise ValueError(
                f"{num_broken:,} of {len(e):,} `{name}` are not finite. Expected all finite: NaN has no rank. Use "
                "float32 if the model overflows."
            )
    if relevant.dtype != torch.int64 or relevant.ndim != 2 or relevant.shape[1] != 2 or not len(relevant):
        raise ValueError(
            f"`relevant` is {relevant.dtype} of shape {tuple(relevant.shape)}. Expected int64 (p, 2): a query and a "
            "right candidate of it in each row. Pass `positives.nonzero()` of a bool matrix."
        )
    low, high = relevant.amin(dim=0).tolist(), relevant.amax(dim=0).tolist()
    if min(low) < 0 or high[0] >= len(queries) or high[1] >= len(candidates):
        raise ValueError(
            f"`relevant` runs from {low} to {high} with {len(queries)} queries and {len(candidates)} candidates. "
            "Expected rows of these. Pass (query, candidate), or `relevant.flip(1)` if only the order differs."
        )
    _check_all_have_one(relevant[:, 0], len(queries), "queries")
    number = (relevant[:, 0] * len(candidates) + relevant[:, 1]).unique()  # sorted
    return torch.stack([number // len(candidates), number % len(candidates)], dim=1)


def _check_all_have_one(index: Tensor, n: int, name: str) -> None:
    if num_empty := int((torch.bincount(index, minlength=n) == 0).sum()):
        raise ValueError(
            f"{num_empty:,} of {n:,} {name} have no positive. Expected at least one each: others cannot be found. "
            f"Remove those {name}."
        )
