"""Where the weights that train lie: on one device, the same on each of several (DDP), or a share on each (FSDP).

Here: placing them, and going between a whole tensor and a process's share of it. Not here: what is kept of them
(`state.py`), how a launch is joined (`device.py`).
"""

import copy
import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from palindiff.training.loop.optimizer import check_optimizer, make_optimizer

if TYPE_CHECKING:
    from palindiff.training.loop.loop import MachineConfig, OptimizerConfig, Run

UNITS = (ResnetBlock2D, Downsample2D, Upsample2D, FeedForward)
"""Layers that are gathered one by one, just before they run, and let go after.

Only what always runs through its own `forward`: the query's walk uses the parts of an attention, never the attention
itself, so attentions, norms and projections are gathered with the objective, once a step.
"""

WARNING_OF_VIEWS = "FSDP2-wrapped module .* returned a view tensor"
"""torch warns of changes in place to what a unit returns; neither diffusers nor our walk makes any."""


@dataclass
class Placed:
    """An objective that is ready to train."""

    shown: nn.Module  # whole, for evaluators and checkpoints
    module: nn.Module  # its weights train: `shown` itself, or its sharded twin
    objective: nn.Module  # what a step calls: `module`, or what averages its gradients over processes
    optimizer: torch.optim.Optimizer


def is_sharded(machine: "MachineConfig", num_processes: int) -> bool:
    """Whether each process holds a share of the weights: asked for by the recipe, or by `accelerate launch`."""
    return num_processes > 1 and (machine.sharding == "fsdp" or is_launched_with_fsdp())


def is_launched_with_fsdp() -> bool:
    """Whether accelerate's own configuration asks for FSDP."""
    return _is_set("ACCELERATE_USE_FSDP")


def check_launch() -> None:
    """Refuse settings of accelerate's FSDP that palindiff cannot keep.

    Raises: ValueError.
    """
    if not is_launched_with_fsdp():
        return
    version = os.environ.get("FSDP_VERSION", "1")
    found = [] if version == "2" else [f"`fsdp_version: {version}`"]
    found += ["`fsdp_offload_params: true`"] if _is_set("FSDP_OFFLOAD_PARAMS") else []
    found += ["`fsdp_cpu_ram_efficient_loading: true`"] if _is_set("FSDP_CPU_RAM_EFFICIENT_LOADING") else []
    if found:
        raise ValueError(
            f"accelerate was launched with {' and '.join(found)}. Expected FSDP version 2 with weights on the device "
            "and frozen models loaded by every process, as in palindiff/training/launch/fsdp.yaml. Launch with that "
            "file, or with torchrun and `machine.sharding: fsdp`."
        )


def check_placement(optimizer: "OptimizerConfig", machine: "MachineConfig", accelerator: Accelerator) -> None:
    """Refuse, before anything is computed, what `place` would refuse after hours of features.

    Raises: ModuleNotFoundError if the optimizer's package is missing; ValueError if it cannot be shared out.
    """
    check_optimizer(optimizer, is_sharded(machine, accelerator.num_processes))


def place(run: "Run", accelerator: Accelerator) -> Placed:
    """Bring objective and optimizer to the accelerator's device, whole or shared out.

    Raises: ValueError if the optimizer cannot be shared out; ModuleNotFoundError if its package is not installed.
    """
    check_placement(run.optimizer, run.machine, accelerator)
    if is_sharded(run.machine, accelerator.num_processes):
        return _place_shares(run, accelerator)
    module = run.objective.to(accelerator.device).train()
    optimizer = make_optimizer(run.optimizer, run.parameter_groups)
    objective, optimizer = accelerator.prepare(module, optimizer)
    return Placed(module, module, objective, optimizer)


def _place_shares(run: "Run", accelerator: Accelerator) -> Placed:
    """Train a sharded twin: evaluators look at the whole module on one process, where a sharded one would wait.

    Weights are gathered as they are, in float32, so that the numbers are those of one process.
    """
    warnings.filterwarnings("ignore", message=WARNING_OF_VIEWS)
    twin = copy.deepcopy(run.objective).to(accelerator.device).train()
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    scalars = {weight for weight in twin.parameters() if weight.ndim == 0}  # nothing to share out: the same on each
    for scalar in scalars:
        if scalar.requires_grad:
            scalar.register_post_accumulate_grad_hook(_average_gradient)
    inside_out = reversed(list(twin.modules()))
    for unit in [each for each in inside_out if isinstance(each, UNITS) and any(True for _ in each.parameters())]:
        fully_shard(unit, mesh=mesh, ignored_params=scalars)
    fully_shard(twin, mesh=mesh, ignored_params=scalars)
    optimizer = make_optimizer(run.optimizer, _groups_of_twin(run, twin))
    return Placed(run.objective, twin, twin, optimizer)


def _groups_of_twin(run: "Run", twin: nn.Module) -> list[dict[str, Any]]:
    """The parameter groups with the twin's weights; shares and scalars apart, as no fused step takes both."""
    names = {weight: name for name, weight in run.objective.named_parameters()}
    own = dict(twin.named_parameters())
    groups = []
    for group in run.parameter_groups:
        weights = [own[names[weight]] for weight in group["params"]]
        shares = [weight for weight in weights if isinstance(weight, DTensor)]
        scalars = [weight for weight in weights if not isinstance(weight, DTensor)]
        groups += [{**group, "params": part} for part in (shares, scalars) if part]
    return groups


def _average_gradient(weight: Tensor) -> None:
    """Over processes; after every part of a step, as an average of averages is the same again."""
    if weight.grad is not None:
        dist.all_reduce(weight.grad)
        weight.grad /= dist.get_world_size()


def gradients_wait(objective: nn.Module, accelerator: Accelerator, is_last: bool) -> AbstractContextManager[None]:
    """Let gradients wait for a step's last part before processes exchange them; shares never wait.

    A sharded objective exchanges them at every part: waiting would hold the whole gradient on each process.
    """
    if is_last or isinstance(objective, FSDPModule):
        return nullcontext()
    return accelerator.no_sync(objective)


def trained_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name the weights that have gradients."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor of which each process has a share; every process must call it. A plain tensor stays itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_share(tensor: Tensor) -> Tensor:
    """This process's share, a plain tensor; of a plain tensor, itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def join_shares(share: Tensor, weight: Tensor) -> Tensor:
    """Gather what `own_share` gives of a tensor that lies as a weight does; every process must call it."""
    if not isinstance(weight, DTensor):
        return share
    on_device = share.to(weight.device)
    return DTensor.from_local(
        on_device, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
    ).full_tensor()


def placed_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """Bring a whole tensor to a weight's device; where the weight is shared out, keep this process's share of it."""
    on_device = tensor.to(weight.device)
    if not isinstance(weight, DTensor) or tensor.shape != weight.shape:
        return on_device
    share = distribute_tensor(on_device, weight.device_mesh, weight.placements, src_data_rank=None)
    return share.clone()  # a view would keep the whole tensor in memory


def whole_tensors(tensors: Mapping[str, Tensor], is_kept: bool) -> dict[str, Tensor]:
    """Gather one after another; every process takes part, and one that keeps none holds one at a time."""
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        joined = whole(tensor.detach())
        if is_kept:
            gathered[name] = joined.contiguous()
    return gathered


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")
