"""The recipe section `machine`, and the accelerator it describes: device, precision, processes and trackers.

Also which attention kernel a device trains with in a precision.
"""

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, LoggerType, ProjectConfiguration, parse_flag_from_env
from pydantic import BaseModel, Field
from torch.nn.attention import SDPBackend, sdpa_kernel

from palindiff.allocator import keep_freed_memory

TIMEOUT = timedelta(days=2)  # of the other processes, while one computes features or evaluates
TRACKER_DIR = "tensorboard"  # of trackers that write files, below the run's folder

EMADevice = Literal["same", "cpu"]  # "same": the device of the weights


class MachineConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What may change from machine to machine; only `precision` alters numbers and is part of the config hash."""

    precision: Literal["fp32", "bf16"] = "fp32"
    num_threads: int = Field(0, ge=0)  # of torch on a CPU; 0 keeps torch's default
    gradient_checkpointing: bool = False  # True: recompute the activations in the backward pass, to save memory
    sharding: Literal["none", "fsdp"] = "none"  # "fsdp": each of several processes holds a shard of the weights
    ema_device: EMADevice = "same"  # "cpu" keeps the EMA weights off the GPU
    num_workers: int | None = Field(None, ge=0)  # processes that decode images; null: one per core beside a GPU
    cache_dir: str | None = None  # of the feature cache; None is $PALINDIFF_CACHE or the user's cache folder
    log_with: tuple[str, ...] = ("tensorboard",)  # accelerate's trackers: tensorboard, wandb, ...; [] turns them off


def make_accelerator(machine: MachineConfig, run_dir: Path | None = None) -> Accelerator:
    """Choose the device, join the other processes of a launch, set CPU threads, and select the trackers of a run.

    run_dir: the folder of the run; None uses no tracker.
    Raises: ValueError if accelerate's own configuration or a tracker's name is not supported; ModuleNotFoundError if
        the package of a tracker is missing.
    """
    check_launch(machine)
    check_trackers(machine.log_with)
    if machine.num_threads:
        torch.set_num_threads(machine.num_threads)
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if not has_gpu:
        keep_freed_memory()
    project = run_dir and ProjectConfiguration(str(run_dir), logging_dir=str(run_dir / TRACKER_DIR))
    accelerator = Accelerator(
        mixed_precision="no" if machine.precision == "fp32" else machine.precision,
        cpu=not has_gpu,  # without it each process of a `torchrun` on CPUs would train alone
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
        log_with=list(machine.log_with) if run_dir and machine.log_with else None,
        project_config=project or None,
    )
    if machine.precision == "bf16" and not has_gpu and not computes_bf16() and accelerator.is_main_process:
        warnings.warn(
            "This CPU has no instructions for bf16, and emulates it, which is slow. Expected a GPU, or a CPU that has "
            "them. Set `machine.precision=fp32`.",
            stacklevel=2,
        )
    return accelerator


def computes_bf16() -> bool:
    """Whether this CPU has instructions for bf16 that torch uses."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def attention_backend(device_type: str, precision: str) -> AbstractContextManager[None]:
    """Choose the plain attention kernel for bf16 on a CPU, and torch's own choice everywhere else.

    There torch's choice is slower, forward and backward together, at the sizes in `results/attention_backend.json`.
    """
    is_slow = device_type == "cpu" and precision == "bf16"
    return sdpa_kernel(SDPBackend.MATH) if is_slow else nullcontext()


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuse a tracker that accelerate does not know or whose package is missing.

    Raises: ValueError; ModuleNotFoundError.
    """
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(
                f"`machine.log_with` names '{name}'. Expected trackers of accelerate: "
                f"{', '.join(sorted(LOGGER_TYPE_TO_CLASS))}. Use one of these, or [] for none."
            )
        if name in LoggerType.list() and name not in available:
            raise ModuleNotFoundError(
                f"`machine.log_with` names '{name}', whose package is not installed. Expected an installed tracker. "
                f"Run `pip install {name}`, or remove '{name}' from `machine.log_with`."
            )


def is_launched_with_fsdp() -> bool:
    """Whether accelerate's own configuration asks for FSDP."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def check_launch(machine: MachineConfig) -> None:
    """Refuse settings of `accelerate launch` that would have no effect, or that palindiff does not support.

    Raises: ValueError.
    """
    _check_launch_options(machine.precision)
    if not is_launched_with_fsdp():
        return
    version = os.environ.get("FSDP_VERSION", "1")
    found = [] if version == "2" else [f"`fsdp_version: {version}`"]
    found += [
        f"`{name.lower()}: true`"
        for name in ("FSDP_OFFLOAD_PARAMS", "FSDP_CPU_RAM_EFFICIENT_LOADING")
        if parse_flag_from_env(name)
    ]
    if found:
        raise ValueError(
            f"accelerate was launched with {' and '.join(found)}. Expected FSDP version 2 with weights on the device "
            "and frozen models loaded by every process, as in palindiff/training/launch/fsdp.yaml. Launch with that "
            "file, or with torchrun and `machine.sharding: fsdp`."
        )


def _check_launch_options(precision: str) -> None:
    """Refuse options whose setting the recipe holds; accelerate's default of each stands for none given."""
    own = {"fp32": "no"}.get(precision, precision)
    expected = {  # variable of `accelerate launch`: its option, its values that change nothing, what to do instead
        "ACCELERATE_MIXED_PRECISION": ("--mixed_precision", {"no", own}, "set `machine.precision` in the recipe"),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
            "--gradient_accumulation_steps", {"1"}, "set `loop.accumulation` in the recipe"
        ),
        "ACCELERATE_DYNAMO_BACKEND": ("--dynamo_backend", {"no"}, "palindiff does not compile models"),
        "ACCELERATE_USE_DEEPSPEED": ("--use_deepspeed", {"false"}, "shard with `machine.sharding: fsdp`"),
        "ACCELERATE_USE_MEGATRON_LM": ("--use_megatron_lm", {"false"}, "shard with `machine.sharding: fsdp`"),
    }  # fmt: skip
    for variable, (option, allowed, remedy) in expected.items():
        value = os.environ.get(variable, "").lower()
        if value and value not in allowed:
            raise ValueError(
                f"accelerate was launched with `{option} {value}` ({variable}), and `machine.precision` is "
                f"'{precision}'. Expected no such option: it would have no effect. Leave it out; {remedy}."
            )
