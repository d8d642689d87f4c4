"""κ, the factor of cosines in a contrastive loss: learned as its logarithm, and bounded as in CLIP.

Source: CLIP (Radford et al., 2021, §2.5).

Here: the bound. Not here: the losses (`objectives/`), the fitted temperature (`query_stream.py`).
"""

import math

import torch
from torch import Tensor

MAX_LOGIT_SCALE = 100.0


def bounded(log_logit_scale: Tensor) -> Tensor:
    """Bound log κ where it is used. Shapes: () -> () float32, at most log MAX_LOGIT_SCALE."""
    return log_logit_scale.float().clamp(max=math.log(MAX_LOGIT_SCALE))


@torch.no_grad()
def clamp_log_logit_scale_(log_logit_scale: Tensor) -> None:
    """Clamp the weight itself, so that it still has a gradient in `bounded`; training calls this at every use."""
    log_logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
