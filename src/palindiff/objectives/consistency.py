"""Reciprocal semantic consistency: CLIP's visual features and the U-Net's agree on the same images.

Here: both forms of the loss. Not here: where the features come from (`unidiff.py`).

UniDiff's paper is public as an abstract only, and without code, so both forms are reconstructions of ours.
"""

import torch.nn.functional as F
from torch import Tensor


def projected_consistency(v: Tensor, d: Tensor, weight: Tensor) -> Tensor:
    """Cosine distance of both features of an image, where each side follows the other one, held still.

    ½ [(1 − cos(d, sg v)) + (1 − cos(v, sg d))], times the weight of each image.

    Source:  UniDiff (arXiv 2306.00813), abstract: "reciprocal semantic consistency on visual features".
    Shapes:  v, d (b, k) float, of one width; weight (b,) float, such as ᾱ_t -> () float32, mean over images.
    Departs: the form is ours, after the pairs of stopped gradients of SimSiam (arXiv 2011.10566).
    """
    _check(v, d, weight)
    if v.shape != d.shape:
        raise ValueError(
            f"`v` has shape {tuple(v.shape)} and `d` {tuple(d.shape)} in `projected_consistency`. Expected the same. "
            "Pass the U-Net's features through a linear map to the width of CLIP's."
        )
    v, d = v.float(), d.float()
    distance = (1 - F.cosine_similarity(d, v.detach())) + (1 - F.cosine_similarity(v, d.detach()))
    return (weight * distance).mean() / 2


def relational_consistency(v: Tensor, d: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Divergence between the similarities of images in either space, each side following the other one, held still.

    P = softmax of the rows of V Vᵀ / τ and of D Dᵀ / τ, without the diagonal;
    ½ [KL(sg P_v ‖ P_d) + KL(sg P_d ‖ P_v)], times the weight of each row.

    Source:  UniDiff (arXiv 2306.00813), abstract; the form after relational distillation (Park et al., CVPR 2019).
    Shapes:  v (b, k), d (b, m) float, normalised here; weight (b,) float -> () float32, mean over images.
    Units:   nats; 0 for one image or two, which have one other each at most.
    Raises:  ValueError if shapes do not fit.
    """
    _check(v, d, weight)
    of_v, of_d = (_similarities(F.normalize(each.float(), dim=-1), temperature) for each in (v, d))
    follows = _divergence(of_v.detach(), of_d) + _divergence(of_d.detach(), of_v)  # (b,)
    return (weight * follows).mean() / 2


def _similarities(features: Tensor, temperature: float) -> Tensor:
    """Shapes: (b, k) unit -> (b, b - 1), log-probabilities of all others."""
    b = len(features)
    scores = features @ features.T / temperature  # (b, b)
    # drop the first entry; then every row of b + 1 ends in a diagonal entry
    others = scores.flatten()[1:].view(b - 1, b + 1)[:, :-1].reshape(b, b - 1)
    return others.log_softmax(dim=1)


def _divergence(target: Tensor, log_probabilities: Tensor) -> Tensor:
    """KL of each row. Shapes: log-probabilities (b, n) -> (b,)."""
    return (target.exp() * (target - log_probabilities)).sum(dim=1)


def _check(v: Tensor, d: Tensor, weight: Tensor) -> None:
    if v.ndim != 2 or d.ndim != 2 or len(v) != len(d) or weight.shape != v.shape[:1]:
        raise ValueError(
            f"`v` has shape {tuple(v.shape)}, `d` {tuple(d.shape)} and `weight` {tuple(weight.shape)}. Expected "
            "(b, k), (b, m) and (b,): one of each for an image. Pool the U-Net's features over their places."
        )
