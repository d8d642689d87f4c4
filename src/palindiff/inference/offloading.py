"""Offloaded components of a pipeline: moved to the device where they run, when a method uses them.

Not here: offloading itself, which is diffusers' `enable_model_cpu_offload`.
"""

import torch
from diffusers import DiffusionPipeline


def bring(pipeline: DiffusionPipeline, *names: str) -> torch.device:
    """Move offloaded components to the device where they run, as only their `forward` does otherwise.

    Returns: the device.
    Raises: ValueError if they are offloaded weight by weight.
    """
    for name in names:
        part = getattr(pipeline, name)
        if any(weight.is_meta for weight in part.parameters()):
            raise ValueError(
                f"The weights of `{name}` are on the device `meta`, as `enable_sequential_cpu_offload()` leaves "
                "them. Expected whole components, for naming. Use `enable_model_cpu_offload()` instead."
            )
        if hasattr(part, "_hf_hook"):
            part._hf_hook.pre_forward(part)
    device: torch.device = pipeline._execution_device
    return device
