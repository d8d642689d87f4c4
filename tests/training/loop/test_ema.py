"""ema.py: diffusers' average at every step, the same time constant at longer intervals, and resuming from a load."""

import math

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from palindiff.training.loop.ema import EMA

DECAY = 0.9


def walk(num_steps, every, seed=0):
    """Weights after each step, which change only after moves are due: what a stride can see of them."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(3, 2, generator=generator)]
    for step in range(1, num_steps + 1):
        weights.append(torch.randn(3, 2, generator=generator) if (step - 1) % every == 0 else weights[-1])
    return weights


def followed(weights, make):
    """The average after each step, as a list."""
    weight = nn.Parameter(weights[0].clone())
    average, seen = make(weight), []
    for step, value in enumerate(weights[1:], start=1):
        weight.data.copy_(value)
        if isinstance(average, EMA):
            average.update([weight], step)
        else:
            average.step([weight])
        seen.append(average.shadow_params[0].detach().clone())
    return seen


def test_a_move_at_every_step_is_diffusers_own_to_the_bit():
    weights = walk(30, every=1)
    ours = followed(weights, lambda weight: EMA([weight], DECAY))
    theirs = followed(weights, lambda weight: EMAModel([weight], decay=DECAY, foreach=True))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("every", [2, 5])
def test_a_longer_stride_keeps_the_time_constant(every):
    """Where weights rest between two moves, n steps at once are n single steps; warm-up (first 80 steps) included."""
    weights = walk(100, every)
    strides = followed(weights, lambda weight: EMA([weight], DECAY, every))
    singles = followed(weights, lambda weight: EMA([weight], DECAY))
    for step in range(every, 101, every):
        torch.testing.assert_close(strides[step - 1], singles[step - 1], rtol=1e-5, atol=1e-6)  # float32, n roundings
        assert torch.equal(strides[step - 1], strides[min(step + every - 2, 99)])  # rests until the next move


def test_the_decay_of_a_stride_is_the_product_by_hand():
    average = EMA([nn.Parameter(torch.zeros(1))], 0.9999, every=3)
    assert average.get_decay(1) == 0  # the first move takes the weights, as diffusers' does
    average.load([torch.zeros(1)], updated_at=5)
    warming_up = [(1 + step) / (10 + step) for step in (5, 6, 7)]  # steps 6, 7 and 8, counted from 0
    assert average.get_decay(8) == pytest.approx(warming_up[0] * warming_up[1] * warming_up[2])
    average.load([torch.zeros(1)], updated_at=10**6)
    assert average.get_decay(10**6 + 3) == pytest.approx(0.9999**3)


@pytest.mark.parametrize("every", [7, 100])
def test_the_first_and_the_last_step_move_the_average_whatever_the_stride(every):
    weights = walk(10, every=1)
    average, weight = EMA([nn.Parameter(weights[0].clone())], DECAY, every), nn.Parameter(weights[0].clone())
    for step, value in enumerate(weights[1:], start=1):
        weight.data.copy_(value)
        average.update([weight], step, is_last=step == 10)
        if step == 1:
            torch.testing.assert_close(average.shadow_params[0], weights[1], rtol=0, atol=1e-6)
    steps = {7: [(1, 7), (7, 10)], 100: [(1, 10)]}[every]
    expected = weights[1]
    for first, last in steps:
        kept = math.prod(min(DECAY, (1 + step) / (10 + step)) for step in range(first, last))
        expected = kept * expected + (1 - kept) * weights[last]
    torch.testing.assert_close(average.shadow_params[0], expected, rtol=1e-5, atol=1e-6)


def test_on_the_cpu_the_average_is_the_same():
    weights = walk(10, every=1)
    on_cpu = followed(weights, lambda weight: EMA([weight], DECAY, device="cpu"))
    assert all(torch.equal(a, b) for a, b in zip(on_cpu, followed(weights, lambda w: EMA([w], DECAY)), strict=True))


def test_a_loaded_average_goes_on_as_if_never_stopped():
    weights = walk(9, every=1)
    whole = followed(weights, lambda weight: EMA([weight], DECAY, every=2))

    def loaded(weight):
        average = EMA([weight], DECAY, every=2)
        average.load([whole[4]], updated_at=4)
        return average

    average = loaded(nn.Parameter(weights[5].clone()))
    for step in range(6, 10):
        average.update([nn.Parameter(weights[step].clone())], step)
        assert torch.equal(average.shadow_params[0], whole[step - 1])


def test_weights_are_not_held_by_their_average():
    weight = nn.Parameter(torch.ones(2))
    average = EMA([weight], DECAY)
    weight.data.fill_(5.0)
    assert torch.equal(average.shadow_params[0], torch.ones(2))
    average.load([weight.detach()], updated_at=1)
    weight.data.fill_(7.0)
    assert torch.equal(average.shadow_params[0], torch.full((2,), 5.0))


@pytest.mark.parametrize("device", ["same", "cpu"])
def test_averages_and_weights_change_places_and_back_to_the_bit(device):
    weights = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))]
    average = EMA(weights, DECAY, device=device)
    average.load([torch.randn_like(weight) for weight in weights], updated_at=1)
    before = [each.detach().clone() for each in (*weights, *average.shadow_params)]
    average.exchange(weights)
    assert all(torch.equal(a, b) for a, b in zip([*average.shadow_params, *weights], before, strict=True))
    average.exchange(weights)
    assert all(torch.equal(a, b) for a, b in zip([*weights, *average.shadow_params], before, strict=True))
