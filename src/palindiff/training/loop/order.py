"""Which rows a step reads and what its random numbers are: functions of seed and step, so resuming needs no state."""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def random_generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """Make a CPU generator that depends on all three and on nothing else."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def rows_of_step(step: int, batch_size: int, num_rows: int, seed: int) -> Tensor:
    """Rows of one step: the epochs' shuffles laid end to end and cut into batches, so every row is read once an epoch.

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


@lru_cache(maxsize=2)  # a step touches one epoch or two, and a large set is slow to shuffle at every step
def _shuffled_rows(seed: int, epoch: int, num_rows: int) -> Tensor:
    return torch.randperm(num_rows, generator=random_generator(seed, "epoch", epoch))
