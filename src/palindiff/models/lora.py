"""LoRA: low-rank updates of some layers, trained in place of all weights, by peft.

Here: adding them to a model, and a copy of the model in which they are part of the weights. Not here: which models are
trained so (recipes), saving them for diffusers (`pretrained/saving.py`) and transformers
(`pretrained/unidiff_folders.py`), adapters that a user loads for generation (`inference/adapters.py`).
"""

import copy
import importlib.util
from typing import Any, TypeVar, cast

import torch
from pydantic import BaseModel, Field
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from palindiff.models.text_encoder import TextEncoder

ADAPTER = "palindiff_training"  # its name in peft; adapters that a user loads have other names
M = TypeVar("M", bound=nn.Module)


class LoraConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The rank of the updates, and the layers that get one."""

    rank: int = Field(16, gt=0)
    alpha: float | None = Field(None, gt=0)  # the update is multiplied by alpha / rank; None: by 1
    unet_layers: tuple[str, ...] = Field(("to_q", "to_k", "to_v", "to_out.0"), min_length=1)
    """Last parts of names; of the U-Net's layers those of attention, as in diffusers' example"""
    clip_layers: tuple[str, ...] = Field(("q_proj", "k_proj", "v_proj", "out_proj"), min_length=1)
    """Of both encoders of CLIP; other text encoders use `text_layers`"""
    text_layers: tuple[str, ...] = Field(("query", "key", "value"), min_length=1)


def add_lora(model: nn.Module, layers: tuple[str, ...], config: LoraConfig, name: str) -> None:
    """Freeze a model, and add trained updates to its layers of the given names; the model computes as before.

    Source: LoRA (Hu et al., ICLR 2022), by `peft.inject_adapter_in_model`; B starts at zero, A from torch's global
            generator.
    Raises: ValueError if the model has no layer of one of the names; ModuleNotFoundError without peft.
    """
    _check_layers(model, layers, name)
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    model.requires_grad_(False)
    alpha = config.rank if config.alpha is None else config.alpha
    settings = PeftConfig(r=config.rank, lora_alpha=alpha, target_modules=list(layers), init_lora_weights=True)  # type: ignore[arg-type]
    with unset_fake_temporarily():  # peft converts its weights, which tensors without numbers cannot be
        inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
    model.peft_config = {ADAPTER: settings}  # type: ignore[assignment]  # where diffusers and transformers look for it


def _check_layers(model: nn.Module, layers: tuple[str, ...], name: str) -> None:
    if importlib.util.find_spec("peft") is None:
        raise ModuleNotFoundError(
            "LoRA was asked for, and the package peft is not installed. Expected the extra `lora`. Run "
            "`pip install -e '.[lora]'`, or train all weights (`trained: all`)."
        )
    known = {module for module, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    for layer in layers:
        if not any(module == layer or module.endswith(f".{layer}") for module in known):
            ends = sorted({".".join(module.split(".")[-2:]) if module[-1].isdigit() else module.rpartition(".")[2]
                           for module in known})  # fmt: skip
            raise ValueError(
                f"LoRA was asked for on the layer `{layer}` of the {name}, which has none of that name. Expected some "
                f"of {', '.join(ends)}. Change `lora`."
            )


def add_text_lora(text: TextEncoder, config: LoraConfig) -> None:
    """`add_lora` to a text encoder, a CLIP's or another.

    Raises: as `add_lora`.
    """
    layers = config.clip_layers if text.pooling == "clip" else config.text_layers
    add_lora(text.requires_grad_(False).model, layers, config, "text encoder")


def has_lora(model: nn.Module) -> bool:
    """Whether `add_lora` was used on a model, or a user loaded an adapter into it."""
    return hasattr(model, "peft_config")


def trains_lora(model: nn.Module) -> bool:
    """Whether `add_lora` was used on a model: its updates are part of what naming and generation train."""
    return ADAPTER in getattr(model, "peft_config", {})


def lora_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of the updates, by peft's names; no weight is copied."""
    from peft import get_peft_model_state_dict

    found: dict[str, torch.Tensor] = get_peft_model_state_dict(model, adapter_name=ADAPTER)
    return found


def lora_settings(model: nn.Module) -> dict[str, Any]:
    """Return peft's configuration of the updates."""
    settings: dict[str, Any] = cast("Any", model).peft_config[ADAPTER].to_dict()
    return settings | {"target_modules": sorted(settings["target_modules"])}


@torch.no_grad()
def merged(model: M) -> M:
    """Copy a model with its updates added to the weights, so that it needs no peft; without LoRA, the model itself.

    The copy is on the CPU, where it takes no memory of a GPU that trains.

    Source: LoRA, §4.1: W + (alpha / rank) B A.
    """
    if not has_lora(model):
        return model
    from diffusers.utils.peft_utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    copies: dict[int, Any] = {
        id(each): nn.Parameter(each.detach().to("cpu", copy=True), each.requires_grad) for each in model.parameters()
    }
    copies |= {id(each): each.to("cpu", copy=True) for each in model.buffers()}
    whole = copy.deepcopy(model, copies)
    for layer in whole.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
    recurse_remove_peft_layers(whole)
    del whole.peft_config
    return whole
