"""The recipe section `optimizer`: AdamW with float32 or 8-bit moments, and the learning-rate schedule."""

import importlib.util
import math
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field

EIGHT_BIT_PACKAGE = "bitsandbytes"

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """AdamW with two learning rates, warm-up, and an optional decay to zero at the end."""

    kind: Literal["adamw", "adamw_8bit"] = "adamw"  # "adamw_8bit": moments in a quarter of the memory; extra `memory`
    learning_rate: float = Field(1e-5, gt=0)  # of weights that start from a trained model (the paper: U-Net)
    new_learning_rate: float = Field(1e-4, gt=0)  # of new weights (the paper: the second stream)
    weight_decay: float = Field(1e-4, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    warmup_steps: int = Field(1000, ge=0)  # linear from 0; 0 turns it off
    decay: Literal["none", "cosine", "linear"] = "none"  # how the rate falls to zero over the last `decay_steps`
    decay_steps: int = Field(0, ge=0)
    cycles: int = Field(1, gt=0)  # equal periods of a run, each with its own warm-up and decay (warm restarts)
    clip_norm: float = Field(1.0, ge=0)  # of the gradient over all parameters; 0 turns clipping off

    def rate_factor(self, step: int, num_steps: int) -> float:
        """Factor of the learning rate at a step counted from 0; it is above zero at the last step of a decay.

        Source: SGDR (Loshchilov and Hutter, ICLR 2017) for `cycles`; the last cycle takes the remaining steps.
        """
        cycle_steps = max(1, num_steps // self.cycles)
        cycle = min(step // cycle_steps, self.cycles - 1)
        num_steps = num_steps - cycle * cycle_steps if cycle == self.cycles - 1 else cycle_steps
        step -= cycle * cycle_steps
        factor = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        decay_steps = min(self.decay_steps, num_steps)
        if self.decay != "none" and decay_steps:
            remaining = min(1.0, (num_steps - step) / decay_steps)
            factor *= remaining if self.decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * remaining)
        return factor


def make_optimizer(config: OptimizerConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build the optimizer for groups of `params` and `lr`; each group keeps its full rate as `initial_lr`.

    Source: AdamW, Loshchilov and Hutter (ICLR 2019); 8-bit moments in blocks of 256, Dettmers et al. (ICLR 2022).
    """
    own = [{**group, "initial_lr": group["lr"]} for group in groups]  # copies: the loop changes `lr` at every step
    if config.kind == "adamw":
        return torch.optim.AdamW(own, betas=config.betas, weight_decay=config.weight_decay, fused=True)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(own, betas=config.betas, weight_decay=config.weight_decay)


def check_optimizer(config: OptimizerConfig, is_sharded: bool) -> None:
    """Refuse, before anything is computed, an optimizer that cannot be built here.

    Raises: ModuleNotFoundError if its package is missing; ValueError if its moments cannot be sharded.
    """
    if config.kind != "adamw_8bit":
        return
    if is_sharded:
        raise ValueError(
            "`optimizer.kind` is 'adamw_8bit' and the weights are sharded over processes. Expected 'adamw': 8-bit "
            "moments are stored in blocks, which a shard would cut. Set `optimizer.kind: adamw` or "
            "`machine.sharding: none`."
        )
    if importlib.util.find_spec(EIGHT_BIT_PACKAGE) is None:
        raise ModuleNotFoundError(
            f"`optimizer.kind` is 'adamw_8bit' and the package {EIGHT_BIT_PACKAGE} is not installed. Expected the "
            "extra `memory`. Run `pip install -e '.[memory]'`, or set `optimizer.kind: adamw`."
        )
