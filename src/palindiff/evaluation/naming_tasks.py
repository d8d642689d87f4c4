"""Tasks that measure embeddings of images: zero-shot classification and image-text retrieval.

Here: from embeddings to metrics, each with what it is the mean of, item by item. Not here: ranks (`ranks.py`),
collapse (`collapse.py`), computing embeddings (`inference/embeddings.py`), intervals (`intervals.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import JsonValue
from torch import Tensor

from palindiff.evaluation.ranks import first_ranks, first_ranks_both_ways
from palindiff.evaluation.retrieval import chance_recall_of_counts, chance_reciprocal_rank

CLASSIFICATION_KS = (1, 5)
RETRIEVAL_KS = (1, 5, 10)


@dataclass(frozen=True)
class Metric:
    """A metric, and what it is the mean of: a value for each item, or None for a metric that is no mean."""

    name: str
    value: float
    n: int  # images, captions or queries
    chance: float | None = None
    items: Tensor | None = None  # (n,) float
    interval: tuple[float, float] | None = None  # 95 %, of a metric without items
    details: Mapping[str, JsonValue] = field(default_factory=dict)  # what a reader of the number must know


def classification(e_0_hat: Tensor, e: Tensor, truth: Tensor, ks: Sequence[int] = CLASSIFICATION_KS) -> list[Metric]:
    """Zero-shot classification: accuracy among the k best classes, and mean per-class recall.

    Source:  DiffDis, Table 1; CLIP_benchmark's `acc1`, `acc5`, `mean_per_class_recall`.
    Shapes:  e_0_hat (n, d) of images, e (c, d) of classes, unit length; truth (n,) int64.
    Raises:  as `ranks.first_ranks`; ValueError if there is one class.
    Departs: ties count against the model. A k over the number of classes is left out, and so is a class without images
             from mean per-class recall. That is computed as a mean over images, each hit weighted by the inverse size
             of its class, so that it has a value for each image too.
    """
    if len(e) < 2:
        raise ValueError(
            f"{len(e)} class was given to `classification`. Expected two or more. Pass a set with more classes."
        )
    pairs = torch.stack([torch.arange(len(truth), device=truth.device), truth], dim=1)  # (n, 2)
    ranks = first_ranks(e_0_hat, e, pairs)
    found = [
        Metric(f"acc{k}", share(ranks < k), len(truth), k / len(e), (ranks < k).float()) for k in ks if k <= len(e)
    ]
    classes, counts = truth.unique(return_counts=True)
    weight = torch.zeros(len(e), dtype=torch.float64, device=truth.device)
    weight[classes] = len(truth) / (len(classes) * counts.double())
    weighted = (ranks < 1) * weight[truth]
    recall = float(weighted.mean())
    return [*found, Metric("mean_per_class_recall", recall, len(truth), 1 / len(e), weighted.float())]


def retrieval(e_0_hat: Tensor, e: Tensor, pairs: Tensor, ks: Sequence[int] = RETRIEVAL_KS) -> list[Metric]:
    """Image-text retrieval both ways: recall@k and mean reciprocal rank.

    Recall@k is the share of queries with any right answer among the k best: of an image, any of its captions; of a
    caption, any image that has it.

    Source:  DiffDis, Table 2; CLIP_benchmark's `text_retrieval_recall@K` (captions of an image) and
             `image_retrieval_recall@K` (images of a caption).
    Shapes:  e_0_hat (n, d) of images, e (m, d) of different captions, unit length; pairs (p, 2) int64, an image and a
             caption of it.
    Raises:  as `ranks.first_ranks_both_ways`; ValueError if a k is larger than the number of answers.
    Departs: ties count against the model. Equal captions are one, and right for all their images.
    """
    found = []
    pairs = pairs.unique(dim=0)
    ranks_of_images, ranks_of_captions = first_ranks_both_ways(e_0_hat, e, pairs)
    ways = (("text", ranks_of_images, pairs[:, 0], len(e)), ("image", ranks_of_captions, pairs[:, 1], len(e_0_hat)))
    for name, ranks, query, num_answers in ways:
        num_right = torch.bincount(query)
        for k in ks:
            if k > num_answers:
                raise ValueError(
                    f"recall@{k} was asked for with {num_answers} answers. Expected at least {k}. Pass more "
                    "data, or a smaller k."
                )
            chance = chance_recall_of_counts(num_right, num_answers, k)
            hits = (ranks < k).float()
            found.append(Metric(f"{name}_retrieval_recall@{k}", share(ranks < k), len(ranks), chance, hits))
        reciprocal, chance = 1 / (ranks + 1).double(), chance_reciprocal_rank(num_right, num_answers)
        found.append(Metric(f"{name}_retrieval_mrr", float(reciprocal.mean()), len(ranks), chance, reciprocal))
    return found


def caption_retrieval(
    e_0_hat: Tensor,
    captions: Sequence[Sequence[str]],
    encode_text: Callable[[list[str]], Tensor],
    ks: Sequence[int] = RETRIEVAL_KS,
) -> list[Metric]:
    """Image-text retrieval among all different captions of images.

    Shapes: e_0_hat (n, d) of n images with one caption or more each; encode_text: m captions -> (m, d).
    Raises: as `retrieval`.
    """
    different = list(dict.fromkeys(caption for of_image in captions for caption in of_image))
    place = {caption: number for number, caption in enumerate(different)}
    pairs = [(image, place[caption]) for image, of_image in enumerate(captions) for caption in of_image]
    return retrieval(e_0_hat.cpu(), encode_text(different).cpu(), torch.tensor(pairs), ks)


def class_retrieval(e_0_hat: Tensor, e: Tensor, truth: Tensor) -> list[Metric]:
    """Retrieval of the images of a class by its name: mean average precision over the classes that have images.

    For many images with few different captions, where recall@k of captions says little.

    Source:  average precision as in Manning et al., Introduction to Information Retrieval (2008), 8.4.
    Shapes:  e_0_hat (n, d) of images, e (c, d) of classes, unit length; truth (n,) int64.
    Departs: a wrong image that ties with a right one counts as before it.
    """
    scores = (e.double() @ e_0_hat.double().T).float()  # (c, n)
    classes, counts = truth.unique(return_counts=True)
    found = []
    for number in classes.tolist():
        is_right = truth == number
        right = scores[number][is_right].sort(descending=True).values
        num_before = (scores[number][~is_right][None, :] >= right[:, None]).sum(dim=1)  # wrong ones
        place = torch.arange(1, len(right) + 1, device=right.device)
        found.append((place / (place + num_before)).double().mean())
    items = torch.stack(found).cpu()
    chance = sum(_chance_precision(count, len(truth)) for count in counts.tolist()) / len(counts)
    return [Metric("class_retrieval_map", float(items.mean()), len(items), chance, items)]


def _chance_precision(num_right: int, n: int) -> float:
    """Expected average precision of a random order of n images, `num_right` of them right."""
    harmonic = sum(1 / place for place in range(1, n + 1)) / n
    others = (num_right - 1) / (n - 1) if n > 1 else 0.0
    return harmonic + others * (1 - harmonic)


def share(hits: Tensor) -> float:
    """Share of items that are True."""
    return int(hits.sum()) / len(hits)
