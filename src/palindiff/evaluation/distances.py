"""Distances between two sets of image features: Fréchet, kernel (MMD) and Monge distance, by torch-fidelity.

Here: the distances, and the rows that report them. Not here: features (`efficientnet.py`, `inception.py`), images
(`generation.py`). Only over Inception's features of the original weights they are called FID, KID and MIND.
"""

import importlib.util

import torch
from torch import Tensor

from palindiff.evaluation.fidelity import PACKAGE, fidelity_module, load_torch_fidelity
from palindiff.evaluation.results import Row

NUM_SUBSETS = 100
SUBSET_SIZE = 1000
SEED = 2020  # of the subsets; these three are torch-fidelity's defaults
IMAGES_PER_DIMENSION = 5  # fewer, and the Fréchet distance is mostly its own bias
INCEPTION = "inception"


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of the Gaussians with the sets' means and covariances.

    Biased upwards by few images, so a number is given only for IMAGES_PER_DIMENSION times d of them.

    Source: Heusel et al. (NeurIPS 2017), by torch-fidelity's functions.
    Shapes: features (n, d), reference (m, d) float32.
    Units:  squared units of the features.
    Raises: ValueError if shapes do not fit, a feature is not finite, or there are too few images.
    """
    _check_features(features, reference)
    if reason := too_few_for_frechet(features, reference):
        raise ValueError(f"{reason} Pass more images, or use `kernel_distance`, which is unbiased.")
    fid = fidelity_module("metric_fid")
    statistics = [fid.fid_features_to_statistics(each.float().cpu()) for each in (features, reference)]
    return float(fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID])


def too_few_for_frechet(features: Tensor, reference: Tensor) -> str:
    """Say why the sets have no Fréchet distance; empty if they have one."""
    fewest, needed = min(len(features), len(reference)), IMAGES_PER_DIMENSION * features.shape[1]
    if fewest >= needed:
        return ""
    return f"{fewest:,} images for {features.shape[1]:,} dimensions. Expected at least {needed:,} in each set."


def kernel_distance(
    features: Tensor, reference: Tensor, num_subsets: int = NUM_SUBSETS, subset_size: int = SUBSET_SIZE,
    seed: int = SEED,
) -> tuple[float, float]:  # fmt: skip
    """Unbiased squared MMD with the kernel (x·y / d + 1)³: mean and deviation over random subsets.

    Subsets of one set overlap, so the deviation is no standard error of the mean.

    Source:  Bińkowski et al. (ICLR 2018), by torch-fidelity's function.
    Shapes:  features (n, d), reference (m, d) float32.
    Returns: mean, standard deviation over the subsets.
    Raises:  ValueError if shapes do not fit, a feature is not finite, or a set is smaller than a subset.
    """
    _check_features(features, reference)
    check_subset_size(min(len(features), len(reference)), subset_size)
    kid = fidelity_module("metric_kid")
    found = kid.kid_features_to_metric(
        features.float(), reference.float(), kid_subsets=num_subsets, kid_subset_size=subset_size, kid_kernel="poly",
        kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, rng_seed=seed, verbose=False,
    )  # fmt: skip
    return float(found[kid.KEY_METRIC_KID_MEAN]), float(found[kid.KEY_METRIC_KID_STD])


def check_subset_size(num_images: int, subset_size: int) -> None:
    """Refuse subsets larger than the smaller set.

    Raises: ValueError.
    """
    if num_images < subset_size:
        raise ValueError(
            f"{num_images:,} images and a subset size of {subset_size:,} were given for the kernel distance. Expected "
            f"at least {subset_size:,} images in each set. Use more images, or set `kid_subset_size` to at most "
            f"{num_images:,}."
        )


def has_monge_distance() -> bool:
    """Whether the installed torch-fidelity has MIND; release 0.4.0 has not."""
    load_torch_fidelity()
    return importlib.util.find_spec(f"{PACKAGE}.metric_mind") is not None


def monge_distance(features: Tensor, reference: Tensor, seed: int = SEED) -> float:
    """Squared 2-Wasserstein distance of the sets' projections, mean over random directions, times 3d.

    Source: Berthet et al. (arXiv 2605.06797), by torch-fidelity's function with its number of directions.
    Shapes: features (n, d), reference (m, d) float32; of unequal sets, the larger one is subsampled.
    Units:  squared units of the features.
    Raises: ValueError as `kernel_distance`; ModuleNotFoundError if `has_monge_distance` is False.
    """
    _check_features(features, reference)
    mind = fidelity_module("metric_mind")
    found = mind.mind_features_to_metric(
        features.float().cpu(), reference.float().cpu(), cuda=False, rng_seed=seed, verbose=False
    )
    return float(found[mind.KEY_METRIC_MIND])


def distance_rows(
    extractor: str, features: Tensor, reference: Tensor, num_subsets: int = NUM_SUBSETS, subset_size: int = SUBSET_SIZE
) -> list[Row]:
    """Measure all distances over one extractor's features.

    Shapes:  features (n, d) of generated images, reference (m, d) of real ones, float32.
    Returns: rows `kid` and `fid` (and `mind`) for the extractor `inception`; `kd_NAME`, `fd_NAME` (and `md_NAME`) for
             any other. Where there are too few images for the Fréchet distance, its value is None, and `reason` says
             why.
    Raises:  ValueError as `kernel_distance`.
    """
    names = (
        ("kid", "fid", "mind") if extractor == INCEPTION else [f"{each}_{extractor}" for each in ("kd", "fd", "md")]
    )
    mean, deviation = kernel_distance(features, reference, num_subsets, subset_size)
    facts: Row = {"n": len(features), "num_reference": len(reference), "dimensions": features.shape[1]}
    subsets: Row = {"subset_std": deviation, "num_subsets": num_subsets, "subset_size": subset_size}
    reason = too_few_for_frechet(features, reference)
    rows: list[Row] = [
        {"metric": names[0], "value": mean, **facts, **subsets},
        {"metric": names[1], "value": None, **facts, "reason": reason}
        if reason
        else {"metric": names[1], "value": frechet_distance(features, reference), **facts},
    ]
    if has_monge_distance():
        rows.append({"metric": names[2], "value": monge_distance(features, reference), **facts})
    return rows


def _check_features(features: Tensor, reference: Tensor) -> None:
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"`features` has shape {tuple(features.shape)} and `reference` {tuple(reference.shape)}. Expected (n, d) "
            "and (m, d). Pass features of one extractor, one row for each image."
        )
    for name, each in (("features", features), ("reference", reference)):
        if num_broken := int((~torch.isfinite(each)).sum()):
            raise ValueError(
                f"{num_broken:,} of {each.numel():,} numbers in `{name}` are not finite. Expected all finite. "
                "Remove damaged images, or use float32 if the extractor overflows."
            )
