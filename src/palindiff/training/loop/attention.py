"""Which attention kernel trains: on a CPU in bf16 the fused kernel's backward is much slower than the plain one."""

from contextlib import AbstractContextManager, nullcontext

from accelerate import Accelerator
from torch.nn.attention import SDPBackend, sdpa_kernel


def attention_backend(accelerator: Accelerator) -> AbstractContextManager[None]:
    """Choose the plain attention kernel for bf16 on a CPU, and torch's own choice everywhere else.

    Measured by `benchmarks/attention_backend.py`.
    """
    return attention_backend_of(accelerator.device.type, accelerator.mixed_precision)


def attention_backend_of(device_type: str, precision: str) -> AbstractContextManager[None]:
    """Choose it by a device's type and a precision's name."""
    is_slow = device_type == "cpu" and precision == "bf16"
    return sdpa_kernel(SDPBackend.MATH) if is_slow else nullcontext()
