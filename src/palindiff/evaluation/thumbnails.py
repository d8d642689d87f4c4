"""Generated images against real ones: is a generated image most similar to the image that its caption describes?

Here: coarse colour thumbnails and recall among real images. Not here: generation (`inference/`), FID and KID.
The metric sees colour and layout, but no detail: it shows whether captions steer generation, not how good the images
are.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from palindiff.evaluation.results import Row
from palindiff.evaluation.retrieval import one_positive_each, random_orders, recall_rows

CAPTION_TO_GENERATED = "caption_to_generated"
THUMBNAIL_SIDE = 16


def thumbnail_recall(generations: Tensor, target_index: Tensor, real: Tensor, ks: Sequence[int]) -> list[Row]:
    """Share of generated images whose own real image is among the k most similar real images.

    Source:  ours.
    Shapes:  generations (n, 3, H, W), real (n_real, 3, H', W') float in [-1, 1]; target_index (n,) int64, the row of
             `real` that each generated image's caption describes.
    Returns: one row for each k: direction, k, recall, chance, shuffled (the same scores with the targets shuffled
             among the generated images, mean of `retrieval.NUM_SHUFFLES` orders), n (generated images). All shares are
             in [0, 1].
    Raises:  TypeError or ValueError if dtypes, shapes, ranges or k do not fit.
    Departs: ties count against the model, as in `retrieval.recall_at_k`.
    """
    scores = thumbnail_scores(generations, real)
    positives = one_positive_each(scores, target_index, "target_index")
    shuffled = (scores[order] for order in random_orders(len(generations)))
    return recall_rows(CAPTION_TO_GENERATED, scores, positives, ks, shuffled)


def thumbnail_scores(generations: Tensor, real: Tensor) -> Tensor:
    """Cosine similarity of colour thumbnails, with the mean thumbnail of the real images subtracted from both.

    The mean is that of the real images only, so that the scores of one generated image do not depend on the others.

    Source: ours.
    Shapes: generations (n, 3, H, W), real (n_real, 3, H', W') in [-1, 1] -> (n, n_real) float64 in [-1, 1]; 0 for a
            thumbnail that equals the mean.
    Raises: as `thumbnails`; ValueError for fewer than two real images.
    """
    if real.ndim == 4 and len(real) < 2:
        raise ValueError(
            f"`real` has {len(real)} images. Expected two or more: one image minus the mean is zero. "
            "Pass the whole split."
        )
    of_real, of_generations = thumbnails(real).double(), thumbnails(generations).double()
    mean = of_real.mean(dim=0)  # (3*side*side,)
    return F.normalize(of_generations - mean, dim=1) @ F.normalize(of_real - mean, dim=1).T


def thumbnails(images: Tensor, side: int = THUMBNAIL_SIDE) -> Tensor:
    """Average the colour of each of side x side equal areas.

    Shapes: images (n, 3, H, W) float in [-1, 1] -> (n, 3*side*side) float32, colour, then row, then column.
    Raises: TypeError or ValueError if dtype, shape or range do not fit, or an image is smaller than its thumbnail.
    """
    _check_images(images, side)
    rows, columns = (_area_weights(size, side).to(images.device) for size in images.shape[2:])
    areas = rows @ images.float() @ columns.T  # (side, H) @ (n, 3, H, W) @ (W, side) -> (n, 3, side, side)
    return areas.flatten(1)  # (n, 3, side, side) -> (n, 3*side*side)


def _area_weights(size: int, side: int) -> Tensor:
    """Shapes: -> (side, size) float32: the weight of each pixel in each of `side` equal intervals; rows sum to 1."""
    edges = torch.arange(side + 1, dtype=torch.float64) * size / side
    pixels = torch.arange(size, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)  # (side, size)
    return (overlap.clamp(min=0) * side / size).float()


def _check_images(images: Tensor, side: int) -> None:
    if not images.is_floating_point():
        raise TypeError(f"Images are {images.dtype}. Expected float in [-1, 1]. Pass `to_pixels(images)`.")
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(
            f"Images have shape {tuple(images.shape)}. Expected (n, 3, H, W). Pass one or more RGB images."
        )
    if side < 1 or min(images.shape[2:]) < side:
        raise ValueError(
            f"Images are {images.shape[2]} x {images.shape[3]} pixels for thumbnails of {side}. "
            "Expected a side from 1 to the image's own. Pass larger images."
        )
    low, high = images.min().item(), images.max().item()
    if not (low >= -1 and high <= 1):  # NaN fails too
        raise ValueError(f"Images run from {low:.7g} to {high:.7g}. Expected [-1, 1]. Pass `images.clamp(-1, 1)`.")
