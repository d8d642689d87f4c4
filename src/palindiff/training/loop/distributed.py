"""The weights in training: on one device, replicated over processes (DDP), or sharded over them (FSDP).

Here: distributing an objective, and converting between whole tensors and shards. Not here: what is saved
(`checkpoint.py`), how processes are launched (`device.py`).
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from palindiff.training.loop.device import MachineConfig, is_launched_with_fsdp
from palindiff.training.loop.optimizer import OptimizerConfig, make_optimizer

T = TypeVar("T")

UNITS = (ResnetBlock2D, Downsample2D, Upsample2D, FeedForward)
"""Layers whose weights are gathered one layer at a time, just before it runs, and freed after it.

Only layers that always run through their own `forward`: the text query uses the projections of an attention and never
the attention itself, so attentions, norms and projections are gathered with the objective, once per step.
"""

WARNING_OF_VIEWS = "FSDP2-wrapped module .* returned a view tensor"
"""torch warns against in-place changes of what a unit returns; neither diffusers nor palindiff makes any."""


@dataclass
class Distributed:
    """An objective that is ready to train on this process."""

    full_model: nn.Module  # unsharded, for evaluators and checkpoints
    sharded_model: nn.Module  # whose weights are trained: `full_model` itself, or a sharded copy
    objective: nn.Module  # what a step calls: `sharded_model`, or its DDP wrapper
    optimizer: torch.optim.Optimizer

    @property
    def is_sharded(self) -> bool:
        """Whether the trained weights are those of a sharded copy."""
        return self.full_model is not self.sharded_model


def is_sharded(machine: MachineConfig, num_processes: int) -> bool:
    """Whether weights are sharded: as the recipe asks, or `accelerate launch`."""
    return num_processes > 1 and (machine.sharding == "fsdp" or is_launched_with_fsdp())


def distribute(
    objective: nn.Module,
    parameter_groups: list[dict[str, Any]],
    optimizer: OptimizerConfig,
    machine: MachineConfig,
    accelerator: Accelerator,
) -> Distributed:
    """Move objective and optimizer to the accelerator's device, replicated or sharded."""
    if is_sharded(machine, accelerator.num_processes):
        sharded = _sharded_copy(objective, accelerator)
        groups = _sharded_groups(objective, sharded, parameter_groups)
        return Distributed(objective, sharded, sharded, make_optimizer(optimizer, groups))
    model = objective.to(accelerator.device).train()
    wrapped, built = accelerator.prepare(model, make_optimizer(optimizer, parameter_groups))
    return Distributed(model, model, wrapped, built)


