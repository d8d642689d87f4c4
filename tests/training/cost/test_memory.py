"""memory.py: by hand on a few tensors, and against what torch's own profiler sees a real step allocate."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from palindiff.models.vae import VaeConfig, build_vae
from palindiff.training.cost.memory import LiveBytes, count_step
from palindiff.training.cost.weight_free import weight_free_run
from palindiff.training.loop.device import attention_backend
from toys.recipe import toy_recipe

KILOBYTE = 1024


def test_what_lives_is_counted_once_and_while_it_lives():
    with LiveBytes(nn.Identity()) as live:
        first = torch.zeros(256)
        second = first * 2
        view = second[:10]
        assert (live.live, live.peak) == (2 * KILOBYTE, 2 * KILOBYTE)
        del first
        assert (live.live, live.peak) == (KILOBYTE, 2 * KILOBYTE)
        del second
        assert live.live == KILOBYTE  # the view holds all of it
        del view
        assert (live.live, live.peak) == (0, 2 * KILOBYTE)


class Chain(nn.Module):
    """x -> x w -> tanh -> sum, with w of 64 x 64: 16 KB."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64, bias=False)

    def forward(self, batch, draws):
        return {"loss": self.linear(batch["x"]).tanh().sum()}


@pytest.mark.parametrize("num_parts", [1, 2])
def test_a_step_by_hand(num_parts):
    """Batch, before and after tanh, 64 KB each, are the most at once; a first part's gradient stays."""
    with FakeTensorMode():
        live = count_step(Chain(), {"x": torch.zeros(256, 64)}, {}, num_parts, "fp32", "cpu")
    tensor, gradient = 256 * 64 * 4, 64 * 64 * 4
    scalars = 8  # bytes of the loss and its gradient
    assert live.gradients == gradient
    assert live.activations_peak == pytest.approx(3 * tensor, abs=scalars)
    assert live.peak == pytest.approx(3 * tensor + (num_parts - 1) * gradient, abs=scalars)


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(64, 64), nn.LayerNorm(64)

    def forward(self, batch, draws):
        return {"loss": self.norm(self.linear(batch["x"])).mean()}


def test_norms_keep_twice_as_much_on_a_gpu_in_bf16():
    def count(precision, device):
        with FakeTensorMode():
            return count_step(Norm(), {"x": torch.zeros(256, 64)}, {}, 1, precision, device).activations_peak

    assert count("bf16", "gpu") - count("bf16", "cpu") >= 256 * 64 * 2
    assert count("fp32", "gpu") == count("fp32", "cpu")


def allocated_by_profiler(objective, batch, draws, precision):
    """The most bytes that torch's CPU allocator had given out at once during a real step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen, attention_backend("cpu", precision):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = objective(batch, draws)["loss"]
        loss.backward()
    total, most = 0, 0
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


@pytest.fixture(scope="module")
def wide_vae(tmp_path_factory):
    """32 px images <=> latents of 3 x 16 x 16."""
    folder = tmp_path_factory.mktemp("vae")
    config = VaeConfig(widths=(8, 8), latent_channels=3, norm_groups=4, image_size_px=32)
    build_vae(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("fusion", ["one_way", "joint"])
@pytest.mark.parametrize("is_checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_count_is_what_a_real_step_allocates(precision, is_checkpointing, fusion, toy_parts, wide_vae):
    recipe = toy_recipe(
        toy_parts,
        vae=wide_vae,
        query_stream={"fusion": fusion, "num_head_layers": 1, "head_width": 16, "head_dim": 8},
        machine={"precision": precision, "gradient_checkpointing": is_checkpointing},
    )

    def draw(run):
        batch = run.features.read(torch.arange(8), torch.rand(8, 2))
        return batch, run.objective.draw(8, torch.Generator())

    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = weight_free_run(recipe)
        batch, draws = draw(fake)
        counted = count_step(fake.objective.train(), batch, draws, 1, precision, "cpu").peak
    real = weight_free_run(recipe)
    batch, draws = draw(real)
    held = sum(each.untyped_storage().nbytes() for each in (*batch.values(), *draws.values()))
    allocated = held + allocated_by_profiler(real.objective.train(), batch, draws, precision)
    assert counted == pytest.approx(allocated, rel=0.03)  # small scratch of kernels, some 5 MB being counted
    assert counted > 2.5e6
