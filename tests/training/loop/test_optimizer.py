"""optimizer.py: rates that a group keeps, and 8-bit moments: how large, how near, saved, resumed, refused."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from palindiff.models.vae import VaeConfig
from palindiff.training.loop import optimizer as optimizer_module
from palindiff.training.loop.checkpoint import saved_states
from palindiff.training.loop.loop import train
from palindiff.training.loop.optimizer import OptimizerConfig, check_optimizer, make_optimizer
from toys.recipe import toy_recipe, train_toy_recipe
from toys.run import cpu_accelerator, make_run, one_thread, train_toy

EIGHT_BIT = OptimizerConfig(kind="adamw_8bit", new_learning_rate=1e-2, warmup_steps=2)
WIDE = VaeConfig(widths=(32, 32), latent_channels=2, norm_groups=4, image_size_px=8)  # convolutions of 9,216 weights


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes", reason="needs bitsandbytes, a part of the extras `memory` and `dev`")


def after_steps(kind, num_steps, rate=1e-3):
    """A linear layer of 65,536 weights after some steps on made-up gradients, and its optimizer."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(256, 256, generator=generator))
    optimizer = make_optimizer(OptimizerConfig(kind=kind), [{"params": [weight], "lr": rate}])
    for _ in range(num_steps):
        weight.grad = torch.randn(256, 256, generator=generator)
        optimizer.step()
    return weight, optimizer


def state_bytes(optimizer, weight):
    held = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def newest(run_dir):
    return {path.name: path.read_bytes() for path in sorted(saved_states(run_dir / "state")[-1].iterdir())}


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_a_group_keeps_its_full_rate(kind, request):
    if kind == "adamw_8bit":
        request.getfixturevalue("bitsandbytes")
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in (1e-3, 2e-3)]
    optimizer = make_optimizer(OptimizerConfig(kind=kind, weight_decay=0.3, betas=(0.8, 0.95)), groups)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [1e-3, 2e-3]
    assert all(
        group["weight_decay"] == 0.3 and tuple(group["betas"]) == (0.8, 0.95) for group in optimizer.param_groups
    )
    assert "initial_lr" not in groups[0]


def test_eight_bit_moments_take_about_a_quarter_and_move_weights_as_adamw_does(bitsandbytes):
    start = after_steps("adamw", 0)[0].detach()
    exact, adamw = after_steps("adamw", 20)
    near, eight_bit = after_steps("adamw_8bit", 20)
    assert 0.25 < state_bytes(eight_bit, near) / state_bytes(adamw, exact) < 0.27  # absmax of each block, two tables
    moved, difference = (exact - start).norm(), (exact - near).norm()
    assert 0 < difference < 0.1 * moved  # rounding to 8 bits, over 20 steps


def test_eight_bit_moments_are_saved_and_resumed_to_the_bit(bitsandbytes, tmp_path):
    settings = {"vae": WIDE, "optimizer": EIGHT_BIT}
    whole, _ = train_toy(tmp_path / "whole", **settings)
    part = make_run(tmp_path / "parts", evaluate_every=1, **settings)

    def stop_at_3(step):
        if step == 3:
            raise InterruptedError
        return {}

    part.evaluate = stop_at_3  # step 2 is saved, step 3 is lost
    with pytest.raises(InterruptedError):
        train(part, cpu_accelerator())
    resumed, state = train_toy(tmp_path / "parts", **settings)
    assert newest(tmp_path / "whole") == newest(tmp_path / "parts")
    pairs = zip(whole.objective.parameters(), resumed.objective.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    kept = load_file(saved_states(tmp_path / "whole" / "state")[-1] / "optimizer.safetensors")
    dtypes = {value.dtype for key, value in kept.items() if key.endswith("/state1")}
    assert dtypes == {torch.uint8, torch.float32}  # small tensors stay in 32 bits
    assert {type(each["step"]) for each in state.distributed.optimizer.state.values()} == {int}


def test_without_its_package_a_run_stops_before_any_feature_is_computed(toy_parts, tmp_path, monkeypatch):
    monkeypatch.setattr(optimizer_module, "EIGHT_BIT_PACKAGE", "a_package_that_nobody_has")
    cache = tmp_path / "cache"
    recipe = toy_recipe(toy_parts, optimizer={"kind": "adamw_8bit"}, machine={"cache_dir": str(cache)})
    with pytest.raises(ModuleNotFoundError, match=r"`optimizer\.kind` is 'adamw_8bit'.*pip install -e '\.\[memory\]'"):
        train_toy_recipe(recipe, tmp_path / "run")
    assert not cache.exists()


def test_eight_bit_moments_are_not_sharded():
    with pytest.raises(ValueError, match=r"'adamw_8bit' and the weights are sharded.*`machine\.sharding: none`"):
        check_optimizer(EIGHT_BIT, is_sharded=True)
    check_optimizer(OptimizerConfig(), is_sharded=True)