def _sharded_copy(objective: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Shard a copy: evaluators run the full model on one process, where a sharded one would wait for the others.

    Weights are gathered as they are, in float32, so that the numbers are those of one process.
    """
    warnings.filterwarnings("ignore", message=WARNING_OF_VIEWS)
    sharded = copy.deepcopy(objective).to(accelerator.device).train()
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    scalars = {weight for weight in sharded.parameters() if weight.ndim == 0}  # cannot be sharded: replicated
    for scalar in scalars:
        if scalar.requires_grad:
            scalar.register_post_accumulate_grad_hook(_average_gradient)
    inside_out = reversed(list(sharded.modules()))
    for unit in [each for each in inside_out if isinstance(each, UNITS) and any(True for _ in each.parameters())]:
        fully_shard(unit, mesh=mesh, ignored_params=scalars)
    fully_shard(sharded, mesh=mesh, ignored_params=scalars)
    return sharded


def _sharded_groups(
    objective: nn.Module, sharded: nn.Module, parameter_groups: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The parameter groups with the copy's weights; shards and scalars apart, as no fused step takes both."""
    names = {weight: name for name, weight in objective.named_parameters()}
    own = dict(sharded.named_parameters())
    groups = []
    for group in parameter_groups:
        weights = [own[names[weight]] for weight in group["params"]]
        shards = [weight for weight in weights if isinstance(weight, DTensor)]
        scalars = [weight for weight in weights if not isinstance(weight, DTensor)]
        groups += [{**group, "params": part} for part in (shards, scalars) if part]
    return groups


def _average_gradient(weight: Tensor) -> None:
    """Average over processes; after every micro-batch, as averaging an average changes nothing."""
    if weight.grad is not None:
        dist.all_reduce(weight.grad)
        weight.grad /= dist.get_world_size()


def no_gradient_sync(objective: nn.Module, accelerator: Accelerator, is_last: bool) -> AbstractContextManager[None]:
    """Exchange replicated gradients at a step's last micro-batch only; sharded ones at each.

    Delaying the exchange of sharded gradients would keep the whole gradient on each process.
    """
    if is_last or isinstance(objective, FSDPModule):
        return nullcontext()
    return accelerator.no_sync(objective)


def from_main(compute: Callable[[], T], accelerator: Accelerator) -> T:
    """Compute on the main process alone and hand the result to all: files may lie on its disk only.

    Raises: what `compute` raises, on every process, so that none of them waits for the others.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = compute()
        except (OSError, ValueError) as error:
            outcome[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return cast("T", outcome[0])


def tensors_from_main(tensors: Mapping[str, Tensor], accelerator: Accelerator) -> Iterator[tuple[str, Tensor]]:
    """Yield the main process's tensors on every process, one at a time; what others hand in is not looked at."""
    if accelerator.num_processes == 1:
        yield from tensors.items()
        return
    layout = from_main(lambda: {name: (each.shape, each.dtype) for name, each in tensors.items()}, accelerator)
    for name, (shape, dtype) in layout.items():
        is_main, device = accelerator.is_main_process, accelerator.device
        tensor = tensors[name].to(device) if is_main else torch.empty(shape, dtype=dtype, device=device)
        yield name, broadcast(tensor.contiguous())


def check_agreement(facts: Mapping[str, str], accelerator: Accelerator) -> None:
    """Refuse processes that would train on different things; a process with another disk may have found others.

    Raises: ValueError, on every process.
    """
    if accelerator.num_processes == 1:
        return
    main, *others = gather_object([dict(facts)])
    for number, found in enumerate(others, start=1):
        if differing := [name for name in main | found if main.get(name) != found.get(name)]:
            raise ValueError(
                f"Process {number} of {accelerator.num_processes} has another {' and another '.join(differing)} than "
                "process 0. Expected the same on every machine. Give all of them the same recipe, data and models."
            )


def trained_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name the weights that have gradients."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, which every process must call; a plain tensor is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Iterable[tuple[str, Tensor]], is_kept: bool) -> dict[str, Tensor]:
    """Gather named tensors one by one; every process takes part, and one that keeps none holds one at a time."""
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors:
        joined = whole(tensor.detach())
        if is_kept:
            gathered[name] = joined.contiguous()
    return gathered


def local_shard(tensor: Tensor) -> Tensor:
    """This process's shard as a plain tensor; a plain tensor is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_sharded(shard: Tensor, weight: Tensor) -> Tensor:
    """Undo `local_shard`: the tensor, sharded as a weight is, of which `shard` is this process's part."""
    if not isinstance(weight, DTensor):
        return shard
    mesh, placements, stride = weight.device_mesh, weight.placements, weight.stride()
    on_device = shard.to(weight.device)
    return DTensor.from_local(on_device, mesh, placements, run_check=False, shape=weight.shape, stride=stride)


def shard_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """Move a whole tensor to a weight's device; where the weight is sharded, keep this process's shard of it."""
    on_device = tensor.to(weight.device)
    if not isinstance(weight, DTensor) or tensor.shape != weight.shape:
        return on_device
    shard = distribute_tensor(on_device, weight.device_mesh, weight.placements, src_data_rank=None)
    return shard.clone()  # a view would keep the whole tensor in memory
