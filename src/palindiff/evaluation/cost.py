"""What embedding an image costs: calls of networks, floating-point operations, seconds.

Here: counting on a model as it runs. Not here: estimates of a run that is not built (`training/cost/`).
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from palindiff.inference.embedder import Embedder


@torch.no_grad()
def embedding_cost(model: Embedder, options: Mapping[str, Any], batch_size: int) -> dict[str, float]:
    """Measure what an image costs from its pixels on: TFLOP, seconds within a batch, and calls of each network.

    Decoding is not part of it. The first batch warms up, the second is timed.

    Units: TFLOP = 10^12 multiplications and additions of matrix products, convolutions and attention; seconds.
    """
    x = torch.zeros(batch_size, 3, model.image_size_px, model.image_size_px)
    calls: Counter[str] = Counter()
    with ExitStack() as stack:
        for name, network in model.networks.items():
            hook = network.register_forward_hook(lambda *_, name=name: calls.update([name]))
            stack.callback(hook.remove)
        tflop = count_tflop(lambda: model.embed_pixels(x[:1], [options]))
    model.embed_pixels(x, [options])
    began = time.perf_counter()
    model.embed_pixels(x, [options])[0].cpu()
    seconds = (time.perf_counter() - began) / batch_size
    return {"tflop": tflop, "seconds": seconds, **{f"calls of {name}": float(n) for name, n in calls.items()}}


def count_tflop(run: Callable[[], object]) -> float:
    """Count what a call computes; plain attention, so that none of its products is hidden in a fused kernel."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return float(counter.get_total_flops()) / 1e12
