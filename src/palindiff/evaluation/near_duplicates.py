"""Held-out images that resemble training images: where to look for leaks between the splits of a set.

Here: the most similar pairs by colour thumbnails. Not here: thumbnails (`thumbnails.py`), the nearest training image
as a control of naming (`controls.py`).
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from palindiff.data.images import decode_image, to_pixels
from palindiff.data.rows import CaptionedImage, ImageSet
from palindiff.data.sources import DataConfig, open_images
from palindiff.data.squares import read_images
from palindiff.evaluation.controls import image_features, training_cosines
from palindiff.evaluation.thumbnails import THUMBNAIL_SIDE, thumbnails
from palindiff.inference.defaults import IMAGES_AT_ONCE

HELD_OUT = ("test", "validation", "vendor")
NUM_PAIRS = 500  # kept of each group

Pair = dict[str, str | float | bool]


@torch.no_grad()
def similar_pairs(
    data_dir: Path, splits: Sequence[str] = HELD_OUT, num_pairs: int = NUM_PAIRS
) -> dict[str, list[Pair]]:
    """Find the training image that is most similar to each held-out image or its mirror image, most similar first.

    The groups are the splits, of which those that the set lacks are left out. A split with the field `concept_split`
    `train` in some rows is two groups, `SPLIT_seen` and `SPLIT_unseen`: images of seen concepts resemble training.
    All images must have one size.

    Source:  ours; `nearest`.
    Units:   similarity in [-1, 1].
    Returns: {group: at most num_pairs pairs}.
    Raises:  ValueError if a split is damaged, or has images of other sizes.
    """
    train = open_images(DataConfig(path=str(data_dir), split="train"))
    of_train = _features(train)
    found: dict[str, list[Pair]] = {}
    for split in (split for split in splits if (data_dir / split).is_dir()):
        rows = open_images(DataConfig(path=str(data_dir), split=split))
        similarity, places, is_mirrored = nearest(_features(rows), of_train)
        groups: dict[str, list[int]] = defaultdict(list)
        is_seen = [row.fields.get("concept_split") == "train" for row in rows]
        for number in similarity.argsort(descending=True, stable=True).tolist():
            part = ("_seen" if is_seen[number] else "_unseen") if any(is_seen) else ""
            groups[split + part].append(number)
        for group, numbers in sorted(groups.items()):
            found[group] = [
                {
                    "similarity": round(float(similarity[number]), 4),
                    "is_mirrored": bool(is_mirrored[number]),
                    **_describe(rows[number], split, ""),
                    **_describe(train[int(places[number])], "train", "training_"),
                }
                for number in numbers[:num_pairs]
            ]
    return found


def nearest(features: Tensor, of_train: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the training thumbnail that is most similar to each thumbnail or its mirror image.

    Source: ours; `training_cosines`.
    Shapes: features (n, 3*side*side), of_train (m, 3*side*side) float32 -> cosine (n,) float32, row of `of_train` (n,)
            int64, whether the mirror image is the more similar (n,) bool.
    """
    side = int((features.shape[1] / 3) ** 0.5)
    mirrored = features.unflatten(1, (3, side, side)).flip(3).flatten(1)  # (n, d), left and right exchanged
    best = []  # of the images, then of their mirror images
    for each in (features, mirrored):
        parts = [cosines.max(dim=1) for cosines in training_cosines(each, of_train)]
        best.append((torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])))
    (values, rows), (mirrored_values, mirrored_rows) = best
    is_mirrored = mirrored_values > values  # (n,)
    return torch.maximum(values, mirrored_values), torch.where(is_mirrored, mirrored_rows, rows), is_mirrored


def _features(rows: ImageSet) -> Tensor:
    """Shapes: -> (n, 3*side*side) float32, of which a batch of images is in memory at a time."""
    side = min(THUMBNAIL_SIDE, *decode_image(rows[0].source).size)
    return image_features(read_images(rows, IMAGES_AT_ONCE), lambda images: thumbnails(to_pixels(images), side))


def _describe(row: CaptionedImage, split: str, prefix: str) -> Pair:
    return {
        f"{prefix}image": f"{split}/{row.source.name}",
        f"{prefix}style": row.fields.get("style", ""),
        f"{prefix}label": row.label or "",
    }
