"""Which images and captions depend on each other, so that intervals draw them together (docs/protocol.md, rule 3)."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from palindiff.experiments.reproduction.plan_sections import Unit


def units_of_images(texts: Iterable[tuple[Sequence[str], str | None]], unit: Unit) -> Tensor:
    """Number the unit of each image. Shapes: n captions and labels -> (n,) int64.

    Raises: ValueError if units are labels, and an image has none.
    """
    labels = [label for _, label in texts]
    if unit == "image":
        return torch.arange(len(labels))
    if None in labels:
        raise ValueError(
            f"Image {labels.index(None)} has no label, and `unit` is `label`. Expected one for each image. Choose "
            "`unit: image` in the plan, or add labels."
        )
    places = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return torch.tensor([places[label] for label in labels])


def units_of_captions(captions: Sequence[Sequence[str]], of_images: Tensor) -> Tensor:
    """Number the unit of each different caption, that of the first image that has it. Shapes: (n,) -> (m,) int64.

    Source: the order of captions is that of `naming_tasks.caption_retrieval`.
    """
    first: dict[str, int] = {}
    for number, of_image in enumerate(captions):
        for caption in of_image:
            first.setdefault(caption, number)
    return of_images[list(first.values())]
