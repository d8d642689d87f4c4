"""The optimizer of a recipe: AdamW with moments in float32, or in 8 bits for a quarter of their memory."""

import importlib.util
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from palindiff.training.loop.loop import OptimizerConfig

EIGHT_BIT_PACKAGE = "bitsandbytes"


def make_optimizer(config: "OptimizerConfig", groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build it for groups of `params` and `lr`; each keeps its full rate as `initial_lr`.

    Source: AdamW, Loshchilov and Hutter (ICLR 2019); 8-bit moments in blocks of 256, Dettmers et al. (ICLR 2022).
    """
    own = [{**group, "initial_lr": group["lr"]} for group in groups]  # the optimizer keeps and the loop changes them
    if config.kind == "adamw":
        return torch.optim.AdamW(own, betas=config.betas, weight_decay=config.weight_decay, fused=True)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(own, betas=config.betas, weight_decay=config.weight_decay)


def check_optimizer(config: "OptimizerConfig", is_sharded: bool) -> None:
    """Refuse, before anything is computed, an optimizer that cannot be built here.

    Raises: ModuleNotFoundError if its package is missing; ValueError if its moments cannot be shared out.
    """
    if config.kind != "adamw_8bit":
        return
    if is_sharded:
        raise ValueError(
            "`optimizer.kind` is 'adamw_8bit' and the weights are shared out over processes. Expected 'adamw': 8-bit "
            "moments are kept in blocks, which a share would cut. Set `optimizer.kind: adamw` or `machine.sharding: "
            "none`."
        )
    if importlib.util.find_spec(EIGHT_BIT_PACKAGE) is None:
        raise ModuleNotFoundError(
            f"`optimizer.kind` is 'adamw_8bit' and the package {EIGHT_BIT_PACKAGE} is not installed. Expected the "
            "extra `memory`. Run `pip install 'palindiff[memory]'`, or set `optimizer.kind: adamw`."
        )
