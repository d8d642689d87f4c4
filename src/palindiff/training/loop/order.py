"""Which rows a step reads: a function of seed and step, so resuming needs no stored data position."""

from functools import lru_cache

import torch
from torch import Tensor

from palindiff.seeds import seeded_generator


def rows_of_step(step: int, batch_size: int, num_rows: int, seed: int) -> Tensor:
    """Rows of one step: the shuffled epochs are concatenated and cut into batches, so each epoch reads a row once.

    Shapes: -> (batch_size,) int64.
    Raises: ValueError if there are no rows.
    """
    if num_rows == 0:
        raise ValueError("The training set is empty. Expected at least one captioned image. Check the data's path.")
    first, last = step * batch_size, (step + 1) * batch_size
    pieces = []
    for epoch in range(first // num_rows, (last - 1) // num_rows + 1):
        start = epoch * num_rows
        pieces.append(_shuffled_rows(seed, epoch, num_rows)[max(first - start, 0) : last - start])
    return torch.cat(pieces)


@lru_cache(maxsize=2)  # a step reads one epoch or two; so each is shuffled once, not at every step
def _shuffled_rows(seed: int, epoch: int, num_rows: int) -> Tensor:
    return torch.randperm(num_rows, generator=seeded_generator(seed, "epoch", epoch))
