"""Which attention kernel trains: on a CPU in bf16 the fused kernel's backward is far slower than the plain one."""

from contextlib import AbstractContextManager, nullcontext

from accelerate import Accelerator
from torch.nn.attention import SDPBackend, sdpa_kernel


def attention_backend(accelerator: Accelerator) -> AbstractContextManager[None]:
    """Choose the plain attention kernel for bf16 on a CPU, and torch's own choice everywhere else.

    Measured by `benchmarks/attention_backend.py`.
    """
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
