"""How much embeddings have collapsed: into few dimensions, or towards one point; and how well pairs match.

Here: statistics of one set of embeddings, and of matching pairs. Not here: embeddings (`inference/embeddings.py`).
"""

import torch
from torch import Tensor

ROWS_AT_ONCE = 1024  # bounds the memory of the pairs compared, not the result
UNIFORMITY_T = 2.0


def effective_rank(e: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values: how many dimensions are used, from 1 to d.

    Source: Roy and Vetterli (2007), definition 1, of the embeddings minus their mean.
    Shapes: e (n, d) float, n from 2 on.
    Raises: ValueError as `check_embeddings`, or if all embeddings are equal.
    """
    check_embeddings(e)
    values = torch.linalg.svdvals(e.double() - e.double().mean(dim=0))
    if not values[0] > 1e-9:
        raise ValueError(f"All {len(e)} embeddings are equal. Expected some that differ. Check the model.")
    shares = values / values.sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    return float(entropy.exp())


def mean_pairwise_cosine(e: Tensor) -> float:
    """Mean cosine of two different embeddings: 1 if all are one point, about 0 if they point everywhere.

    Source: |sum of e|^2 = n + sum over i != j of the cosines; no pair is compared.
    Shapes: e (n, d) float, unit length, n from 2 on.
    Raises: ValueError as `check_embeddings`.
    """
    check_embeddings(e)
    return float(counted_mean_cosine(e, torch.ones(1, len(e), dtype=torch.float64)))


def counted_mean_cosine(e: Tensor, counts: Tensor) -> Tensor:
    """Mean cosine of two different embeddings, where embedding i occurs `counts[:, i]` times.

    Shapes: e (n, d) float, unit length; counts (r, n) float64 -> (r,) float64.
    """
    of_sum, same = (counts @ e.double()).square().sum(dim=1), counts.square().sum(dim=1)  # (r,)
    return (of_sum - same) / (counts.sum(dim=1).square() - same)


def uniformity(e: Tensor, t: float = UNIFORMITY_T) -> float:
    """Log of the mean Gaussian potential of two different embeddings; lower is more uniform, 0 is one point.

    Source: Wang and Isola (2020), equation 2, with t = 2.
    Shapes: e (n, d) float, unit length, n from 2 on.
    Raises: ValueError as `check_embeddings`.
    """
    check_embeddings(e)
    e, n = e.double(), len(e)
    total = sum((-t * (2 - 2 * part @ e.T)).exp().sum() for part in e.split(ROWS_AT_ONCE))
    return float(((total - n) / (n * (n - 1))).log())


def alignment(e_0_hat: Tensor, e: Tensor) -> float:
    """Mean squared distance of matching embeddings, from 0 to 4.

    Source: Wang and Isola (2020), equation 1, with alpha = 2.
    Shapes: e_0_hat, e (n, d) float, unit length; row i of both belongs together.
    Raises: ValueError if the shapes differ; as `check_embeddings`.
    """
    check_embeddings(e_0_hat)
    check_embeddings(e)
    if e_0_hat.shape != e.shape:
        raise ValueError(
            f"Embeddings have shapes {tuple(e_0_hat.shape)} and {tuple(e.shape)} in `alignment`. Expected the same: "
            "row i of both belongs together. Pass one caption for each image."
        )
    return float((e_0_hat.double() - e.double()).square().sum(dim=1).mean())


def check_embeddings(e: Tensor) -> None:
    """Refuse what is no set of embeddings.

    Raises: ValueError if there are fewer than two, one is not finite, or one is not of unit length.
    """
    if e.ndim != 2 or len(e) < 2:
        raise ValueError(f"Embeddings have shape {tuple(e.shape)}. Expected (n, d), n from 2 on. Pass more images.")
    if not e.isfinite().all():
        raise ValueError("Embeddings are not finite. Expected numbers. Use float32 if the model overflows.")
    lengths = e.double().norm(dim=1)
    if (lengths - 1).abs().max() > 1e-3:
        raise ValueError(
            f"Embeddings have lengths from {lengths.min():.4g} to {lengths.max():.4g}. Expected 1. Pass "
            "`torch.nn.functional.normalize(e, dim=-1)`."
        )
