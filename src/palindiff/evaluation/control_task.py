"""The task `controls`: what classification and retrieval reach without reading the image.

Here: the metrics of each control on a data set. Not here: queries and answers of the controls (`controls.py`), the
noisy query's share (`chain_use` of `evaluators.py`).
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from palindiff.data.images import ImageFileError
from palindiff.data.rows import ImageSet
from palindiff.data.squares import load_squares
from palindiff.evaluation import controls, naming_tasks
from palindiff.evaluation.class_sets import class_numbers, true_classes
from palindiff.evaluation.controls import Features
from palindiff.evaluation.named_data import has_classes
from palindiff.evaluation.naming_tasks import Metric
from palindiff.evaluation.tasks import Control, Embedded, measure_classification
from palindiff.evaluation.thumbnails import THUMBNAIL_SIDE
from palindiff.inference.defaults import IMAGES_AT_ONCE


def measure_controls(data: Embedded) -> list[Metric]:
    """Zero-shot accuracy, if each image has a class, and retrieval, of each control that the options name.

    Shuffled and zeroed images take the place of the images. Of the most similar training image, the class is the
    answer, and the first caption's embedding is the query. `largest_class` answers each image with the class that most
    of them have.

    Returns: the metrics of `classification` and `retrieval`, named `CONTROL_METRIC`; of the most similar training
             image only `acc1` in place of the first, since it answers with one class; of the largest class only that.
    Raises:  ImageFileError if an image cannot be read; ModuleNotFoundError if EfficientNet-Lite0 is not installed.
    """
    with_classes = has_classes(data.rows)
    found: list[Metric] = []
    for control in data.options.controls:
        if control == "largest_class":
            found += _largest_class(data) if with_classes else []
            continue
        if control in controls.NEAREST:
            found += _nearest(data, control, with_classes)
            continue
        if control == "shuffled_images":
            e_0_hat = controls.shuffled_images(data.e_0_hat)
        else:
            e_0_hat = controls.zeroed_images(data.model, len(data.rows), data.setting.options).cpu()
        of_control = replace(data, e_0_hat=e_0_hat)
        metrics = [*(measure_classification(of_control) if with_classes else []), *_retrieval(of_control)]
        found += [replace(each, name=f"{control}_{each.name}", details={}) for each in metrics]
    return found


def _retrieval(data: Embedded) -> list[Metric]:
    """Retrieval at those k that the data have enough images and captions for."""
    num_captions = len({caption for captions in data.captions for caption in captions})
    ks = [k for k in data.options.retrieval_ks if k <= min(len(data.rows), num_captions)]
    return naming_tasks.caption_retrieval(data.e_0_hat, data.captions, data.texts.encode_text, ks)


def _nearest(data: Embedded, control: Control, with_classes: bool) -> list[Metric]:
    """Answer with the class and the first caption of the most similar training image."""
    assert data.train_rows is not None, "opened with the test split"
    read = controls.NEAREST[control]()
    (test, _), (train, train_rows) = (_features(data, rows, read) for rows in (data.rows, data.train_rows))
    nearest = controls.nearest_training_images(test, train)
    captions, labels = zip(*train_rows.texts(), strict=True)
    chosen = [captions[row][0] for row in nearest.tolist()]
    different = list(dict.fromkeys(chosen))
    e = data.texts.encode_text(different)
    of_neighbour = replace(data, e_0_hat=e[torch.tensor([different.index(caption) for caption in chosen])])
    found = [replace(each, name=f"{control}_{each.name}") for each in _retrieval(of_neighbour)]
    if with_classes:
        truth = true_classes(data.rows, data.classes)
        number_of = class_numbers({label for label in labels if label is not None}, data.classes)
        answers = torch.tensor(
            [number_of.get(label, -1) if label else -1 for label in labels]
        )  # -1: no class of these
        hits = controls.neighbour_hits(nearest, answers, truth)
        chance = 1 / len(data.classes.class_names)
        found.insert(0, Metric(f"{control}_acc1", naming_tasks.share(hits), len(hits), chance, hits.float()))
    return found


def _largest_class(data: Embedded) -> list[Metric]:
    """Answer every image with one class: that of most images."""
    truth = true_classes(data.rows, data.classes)
    hits = (truth == truth.mode().values).float()
    return [Metric("largest_class_acc1", naming_tasks.share(hits), len(hits), 1 / len(data.classes.class_names), hits)]


def _features(data: Embedded, rows: ImageSet, read: Features) -> tuple[Tensor, ImageSet]:
    """Decode images in batches -> features (n, d) of those that can be read, and these rows.

    Raises: ImageFileError if an image cannot be read, unless such images are skipped.
    """
    size_px = max(data.model.image_size_px, THUMBNAIL_SIDE)
    loader = load_squares(rows, size_px, data.fit, IMAGES_AT_ONCE, data.num_workers)
    kept: list[int] = []

    def batches() -> Iterator[Tensor]:
        for number, (pixels, faults) in enumerate(loader):
            if any(faults) and data.on_bad == "refuse":
                raise ImageFileError(next(filter(None, faults)))
            good = [place for place, fault in enumerate(faults) if not fault]
            kept.extend(number * IMAGES_AT_ONCE + place for place in good)
            if good:
                yield pixels[good]

    return controls.image_features(batches(), read), rows.select(kept)
