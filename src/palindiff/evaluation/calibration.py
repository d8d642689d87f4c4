"""Whether the probabilities of classification are right: their calibration error, and the temperature that lowers it.

Here: the measure and the fit. Not here: where a fitted temperature is kept (`models/query_stream.py`).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from palindiff.evaluation.evaluators import EvaluationConfig, EvaluationImages, image_queries
from palindiff.inference.pipeline import PalindiffPipeline

NUM_BINS = 15
BOUNDS = (1e-3, 1e3)  # of a temperature


def expected_calibration_error(probabilities: Tensor, truth: Tensor, num_bins: int = NUM_BINS) -> float:
    """Mean difference between confidence and accuracy, over bins of equally many answers.

    Source: Guo et al. (ICML 2017), with equal-mass bins as in Nixon et al. (2019).
    Shapes: probabilities (n, k), rows sum to 1; truth (n,) int64.
    Units:  a share in [0, 1].
    """
    confidence, answer = probabilities.max(dim=1)
    order = confidence.argsort()
    is_right = (answer == truth).float()[order]
    bins = zip(confidence[order].tensor_split(num_bins), is_right.tensor_split(num_bins), strict=True)
    return float(sum(float((c.mean() - r.mean()).abs()) * len(c) for c, r in bins if len(c)) / len(truth))


def fit_temperature(logits: Tensor, truth: Tensor) -> float:
    """The temperature T that makes the right answers most likely under softmax(logits / T), within BOUNDS.

    Source: Guo et al. (ICML 2017), temperature scaling. The loss is convex in 1 / T, so its slope has one zero.
    Shapes: logits (n, k); truth (n,) int64.
    """
    logits = logits.double()
    right = logits.gather(1, truth[:, None])[:, 0]

    def slope(inverse: float) -> float:
        """The derivative of the loss by 1 / T: the mean logit under the softmax, minus that of the right answer."""
        return float(((logits * inverse).softmax(dim=1) * logits).sum(dim=1).mean() - right.mean())

    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) <= 0 else (low, middle)
    return 1 / (low * high) ** 0.5


@torch.no_grad()
def calibrate(pipeline: PalindiffPipeline, data: EvaluationImages, options: EvaluationConfig) -> dict[str, Any] | None:
    """Fit a temperature on images and report the calibration error before and after; None without a choice to make.

    The labels are the classes of the images, if every image has one, else their different captions.
    """
    labels = [label for label in data.labels if label is not None]
    has_classes = len(labels) == len(data.captions)
    names: Sequence[str] = labels if has_classes else data.captions
    choices = sorted(set(names))
    if len(choices) < 2:
        return None
    e = pipeline.encode_labels(choices, options.templates) if has_classes else pipeline.encode_text(choices)
    cosines = image_queries(pipeline, data, options) @ e.T
    logits = (pipeline.query_stream.logit_scale.detach() * cosines).float().cpu()
    truth = torch.tensor([choices.index(name) for name in names])
    temperature = fit_temperature(logits, truth)
    errors = [expected_calibration_error(F.softmax(logits / t, dim=1), truth) for t in (1.0, temperature)]
    return {
        "temperature": temperature,
        "calibration_error_before": errors[0],
        "calibration_error_after": errors[1],
        "num_bins": NUM_BINS,
        "n": len(truth),
        "labels": f"{len(choices)} {'classes' if has_classes else 'captions'}",
    }
