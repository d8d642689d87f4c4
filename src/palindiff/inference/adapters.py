"""Adapters (LoRA) change generation alone: while an image or caption is read, they are switched off.

Here: switching off and back on. Not here: loading adapters, their scales, fusing them; that is diffusers and peft.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from diffusers import StableDiffusionPipeline
from torch import nn

Method = TypeVar("Method", bound=Callable[..., Any])


@contextmanager
def adapters_off(*models: nn.Module) -> Iterator[None]:
    """Compute with the weights below adapters, and leave the adapters behind as they were found, errors or not.

    Adapters that were off stay off. Fused weights are the model's own, and are used. Adapters belong to a model, not
    to a thread: nothing else may compute with it meanwhile.
    """
    layers = [layer for model in models if has_adapters(model) for layer in _switched_on(model)]
    trained = [(weight, weight.requires_grad) for layer in layers for weight in layer.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for weight, requires_grad in trained:  # which peft sets anew whenever it switches
            weight.requires_grad_(requires_grad)


def has_adapters(model: nn.Module) -> bool:
    """Progress whether adapters were loaded into a model: then peft has left their configuration there."""
    return hasattr(model, "peft_config")


def without_adapters(method: Method) -> Method:
    """Make a pipeline's method compute without adapters of U-Net and text encoder; a generator, each of its steps."""
    if inspect.isgeneratorfunction(method):

        @functools.wraps(method)
        def _step_by_step(self: StableDiffusionPipeline, *arguments: Any, **options: Any) -> Iterator[Any]:
            steps = method(self, *arguments, **options)
            while True:
                with adapters_off(self.unet, self.text_encoder):
                    try:
                        step = next(steps)
                    except StopIteration:
                        return
                yield step  # the adapters are back: the caller may generate between two steps

        return cast("Method", _step_by_step)

    @functools.wraps(method)
    def _whole(self: StableDiffusionPipeline, *arguments: Any, **options: Any) -> Any:
        with adapters_off(self.unet, self.text_encoder):
            return method(self, *arguments, **options)

    return cast("Method", _whole)


def _switched_on(model: nn.Module) -> list[Any]:
    """The adapter layers that take part now and are not merged, which peft would undo."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return [layer for layer in layers if not layer.disable_adapters and not layer.merged]
