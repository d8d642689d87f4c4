"""consistency.py by hand-computed cases: both directions, stopped gradients, agreement, order of images."""

import math

import pytest
import torch

from palindiff.objectives.consistency import _divergence, _similarities, projected_consistency, relational_consistency

ONE = torch.ones


def leaf(*rows):
    return torch.tensor(rows, dtype=torch.float32, requires_grad=True)


def test_projected_is_the_cosine_distance_of_each_image_by_hand():
    v, d = leaf([1.0, 0.0], [0.0, 2.0]), leaf([0.0, 3.0], [1.0, 1.0])
    loss = projected_consistency(v, d, torch.tensor([1.0, 0.5]))
    assert float(loss.detach()) == pytest.approx((1.0 * 1 + 0.5 * (1 - 1 / math.sqrt(2))) / 2)


def test_projected_gives_each_side_half_the_gradient_of_a_plain_distance():
    v, d = leaf([1.0, 0.5], [0.3, 2.0], [-1.0, 0.2]), leaf([0.0, 3.0], [1.0, 1.0], [0.4, 0.1])
    plain = (1 - torch.nn.functional.cosine_similarity(v, d)).mean()
    of_plain = torch.autograd.grad(plain, [v, d])
    of_stopped = torch.autograd.grad(projected_consistency(v, d, ONE(3)), [v, d])
    for plain_gradient, stopped in zip(of_plain, of_stopped, strict=True):
        torch.testing.assert_close(stopped, plain_gradient / 2)


def softmax_without_self(features, row, temperature):
    unit = [[x / math.hypot(*each) for x in each] for each in features]
    scores = {
        other: math.exp(sum(a * b for a, b in zip(unit[row], unit[other], strict=True)) / temperature)
        for other in range(len(unit)) if other != row
    }  # fmt: skip
    return {other: score / sum(scores.values()) for other, score in scores.items()}


def test_relational_is_the_divergence_of_similarities_by_hand():
    v, d = [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], [[0.0, 1.0, 0.0], [1.0, 0.0, 0.5], [3.0, 1.0, 0.0]]
    weights, tau, expected = [1.0, 0.25, 0.5], 0.4, 0.0
    for row, weight in enumerate(weights):
        p, q = softmax_without_self(v, row, tau), softmax_without_self(d, row, tau)
        both = sum(p[i] * math.log(p[i] / q[i]) + q[i] * math.log(q[i] / p[i]) for i in p)
        expected += weight * both / 2 / len(weights)
    loss = relational_consistency(leaf(*v), leaf(*d), torch.tensor(weights), tau)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("b", [1, 2])
def test_relational_is_zero_of_images_without_two_others(b):
    assert relational_consistency(torch.randn(b, 4), torch.randn(b, 3), ONE(b), 0.5) == 0


def test_relational_stops_the_gradient_of_the_side_that_is_followed():
    """With q frozen, the gradient of KL(p ‖ q) + KL(q ‖ p) at p has the term of KL(sg q ‖ p) alone."""
    v, d = leaf([1.0, 0.2], [0.1, 2.0], [1.0, 1.0]), leaf([0.3, 1.0], [1.0, 0.1], [2.0, 1.0])
    (of_v,) = torch.autograd.grad(relational_consistency(v, d, ONE(3), 0.5), [v], retain_graph=True)
    p, q = (_similarities(torch.nn.functional.normalize(each, dim=1), 0.5) for each in (v, d))
    (expected,) = torch.autograd.grad(_divergence(q.detach(), p).mean() / 2, [v])
    torch.testing.assert_close(of_v, expected)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_both_are_zero_with_zero_gradient_where_features_agree(scale):
    v = leaf([1.0, 0.5, 0.1], [0.3, 2.0, 0.4], [-1.0, 0.2, 0.9])
    d = (scale * v).detach().requires_grad_()
    for loss in (projected_consistency(v, d, ONE(3)), relational_consistency(v, d, ONE(3), 0.1)):
        assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
        for gradient in torch.autograd.grad(loss, [v, d]):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)


def test_both_ignore_the_order_of_images():
    generator = torch.Generator().manual_seed(0)
    v, d = (torch.randn(5, 4, generator=generator) for _ in range(2))
    weight = torch.rand(5, generator=generator)
    order = torch.tensor([3, 0, 4, 2, 1])
    for loss in (projected_consistency, lambda *given: relational_consistency(*given, 0.2)):
        torch.testing.assert_close(loss(v, d, weight), loss(v[order], d[order], weight[order]))


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (lambda: projected_consistency(ONE(3, 2), ONE(3, 4), ONE(3)), "through a linear map to the width of CLIP's"),
        (lambda: projected_consistency(ONE(3, 2), ONE(2, 2), ONE(3)), r"Expected \(b, k\), \(b, m\) and \(b,\)"),
        (lambda: relational_consistency(ONE(3, 2, 1, 1), ONE(3, 2), ONE(3), 1.0), "Pool the U-Net's features"),
    ],
)
def test_features_that_do_not_fit_are_refused(loss, sentence):
    with pytest.raises(ValueError, match=sentence):
        loss()
