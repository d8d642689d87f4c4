"""logit_scale.py: the bound of κ, where it is used and on the weight."""

import math

import pytest
import torch

from palindiff.models.logit_scale import MAX_LOGIT_SCALE, bounded, clamp_log_logit_scale_


def test_below_its_bound_it_stays():
    assert bounded(torch.tensor(math.log(20.0), dtype=torch.float64)).exp().item() == pytest.approx(20)


def test_beyond_its_bound_a_weight_has_no_gradient_until_it_is_clamped():
    weight = torch.nn.Parameter(torch.tensor(math.log(MAX_LOGIT_SCALE) + 1))
    bounded(weight).exp().backward()
    assert weight.grad.item() == 0
    clamp_log_logit_scale_(weight)
    assert weight.item() == pytest.approx(math.log(MAX_LOGIT_SCALE))
    bounded(weight).exp().backward()
    assert weight.grad.item() == pytest.approx(MAX_LOGIT_SCALE, rel=1e-5)


def test_it_is_float32_whatever_the_weight_is():
    assert bounded(torch.tensor(3.0, dtype=torch.bfloat16)).dtype == torch.float32
