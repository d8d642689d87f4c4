"""device.py: what it says of a setting that a machine is slow at."""

import warnings

import pytest
import torch
from accelerate.state import AcceleratorState

from palindiff.training.loop import device
from palindiff.training.loop.device import MachineConfig, make_accelerator


@pytest.mark.parametrize(("has_instructions", "precision"), [(False, "fp32"), (True, "bf16"), (False, "bf16")])
def test_emulated_bf16_is_warned_of(has_instructions, precision, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    for gpu in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(gpu, "is_available", lambda: False)
    monkeypatch.setattr(device, "computes_bf16", lambda: has_instructions)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        make_accelerator(MachineConfig(precision=precision))
    AcceleratorState._reset_state(reset_partial_state=True)
    found = [str(each.message) for each in told if "bf16" in str(each.message)]
    assert len(found) == (precision == "bf16" and not has_instructions)
    assert all("Set `machine.precision=fp32`" in each for each in found)
