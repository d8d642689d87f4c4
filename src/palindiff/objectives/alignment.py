"""Alignment of predicted text queries with their captions.

Here: which captions count as positives, the loss, and the global batch across processes. Not here: prediction of
queries (`models/query_stream.py`) and their noise (`models/text_diffusion.py`).
"""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn.functional as F
from torch import Tensor


def same_caption(caption_id: Tensor) -> Tensor:
    """Mark equal captions, so that a caption is never a negative of itself.

    Source: ours; the paper does not say what happens to repeated captions (decisions row 17).
    Shapes: caption_id (b,) int64, equal for equal captions -> (b, b) bool, symmetric, True on the diagonal.
    """
    return caption_id[:, None] == caption_id[None, :]


def alignment_loss(e_0_hat: Tensor, e_0: Tensor, logit_scale: Tensor, positives: Tensor) -> Tensor:
    """Symmetric cross-entropy between predicted and true text queries.

    Source:  DiffDis eq. 7 and 8.
    Shapes:  e_0_hat, e_0 (b, d) float, unit length; logit_scale () float;
             positives (b, b) bool, diagonal True -> () float32.
    Units:   nats, mean over images and captions.
    Raises:  ValueError if shapes do not fit.
    Departs: a learned logit scale (the paper states none); equal captions share the weight.
    """
    _check_shapes(e_0_hat, e_0, positives)
    with torch.autocast(e_0.device.type, enabled=False):
        logits = logit_scale.float() * e_0_hat.float() @ e_0.float().T  # (b, d) @ (d, b) -> (b, b)
        target = positives.float() / positives.sum(dim=1, keepdim=True)  # (b, b), each row sums to 1
        image_to_text = F.cross_entropy(logits, target)
        text_to_image = F.cross_entropy(logits.T, target)
    return (image_to_text + text_to_image) / 2


def global_alignment_loss(e_0_hat: Tensor, e_0: Tensor, logit_scale: Tensor, caption_id: Tensor) -> Tensor:
    """`alignment_loss` over the batches of all processes, where equal captions are positives.

    Source: ours (decisions rows 17 and 18).
    Shapes: of this process's b rows: e_0_hat, e_0 (b, d) float, unit length; logit_scale () float; caption_id (b,)
            int64 -> () float32, the same on every process.
    """
    e_0_hat, e_0, caption_id = (global_batch(rows) for rows in (e_0_hat, e_0.float(), caption_id))
    return alignment_loss(e_0_hat, e_0, logit_scale, same_caption(caption_id))


def global_batch(tensor: Tensor) -> Tensor:
    """Gather the rows of all processes in the order of their ranks; gradients flow back to the process of each row.

    Every process computes the same global loss and sends the gradient of each row to its process; data-parallel
    training averages over processes, so the gradient counts once.

    Source: ours (decisions row 18).
    Shapes: (b, ...) on each of W processes -> (W * b, ...); with one process, or without gradients, the tensor itself.
    """
    is_evaluation = not torch.is_grad_enabled()  # one process evaluates while the others wait: nothing to gather
    if is_evaluation or not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    return torch.cat(dist_nn.all_gather(tensor.contiguous()))


def _check_shapes(e_0_hat: Tensor, e_0: Tensor, positives: Tensor) -> None:
    """Check shapes only: reading values would synchronise with the GPU in every step."""
    b, found = len(e_0), [tuple(tensor.shape) for tensor in (e_0_hat, e_0, positives)]
    if e_0_hat.shape != e_0.shape or positives.shape != (b, b):
        raise ValueError(
            f"`e_0_hat` has shape {found[0]}, `e_0` {found[1]} and `positives` {found[2]} in `alignment_loss`. "
            f"Expected the same (b, d), and ({b}, {b}). Pass one predicted query for each caption of the batch, and "
            "`same_caption(caption_id)`."
        )
