"""Adapters (LoRA) that a user loads change only generation: they are disabled while an image or a caption is encoded.

Here: disabling and enabling them. Not here: loading, scaling and fusing adapters, which diffusers and peft do.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from diffusers import StableDiffusionPipeline
from torch import nn

from palindiff.models.lora import has_lora, trains_lora

Method = TypeVar("Method", bound=Callable[..., Any])


@contextmanager
def adapters_off(*models: nn.Module) -> Iterator[None]:
    """Compute without adapters, then restore their state, also after an error.

    Disabled adapters stay disabled. Fused adapters are part of the model's weights and take effect, and so do those in
    training. Adapters belong to a model and not to a thread: no other thread may use the model meanwhile.
    """
    adapted = [model for model in models if has_lora(model) and not trains_lora(model)]
    layers = [layer for model in adapted for layer in _enabled_layers(model)]
    trained = [(weight, weight.requires_grad) for layer in layers for weight in layer.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for weight, requires_grad in trained:  # peft changes it when it enables an adapter
            weight.requires_grad_(requires_grad)


def without_adapters(method: Method) -> Method:
    """Disable the adapters of U-Net and text encoder in a pipeline's method, or in each step of a generator."""
    if inspect.isgeneratorfunction(method):

        @functools.wraps(method)
        def generate_steps(self: StableDiffusionPipeline, *arguments: Any, **options: Any) -> Iterator[Any]:
            steps = method(self, *arguments, **options)
            while True:
                with adapters_off(self.unet, self.text_encoder):
                    step = next(steps, None)
                if step is None:
                    return
                yield step  # with adapters enabled: the caller may generate an image between two steps

        return cast("Method", generate_steps)

    @functools.wraps(method)
    def call(self: StableDiffusionPipeline, *arguments: Any, **options: Any) -> Any:
        with adapters_off(self.unet, self.text_encoder):
            return method(self, *arguments, **options)

    return cast("Method", call)


def _enabled_layers(model: nn.Module) -> list[Any]:
    """List the enabled adapter layers, except merged ones, which peft would unmerge."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return [layer for layer in layers if not layer.disable_adapters and not layer.merged]
