"""torch-fidelity without torchvision.

torch-fidelity imports torchvision at its top, for data sets that palindiff never opens. So it is imported with empty
modules in torchvision's place, which are removed at once: nothing else sees them.
Not here: what is computed with it (`distances.py`, `inception.py`).
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

PACKAGE = "torch_fidelity"
STUBS = {
    "torchvision": ("datasets", "transforms"), "torchvision.datasets": ("CIFAR10", "CIFAR100", "STL10"),
    "torchvision.transforms": ("functional",), "torchvision.transforms.functional": (),
}  # fmt: skip
"""Modules that torch-fidelity imports, and the names that it takes of them while it is imported."""


@cache
def load_torch_fidelity() -> ModuleType:
    """Import torch-fidelity; where torchvision is not imported already, without it.

    Raises: ModuleNotFoundError if torch-fidelity is not installed.
    """
    try:
        with _stand_ins_for_torchvision():
            return importlib.import_module(PACKAGE)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"A package is missing for distances between image sets ({error}). Expected torch-fidelity. "
            "Install it with `pip install --no-deps torch-fidelity`, since its dependency torchvision is not needed."
        ) from error


def fidelity_module(name: str) -> ModuleType:
    """Import a module of torch-fidelity, such as `metric_fid`.

    Raises: ModuleNotFoundError if it is not installed, or has no such module.
    """
    load_torch_fidelity()
    return importlib.import_module(f"{PACKAGE}.{name}")


@contextmanager
def _stand_ins_for_torchvision() -> Iterator[None]:
    """Put empty modules in torchvision's place for the duration of the block."""
    if "torchvision" in sys.modules:
        yield
        return
    stubs = {name: ModuleType(name) for name in STUBS}
    for name, module in stubs.items():
        module.__path__ = []  # a package
        for attribute in STUBS[name]:
            setattr(module, attribute, stubs.get(f"{name}.{attribute}", type(attribute, (), {})))
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in stubs:
            sys.modules.pop(name, None)
