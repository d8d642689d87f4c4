"""The accelerator of a run: cuda, mps or cpu, whichever this machine has, in the precision asked for."""

from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from palindiff.training.loop.distributed import check_launch
from palindiff.training.loop.loop import MachineConfig

PATIENCE = timedelta(days=2)  # that the others wait while one process computes features or evaluates


def make_accelerator(machine: MachineConfig) -> Accelerator:
    """Choose the device and join the other processes of a launch; set the threads of a CPU.

    Raises: ValueError if accelerate's own configuration asks for what palindiff cannot keep.
    Without an accelerator accelerate must be told so: otherwise each process of a `torchrun` on CPUs trains alone.
    """
    check_launch()
    if machine.num_threads:
        torch.set_num_threads(machine.num_threads)
    precision = "no" if machine.precision == "fp32" else machine.precision
    has_accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(mixed_precision=precision, cpu=not has_accelerator, kwargs_handlers=[patience])
