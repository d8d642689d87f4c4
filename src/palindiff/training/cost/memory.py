"""How many bytes training holds: for each trained weight, and in the tensors of a step at its worst moment.

The step itself runs, on tensors that have shapes and no numbers (`FakeTensorMode`), so that forward, backward,
autocast and gradient checkpointing keep and free what they do in training. Not counted: what a library's kernel takes
for itself while it runs, and what an allocator wastes between tensors. Not here: frozen parts, sharding
(`estimate.py`).
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from palindiff.training.loop.device import attention_backend
from palindiff.training.recipes.schema import Recipe

DeviceKind = Literal["gpu", "cpu"]
FP32 = 4  # bytes
EIGHT_BIT_MOMENTS = 2 * (1 + FP32 / 256)  # bytes; each block of 256 has a scale in float32


def bytes_per_weight(recipe: Recipe, device: DeviceKind) -> dict[str, float]:
    """Bytes that the device holds for each trained weight, whatever the batch; float32 under bf16 autocast too.

    An EMA on the CPU takes no memory of a GPU; where the CPU trains, it takes its own.
    """
    has_ema = device == "cpu" or recipe.machine.ema_device == "same"
    moments = EIGHT_BIT_MOMENTS if recipe.optimizer.kind == "adamw_8bit" else 2 * FP32
    return {"weights": FP32, "gradients": FP32, "optimizer": moments, "ema": FP32 if has_ema else 0}


def training_bytes(num_trained: int, recipe: Recipe) -> int:
    """Units: trained parameters -> bytes on a GPU, activations and frozen parts not counted."""
    return round(num_trained * sum(bytes_per_weight(recipe, "gpu").values()))


class LiveBytes(TorchDispatchMode):
    """Counts the storages of all tensors that are made while it is entered, and when they die.

    `peak` is the most that lived at once, gradients included; `activations_peak` the most apart from gradients.
    """

    def __init__(self, module: nn.Module) -> None:
        """Build a counter that leaves out the tensors which `module` holds already."""
        super().__init__()
        self.live = self.peak = self.gradients = self.activations_peak = 0
        held = [*module.parameters(), *module.buffers()]
        self._seen: WeakKeyDictionary[Any, int] = WeakKeyDictionary((each.untyped_storage(), 0) for each in held)
        self._is_gradient: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self.count(each)
        return made

    def count_gradient(self, weight: Tensor) -> None:
        """Note that a storage holds a gradient, not an activation; called once a weight has its gradient."""
        assert weight.grad is not None, "autograd calls this after it has written the gradient"
        storage = weight.grad.untyped_storage()
        if storage not in self._is_gradient:
            self._is_gradient[storage] = True
            self.gradients += storage.nbytes()

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage from now on, once."""
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen[storage] = num_bytes = storage.nbytes()
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        self.activations_peak = max(self.activations_peak, self.live - self.gradients)
        finalize(storage, self._forget, num_bytes)

    def _forget(self, num_bytes: int) -> None:
        self.live -= num_bytes


def count_step(
    objective: nn.Module,
    batch: Mapping[str, Tensor],
    draws: Mapping[str, Tensor],
    num_parts: int,
    precision: str,
    device: DeviceKind,
) -> LiveBytes:
    """Run a step of `num_parts` equal parts as `backward_step` of `training/loop/loop.py` does, up to its gradients.

    Shapes: batch and draws of one part, as the objective takes them; all tensors on a CPU, fake ones.
    """
    objective.zero_grad()
    live = LiveBytes(objective)
    for tensor in (*batch.values(), *draws.values()):
        live.count(tensor)
    with ExitStack() as stack:
        stack.enter_context(attention_backend(device, precision))
        if device == "gpu":
            for norm in [each for each in objective.modules() if isinstance(each, nn.GroupNorm | nn.LayerNorm)]:
                stack.callback(norm.register_forward_pre_hook(_in_float32).remove)
        for weight in objective.parameters():
            if weight.requires_grad:
                stack.callback(weight.register_post_accumulate_grad_hook(live.count_gradient).remove)
        stack.enter_context(live)
        for _ in range(num_parts):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                losses = objective(batch, draws)
            losses["loss"].backward()
            del losses
    return live


def _in_float32(norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Let a norm run in float32 under autocast, as torch's autocast has it on CUDA and not on a CPU.

    Of the two lists' other differences, what these networks meet keeps nothing for backward: upsampling, softmax.
    """
    return tuple(each.float() for each in inputs) if torch.is_autocast_enabled("cpu") else inputs
