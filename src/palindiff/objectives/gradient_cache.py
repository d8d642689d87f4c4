"""Large contrastive batches on small memory: rows are encoded chunk by chunk, and again in the backward pass.

Here: the chunks. Not here: the losses over all rows (`alignment.py`), checkpointing inside a network (diffusers,
transformers).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(encode: Callable[..., tuple[Tensor, ...]], rows: Sequence[Tensor], num_rows: int) -> tuple[Tensor, ...]:
    """Encode rows with the activations of one chunk at a time in memory; a loss over the result sees all rows.

    In the backward pass each chunk is encoded again, with the gradient of the loss at its rows. So a batch of any size
    takes the memory of a chunk, and one more forward pass. Random numbers of a network are drawn again as they were.

    Source:  gradient caching, Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"
             (arXiv 2101.06983), §3; here by PyTorch's checkpointing of each chunk.
    Shapes:  rows: tensors (b, ...) -> tensors (b, ...), as `encode(*rows)` of an `encode` that treats each row alone.
    Units:   num_rows is the size of a chunk; 0 encodes all rows at once, without a second pass.
    Departs: where no gradient is asked for, as in evaluation, each chunk is encoded once.
    """
    if not num_rows or len(rows[0]) <= num_rows:
        return encode(*rows)
    chunks = zip(*(each.split(num_rows) for each in rows), strict=True)
    if not torch.is_grad_enabled():
        encoded = [encode(*chunk) for chunk in chunks]
    else:
        with _without_autocast_cache():
            encoded = [checkpoint(encode, *chunk, use_reentrant=False) for chunk in chunks]
    return tuple(torch.cat(parts) for parts in zip(*encoded, strict=True))


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Let every chunk convert the weights itself, so that gradients of chunks are summed in float32, not in bf16."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
