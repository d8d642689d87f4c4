"""Controls of naming: what is reached without reading the image, and by the most similar training image.

Here: queries and answers of controls; any task of `naming_tasks.py` measures them as it measures a model's. Not here:
chance (`retrieval.py`), the noisy query's share (`chain_use` of `evaluators.py`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from palindiff.data.images import to_pixels
from palindiff.evaluation.efficientnet import EffLite0Features
from palindiff.evaluation.retrieval import random_orders
from palindiff.evaluation.thumbnails import thumbnails
from palindiff.inference.embedder import Embedder

SCORES_AT_ONCE = 2**22  # bounds the memory of the comparison, not its result
NO_IMAGE = -2.0  # similarity to a concept without a training image: below every cosine

Features = Callable[[Tensor], Tensor]
"""Images (b, 3, H, W) uint8 -> (b, d) float."""


def shuffled_images(e_0_hat: Tensor, seed: int = 0) -> Tensor:
    """Give each image another one's query: what a task finds then comes from frequent answers, not from the image.

    Shapes: e_0_hat (n, d) -> (n, d), its rows in random order.
    """
    return e_0_hat[random_orders(len(e_0_hat), 1, seed)[0].to(e_0_hat.device)]


def zeroed_images(model: Embedder, num_images: int, options: Mapping[str, Any]) -> Tensor:
    """Embed an image of zeros, mid-grey, in place of every image: a model with one answer for all.

    Shapes: -> (num_images, d) float32, unit length, all rows equal.
    Raises: as `Embedder.embed_pixels`.
    """
    x = torch.zeros(1, 3, model.image_size_px, model.image_size_px)
    return model.embed_pixels(x, [options])[0].expand(num_images, -1)


def thumbnail_features(images: Tensor) -> Tensor:
    """Colours of 16 x 16 equal areas, a `Features`. Shapes: (b, 3, H, W) uint8 -> (b, 768) float32 in [-1, 1]."""
    return thumbnails(to_pixels(images))


NEAREST: dict[str, Callable[[], Features]] = {
    "nearest_thumbnail": lambda: thumbnail_features,
    "nearest_efflite0": EffLite0Features,
}
"""Controls that compare with training images, and what opens their features"""


@torch.no_grad()
def image_features(batches: Iterable[Tensor], features: Features) -> Tensor:
    """Features of any number of images, of which a batch is in memory at a time.

    Shapes: batches of (b, 3, H, W) uint8 -> (n, d) float32.
    Raises: ValueError if there are no images or features are not finite; what `features` raises.
    """
    found = [features(batch).float().flatten(1).cpu() for batch in batches]
    if not found or not torch.cat(found).isfinite().all():
        what = "are not finite" if found else "have no images"
        raise ValueError(f"Features {what} in `image_features`. Expected numbers for one image or more. Pass others.")
    return torch.cat(found)


def nearest_training_images(test: Tensor, train: Tensor) -> Tensor:
    """Row of the training image that is most similar to each test image.

    Its label is the answer in classification. In retrieval its caption's embedding is the query:
    `e_train[nearest_training_images(test, train)]` takes the place of e_0_hat.

    Source:  ours; 1-nearest neighbour by the cosine of features, the mean of the training images subtracted from both,
             as in `thumbnails.thumbnail_scores`.
    Shapes:  test (n, d), train (m, d) float, m from 2 on -> (n,) int64, rows of train.
    Raises:  ValueError if shapes do not fit or a number is not finite.
    """
    return torch.cat([cosines.argmax(dim=1) for cosines in training_cosines(test, train)])


def concept_similarities(test: Tensor, train: Tensor, concepts: Tensor, num_concepts: int) -> Tensor:
    """Similarity of each test image and each concept: that of the concept's most similar training image.

    Ranked by these, concepts without a training image come last.

    Source:  ours; cosine of features, the mean of the training images subtracted, as in `nearest_training_images`.
    Shapes:  test (n, d), train (m, d) float, m from 2 on; concepts (m,) int64, of each training image, from 0 to
             num_concepts - 1 -> (n, num_concepts) float32, cosines, or NO_IMAGE.
    Raises:  ValueError as `nearest_training_images`, or if the concepts do not fit.
    """
    if concepts.shape != train.shape[:1] or not 0 <= concepts.min() <= concepts.max() < num_concepts:
        raise ValueError(
            f"`concepts` has shape {tuple(concepts.shape)} with {len(train)} training images and {num_concepts} "
            "concepts in `concept_similarities`. Expected (m,), from 0 to the last concept. Pass one for each image."
        )
    found = []
    for cosines in training_cosines(test, train):
        empty = cosines.new_full((len(cosines), num_concepts), NO_IMAGE)
        found.append(empty.scatter_reduce(1, concepts.expand_as(cosines), cosines, "amax"))  # (b, m) -> (b, k)
    return torch.cat(found)


def training_cosines(test: Tensor, train: Tensor) -> Iterator[Tensor]:
    """Yield the cosines of some test images at a time with all training images, (b, m) float32.

    Source: ours; the mean of the training images is subtracted from both, as in `thumbnails.thumbnail_scores`.
    Raises: ValueError as `nearest_training_images`.
    """
    if test.ndim != 2 or train.ndim != 2 or test.shape[1] != train.shape[1] or not len(test) or len(train) < 2:
        raise ValueError(
            f"Features have shapes {tuple(test.shape)} and {tuple(train.shape)} in `nearest_training_images`. "
            "Expected (n, d) of test and (m, d) of training images, m from 2 on. Pass features of one kind."
        )
    if not (test.isfinite().all() and train.isfinite().all()):
        raise ValueError(
            "Features are not finite in `nearest_training_images`. Expected numbers. Use float32 if they overflow."
        )
    mean = train.double().mean(dim=0).float()  # (d,)
    transposed = F.normalize(train.float() - mean, dim=1).T  # (m, d) -> (d, m)
    for part in test.float().split(max(1, SCORES_AT_ONCE // len(train))):
        yield F.normalize(part - mean, dim=1) @ transposed


def neighbour_hits(nearest: Tensor, train_classes: Tensor, test_classes: Tensor) -> Tensor:
    """Whether the nearest training image has the test image's class; the mean is top-1 accuracy.

    Shapes: nearest (n,) int64, rows of train_classes (m,) int64; test_classes (n,) int64 -> (n,) bool.
    Raises: ValueError if the shapes do not fit.
    """
    num_train = len(train_classes)
    if nearest.ndim != 1 or nearest.shape != test_classes.shape or not len(nearest) or nearest.max() >= num_train:
        raise ValueError(
            f"`nearest` has shape {tuple(nearest.shape)} with {num_train} training and {tuple(test_classes.shape)} "
            "test classes in `neighbour_hits`. Expected (n,) rows of the training classes, and (n,) test classes. "
            "Pass a class for each image."
        )
    return train_classes[nearest] == test_classes
