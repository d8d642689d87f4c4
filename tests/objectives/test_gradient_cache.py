"""gradient_cache.py: values and gradients are those of the whole batch, and one chunk is in memory at a time."""

import pytest
import torch
from torch import nn

from palindiff.objectives.alignment import alignment_loss
from palindiff.objectives.gradient_cache import in_chunks


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 4))


def loss_and_gradients(network, rows, num_rows):
    calls = []

    def encode(x):
        calls.append((len(x), torch.is_grad_enabled()))
        return (nn.functional.normalize(network(x), dim=1),)

    (v,) = in_chunks(encode, [rows], num_rows)
    e = nn.functional.normalize(torch.linspace(-1, 1, v.numel()).view_as(v).sin(), dim=1)
    loss = alignment_loss(v, e, torch.tensor(5.0), torch.eye(len(v), dtype=torch.bool))
    return loss, torch.autograd.grad(loss, list(network.parameters())), calls


@pytest.mark.parametrize("num_rows", [1, 3, 4, 7])
def test_loss_and_gradients_are_those_of_the_whole_batch(num_rows):
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    whole, of_whole, _ = loss_and_gradients(encoder(), rows, 0)
    loss, gradients, calls = loss_and_gradients(encoder(), rows, num_rows)
    torch.testing.assert_close(loss, whole, atol=1e-6, rtol=1e-6)
    for gradient, expected in zip(gradients, of_whole, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)  # sums in another order
    assert max(size for size, _ in calls) <= num_rows


def test_each_chunk_is_encoded_twice_and_a_small_batch_once():
    rows = torch.randn(6, 5)
    assert len(loss_and_gradients(encoder(), rows, 2)[2]) == 2 * 3
    assert len(loss_and_gradients(encoder(), rows, 6)[2]) == 1


@torch.no_grad()
def test_without_gradients_each_chunk_is_encoded_once():
    """Evaluation has the memory of a chunk too."""
    sizes, network, rows = [], encoder(), torch.randn(7, 5)

    def encode(x):
        sizes.append(len(x))
        return (network(x),)

    (found,) = in_chunks(encode, [rows], 3)
    assert sizes == [3, 3, 1]
    torch.testing.assert_close(found, network(rows))


def test_random_numbers_of_a_network_are_drawn_again_as_they_were():
    network = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    rows = torch.randn(6, 5)
    torch.manual_seed(2)
    kept = in_chunks(lambda x: (network(x),), [rows], 2)[0]
    masks = []
    network[1].register_forward_hook(lambda module, inputs, output: masks.append(output != 0))
    kept.sum().backward()
    torch.manual_seed(2)
    once = torch.cat([network(part) for part in rows.split(2)])
    torch.testing.assert_close(kept, once)
    again = masks[:3][::-1]  # the backward pass takes the last chunk first
    assert all(torch.equal(a, b) for a, b in zip(again, masks[3:], strict=True))


def test_several_tensors_stay_together():
    a, b = torch.arange(5.0).requires_grad_(), torch.arange(5, 10)
    doubled, summed = in_chunks(lambda x, y: (2 * x, x + y), [a, b], 2)
    assert doubled.tolist() == (2 * a).tolist()
    assert summed.tolist() == (a + b).tolist()


def test_gradients_of_chunks_are_summed_in_float32_under_bf16():
    """A weight's bf16 copy is made for each chunk: the gradient of one copy for all would be summed in bf16."""
    rows, network = torch.randn(64, 5, generator=torch.Generator().manual_seed(3)), nn.Linear(5, 1, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        network(rows)  # the copy that autocast keeps must not be used either
        in_chunks(lambda x: (network(x),), [rows], 1)[0].float().sum().backward()
        assert torch.is_autocast_cache_enabled()
    exact = rows.bfloat16().double().sum(0, keepdim=True)  # each row's own gradient is its bf16 numbers
    torch.testing.assert_close(network.weight.grad.double(), exact, atol=1e-6, rtol=1e-6)


def test_the_autocast_cache_is_as_before_after_an_error():
    def encode(x):
        raise RuntimeError("an error of the network")

    with pytest.raises(RuntimeError, match="an error of the network"):
        in_chunks(encode, [torch.zeros(4, 1)], 2)
    assert torch.is_autocast_cache_enabled()
