"""checkpoint.py: a saved state resumes bit for bit, a failing save harms nothing, a bad state is reported clearly."""

import json
import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from palindiff.training.loop.checkpoint import TrainState, saved_states
from palindiff.training.loop.distributed import Distributed, trained_weights
from palindiff.training.loop.ema import EMA
from toys.run import cpu_accelerator


def make_state(state_dir, width=3, num_steps=0, seed=0):
    """A state of one linear layer after some AdamW steps on made-up gradients."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.Linear(width, 2)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    state = state_of(module, torch.optim.AdamW(module.parameters(), fused=True), state_dir)
    for _ in range(num_steps):
        for weight in module.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
        state.distributed.optimizer.step()
        state.advance(num_steps)
    return state


def state_of(module, optimizer, state_dir):
    distributed = Distributed(module, module, module, optimizer)
    return TrainState(distributed, EMA(trained_weights(module).values(), 0.9), state_dir)


def all_tensors(state):
    """Weights, average and moments, in a fixed order."""
    weights = list(state.distributed.full_model.parameters())
    moments = [
        state.distributed.optimizer.state[weight][key]
        for weight in weights
        for key in ("exp_avg", "exp_avg_sq", "step")
    ]
    return [*weights, *state.ema.shadow_params, *moments]


@contextmanager
def disk_with_room_for(num_bytes):
    """No file may grow beyond so many bytes: writing more fails as on a full disk, part of the way through."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_saved_state_comes_back_bit_for_bit(tmp_path):
    saved = make_state(tmp_path, num_steps=3)
    saved.save(cpu_accelerator())
    resumed = make_state(tmp_path, seed=1)
    resumed.resume(cpu_accelerator())
    assert (resumed.step, resumed.ema.optimization_step) == (3, 3)
    for there, here in zip(all_tensors(saved), all_tensors(resumed), strict=True):
        assert torch.equal(there, here)


def test_resuming_nothing_changes_nothing(tmp_path):
    state = make_state(tmp_path)
    before = [weight.clone() for weight in state.distributed.full_model.parameters()]
    state.resume(cpu_accelerator())
    assert state.step == 0
    assert all(torch.equal(a, b) for a, b in zip(before, state.distributed.full_model.parameters(), strict=True))


def test_only_trained_weights_are_kept(tmp_path):
    module = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    state = state_of(module, torch.optim.AdamW(module[1].parameters()), tmp_path)
    state.save(cpu_accelerator())
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "step-00000000").iterdir()}
    assert sorted(sizes) == ["ema.safetensors", "optimizer.safetensors", "state.json", "weights.safetensors"]
    with torch.no_grad():
        module[0].weight.fill_(7.0)
    state.resume(cpu_accelerator())
    assert bool((module[0].weight == 7.0).all())


def test_the_two_newest_states_are_kept(tmp_path):
    state = make_state(tmp_path)
    for step in (1, 2, 3, 12):
        state.step = step
        state.save(cpu_accelerator())
    assert [path.name for path in saved_states(tmp_path)] == ["step-00000003", "step-00000012"]


def test_ema_weights_are_the_average_for_a_while(tmp_path):
    state = make_state(tmp_path, num_steps=3)
    before = [weight.clone() for weight in state.distributed.full_model.parameters()]
    averages = [average.detach().clone() for average in state.ema.shadow_params]
    with state.ema_weights():
        assert not state.distributed.full_model.training
        for weight, average in zip(state.distributed.full_model.parameters(), averages, strict=True):
            assert torch.equal(weight, average)
            assert not any(torch.equal(weight, own) for own in before)
    assert state.distributed.full_model.training
    assert all(torch.equal(a, b) for a, b in zip(averages, state.ema.shadow_params, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, state.distributed.full_model.parameters(), strict=True))


def test_a_full_disk_leaves_the_last_good_state(tmp_path):
    state = make_state(tmp_path, width=3000, num_steps=1)
    state.save(cpu_accelerator())
    good = [tensor.clone() for tensor in all_tensors(state)]
    state.step = 2
    with (
        disk_with_room_for(20_000),
        pytest.raises(OSError, match=r"Step 2 could not be saved.*resumes from the state"),
    ):
        state.save(cpu_accelerator())  # the weights take 24,008 bytes
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    resumed = make_state(tmp_path, width=3000, seed=1)
    resumed.resume(cpu_accelerator())
    assert resumed.step == 1
    assert all(torch.equal(a, b) for a, b in zip(good, all_tensors(resumed), strict=True))


def test_what_a_killed_save_left_is_no_state_and_is_removed(tmp_path):
    state = make_state(tmp_path, num_steps=1)
    state.save(cpu_accelerator())
    begun, half_removed = tmp_path / ".step-00000002-x", tmp_path / "step-00000000"
    for folder in (begun, half_removed):
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"")
    resumed = make_state(tmp_path)
    resumed.resume(cpu_accelerator())
    assert resumed.step == 1
    resumed.step = 2
    resumed.save(cpu_accelerator())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty"])
def test_a_damaged_state_is_reported_with_the_remedy(tmp_path, name, damage):
    state = make_state(tmp_path, num_steps=1)
    state.save(cpu_accelerator())
    state.step = 2
    state.save(cpu_accelerator())
    path = tmp_path / "step-00000002" / name
    path.write_bytes(path.read_bytes()[: {"truncated": -3, "empty": 0}[damage]])
    with pytest.raises(ValueError, match=r"step-00000002` cannot be read .*Remove that folder.*from `step-00000001`"):
        make_state(tmp_path).resume(cpu_accelerator())


def test_a_missing_file_of_the_only_state_is_reported(tmp_path):
    make_state(tmp_path).save(cpu_accelerator())
    (tmp_path / "step-00000000" / "ema.safetensors").unlink()
    with pytest.raises(ValueError, match=r"step-00000000` cannot be read .*resumes from the start"):
        make_state(tmp_path).resume(cpu_accelerator())


def test_a_state_of_other_shapes_is_refused(tmp_path):
    """A width of 1 would be stretched over any other width without a word."""
    make_state(tmp_path, width=1).save(cpu_accelerator())
    with pytest.raises(
        ValueError, match=r"this recipe differ in 1 trained tensors, first `weight`.*another output folder"
    ):
        make_state(tmp_path, width=4).resume(cpu_accelerator())


def test_a_state_of_other_names_is_refused(tmp_path):
    make_state(tmp_path).save(cpu_accelerator())
    module = nn.Sequential(nn.Linear(3, 2))
    other = state_of(module, torch.optim.AdamW(module.parameters()), tmp_path)
    with pytest.raises(ValueError, match="differ in 4 trained tensors"):
        other.resume(cpu_accelerator())


def test_the_format_stays_what_saved_runs_have(tmp_path):
    state = make_state(tmp_path, num_steps=1)
    state.save(cpu_accelerator())
    folder = tmp_path / "step-00000001"
    assert json.loads((folder / "state.json").read_text()) == {"step": 1, "ema_step": 1, "fingerprints": {}}
    assert sorted(load_file(folder / "weights.safetensors")) == ["bias", "weight"]
    moments = sorted(load_file(folder / "optimizer.safetensors"))
    assert moments == [f"{name}/{key}" for name in ("bias", "weight") for key in ("exp_avg", "exp_avg_sq", "step")]
