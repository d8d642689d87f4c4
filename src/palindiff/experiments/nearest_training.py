"""The training image that is most similar to a generated one, so that a reader sees what is copied.

Here: the search. Not here: the measure (`evaluation/controls.py`).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from palindiff.data.images import to_tensor
from palindiff.data.rows import CaptionedImage
from palindiff.data.squares import read_images
from palindiff.evaluation.controls import image_features, nearest_training_images, thumbnail_features
from palindiff.experiments.emoji_subsets import styles_of, training_images
from palindiff.inference.defaults import IMAGES_AT_ONCE


def nearest_images(
    images: Sequence[Image.Image], styles: Sequence[str | None], data_dir: Path
) -> list[CaptionedImage]:
    """Find the most similar training image of each image's style, or of all styles if it has none in training.

    Source: ours; cosine of 16 x 16 thumbnails, as `nearest_training_images`.
    Shapes: n images, n styles -> n rows of the training split.
    """
    known = styles_of(data_dir, "train")
    wanted = [(style,) if style in known else tuple(known) for style in styles]
    rows = {style: training_images(data_dir, style) for style in {each for some in wanted for each in some}}
    features = {
        style: image_features(read_images(some, IMAGES_AT_ONCE), thumbnail_features) for style, some in rows.items()
    }
    found: dict[int, CaptionedImage] = {}
    for compared in dict.fromkeys(wanted):
        places = [place for place, each in enumerate(wanted) if each == compared]
        generated = _thumbnails([images[place] for place in places])
        nearest = nearest_training_images(generated, torch.cat([features[style] for style in compared]))
        training = [(style, row) for style in compared for row in range(len(rows[style]))]
        for place, number in zip(places, nearest.tolist(), strict=True):
            style, row = training[number]
            found[place] = rows[style][row]
    return [found[place] for place in range(len(images))]


def _thumbnails(images: Sequence[Image.Image]) -> Tensor:
    return image_features([torch.stack([to_tensor(image) for image in images])], thumbnail_features)
