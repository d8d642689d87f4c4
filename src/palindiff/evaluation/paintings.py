"""Paintings against real pictures: does a painted caption look most like the picture it was written for?

Here: coarse colour thumbnails and recall among real pictures. Not here: painting (`inference/`), FID and KID.
The measure sees colour and layout, no detail: it tells early whether words steer a painting, not how good it is.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from palindiff.evaluation.results import Row
from palindiff.evaluation.retrieval import NUM_SHUFFLES, random_orders, recall_rows

CAPTION_TO_PAINTING = "caption_to_painting"
THUMBNAIL_SIDE = 16


def painting_recall(
    paintings: Tensor,
    target_index: Tensor,
    real: Tensor,
    ks: Sequence[int],
    num_shuffles: int = NUM_SHUFFLES,
    seed: int = 0,
) -> list[Row]:
    """Share of paintings whose own real picture is among the k real pictures they look most like.

    Source:  ours.
    Shapes:  paintings (n, 3, H, W), real (n_real, 3, H', W') float in [-1, 1]; target_index (n,) int64, the row of
             `real` that each painting's caption describes.
    Returns: one row for each k: direction, k, recall, chance, shuffled (the same scores with the targets shuffled
             among the paintings, mean of `num_shuffles` orders), n (paintings). Shares of paintings in [0, 1].
    Raises:  TypeError or ValueError if dtypes, shapes, ranges or k do not fit.
    Departs: ties count against the painting, as in `retrieval.recall_at_k`.
    """
    _check_targets(paintings, target_index, real)
    scores = painting_scores(paintings, real)
    positives = F.one_hot(target_index, len(real)).bool().to(scores.device)  # (n,) -> (n, n_real)
    orders = random_orders(len(paintings), num_shuffles, seed)
    return recall_rows(CAPTION_TO_PAINTING, scores, positives, ks, (scores[order] for order in orders))


def painting_scores(paintings: Tensor, real: Tensor) -> Tensor:
    """Cosine of colour thumbnails, with the mean thumbnail of the real pictures taken off both.

    The mean is the real pictures' alone, so that a painting's scores do not depend on the other paintings.

    Source: ours.
    Shapes: paintings (n, 3, H, W), real (n_real, 3, H', W') in [-1, 1] -> (n, n_real) float64 in [-1, 1]; 0 for a
            thumbnail that equals the mean.
    Raises: as `thumbnails`; ValueError for fewer than two real pictures.
    """
    if real.ndim == 4 and len(real) < 2:
        raise ValueError(
            f"`real` has {len(real)} pictures. Expected two or more: one picture minus the mean leaves nothing. "
            "Pass the whole split."
        )
    of_real, of_paintings = thumbnails(real).double(), thumbnails(paintings).double()
    mean = of_real.mean(dim=0)  # (3*side*side,)
    return F.normalize(of_paintings - mean, dim=1) @ F.normalize(of_real - mean, dim=1).T


def thumbnails(pictures: Tensor, side: int = THUMBNAIL_SIDE) -> Tensor:
    """Average the colour of each of side x side equal areas.

    Shapes: pictures (n, 3, H, W) float in [-1, 1] -> (n, 3*side*side) float32, colour, then row, then column.
    Raises: TypeError or ValueError if dtype, shape or range do not fit, or a picture is smaller than its thumbnail.
    """
    _check_pictures(pictures, side)
    rows, columns = (_area_weights(size, side).to(pictures.device) for size in pictures.shape[2:])
    areas = rows @ pictures.float() @ columns.T  # (side, H) @ (n, 3, H, W) @ (W, side) -> (n, 3, side, side)
    return areas.flatten(1)  # (n, 3, side, side) -> (n, 3*side*side)


def _area_weights(size: int, side: int) -> Tensor:
    """Shapes: -> (side, size) float32: the share of each pixel in each of `side` equal stretches; rows sum to 1."""
    edges = torch.arange(side + 1, dtype=torch.float64) * size / side
    pixels = torch.arange(size, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)  # (side, size)
    return (overlap.clamp(min=0) * side / size).float()


def _check_pictures(pictures: Tensor, side: int) -> None:
    if not pictures.is_floating_point():
        raise TypeError(f"Pictures are {pictures.dtype}. Expected float in [-1, 1]. Pass `to_pixels(pictures)`.")
    if pictures.ndim != 4 or pictures.shape[1] != 3 or not len(pictures):
        raise ValueError(f"Pictures have shape {tuple(pictures.shape)}. Expected (n, 3, H, W) with n above 0.")
    if side < 1 or min(pictures.shape[2:]) < side:
        raise ValueError(
            f"Pictures are {pictures.shape[2]} x {pictures.shape[3]} pixels for thumbnails of {side}. "
            "Expected a side from 1 to the picture's own. Pass larger pictures."
        )
    low, high = pictures.min().item(), pictures.max().item()
    if not (low >= -1 and high <= 1):  # NaN fails too
        raise ValueError(f"Pictures run from {low:.7g} to {high:.7g}. Expected [-1, 1]. Clamp what was painted.")


def _check_targets(paintings: Tensor, target_index: Tensor, real: Tensor) -> None:
    if target_index.dtype != torch.int64:
        raise TypeError(f"`target_index` is {target_index.dtype}. Expected int64 rows of `real`.")
    if target_index.shape != paintings.shape[:1]:
        raise ValueError(
            f"`target_index` has shape {tuple(target_index.shape)} for {len(paintings)} paintings. "
            f"Expected ({len(paintings)},): one real picture for each."
        )
    if len(target_index) and not 0 <= int(target_index.min()) <= int(target_index.max()) < len(real):
        raise ValueError(
            f"`target_index` runs from {int(target_index.min())} to {int(target_index.max())} with {len(real)} real "
            f"pictures. Expected 0 to {len(real) - 1}."
        )
