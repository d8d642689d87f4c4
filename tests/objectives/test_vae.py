"""vae.py: the likelihood and the price of information by hand, decibels, and what a batch must not change."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from palindiff.objectives.vae import VaeObjective, VaeObjectiveConfig, psnr_db, squared_error
from toys.models import toy_vae


def toy_objective(**settings):
    return VaeObjective(toy_vae(), VaeObjectiveConfig(**settings))


def toy_batch(b=3):
    return {"x": torch.rand(b, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1}


def toy_draws(objective, b=3):
    return objective.draw(b, torch.Generator().manual_seed(2))


@torch.no_grad()
def error_by_hand(objective, x, eps):
    """Mean squared error of one image on the scale [0, 1], number by number."""
    posterior = objective.vae.encode(x[None]).latent_dist
    x_hat = objective.vae.decode(posterior.mean + posterior.std * eps).sample[0]
    pairs = zip(x.flatten().tolist(), x_hat.flatten().tolist(), strict=True)
    return math.fsum((((a + 1) / 2) - ((b + 1) / 2)) ** 2 for a, b in pairs) / x.numel()


@torch.no_grad()
def kl_by_hand(objective, x):
    posterior = objective.vae.encode(x).latent_dist
    return kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0)).mean().item()


def test_loss_is_the_mean_log_error_plus_the_weighted_kl():
    objective = toy_objective(kl_weight=0.25, error_floor=0.01)
    batch, draws = toy_batch(), toy_draws(objective)
    losses = objective(batch, draws)
    errors = [error_by_hand(objective, x, eps) for x, eps in zip(batch["x"], draws["eps"], strict=True)]
    kl = kl_by_hand(objective, batch["x"])
    likelihood = sum(math.log(error + 0.01) for error in errors) / 3
    assert losses["loss"].item() == pytest.approx(likelihood + 0.25 * kl, rel=1e-5)  # float32
    assert losses["kl_nats"].item() == pytest.approx(kl, rel=1e-5)
    assert losses["psnr_db"].item() == pytest.approx(sum(-10 * math.log10(e) for e in errors) / 3, rel=1e-5)
    assert kl > 0.01


def test_loss_is_the_likelihood_under_each_image_s_best_variance():
    """Sigma-VAE: with σ² = the error, −log N(x; x_hat, σ²) per number is ½ log error and a constant."""
    objective = toy_objective(kl_weight=0, error_floor=1e-12)
    batch, draws = toy_batch(), toy_draws(objective)
    errors = [error_by_hand(objective, x, eps) for x, eps in zip(batch["x"], draws["eps"], strict=True)]
    nats = [0.5 * math.log(2 * math.pi * error) + error / (2 * error) for error in errors]
    constant = 0.5 * math.log(2 * math.pi) + 0.5
    assert objective(batch, draws)["loss"].item() == pytest.approx(2 * (sum(nats) / 3 - constant), rel=1e-5)


def test_the_floor_keeps_good_images_from_ruling_the_gradient():
    """d log(error + floor): an image whose error is at the floor pulls half as much as it would without one."""
    batch = toy_batch(1)
    draws = toy_draws(toy_objective(), 1)
    error = error_by_hand(toy_objective(), batch["x"][0], draws["eps"][0])
    gradients = []
    for floor in (error, 1e-12):
        objective = toy_objective(kl_weight=0, error_floor=floor)
        objective(batch, draws)["loss"].backward()
        gradients.append(objective.vae.decoder.conv_out.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1] / 2, rtol=1e-4, atol=1e-6)  # float32


def test_only_the_loss_has_a_gradient_and_it_reaches_every_weight():
    objective = toy_objective()
    losses = objective(toy_batch(), toy_draws(objective))
    assert [name for name, loss in losses.items() if loss.requires_grad] == ["loss"]
    losses["loss"].backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in objective.parameters())


def test_a_batch_is_the_mean_of_its_images():
    objective = toy_objective()
    batch, draws = toy_batch(), toy_draws(objective)
    alone = [objective({"x": batch["x"][i : i + 1]}, {"eps": draws["eps"][i : i + 1]}) for i in range(3)]
    for name, together in objective(batch, draws).items():
        expected = sum(losses[name].item() for losses in alone) / 3
        assert together.item() == pytest.approx(expected, rel=1e-5)  # float32 sums in another order


def test_draws_depend_on_the_generator_alone_and_fit_the_latent():
    objective = toy_objective()
    torch.manual_seed(1)
    first = toy_draws(objective)
    torch.manual_seed(2)
    assert torch.equal(first["eps"], toy_draws(objective)["eps"])
    assert first["eps"].shape == (3, 3, 4, 4)


def test_a_tenth_off_everywhere_is_26_decibel():
    """0.1 on the scale [-1, 1] is 0.05 on [0, 1], whose square is 0.0025."""
    error = squared_error(torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.1))
    assert error.tolist() == pytest.approx([0.0025, 0.0025])
    assert psnr_db(error).tolist() == pytest.approx([26.0206, 26.0206], abs=1e-4)


def test_the_mean_of_decibels_is_above_the_decibels_of_the_mean():
    error = torch.tensor([1e-2, 1e-4])  # 20 dB and 40 dB
    assert psnr_db(error).mean().item() == pytest.approx(30)
    assert psnr_db(error.mean()).item() == pytest.approx(-10 * math.log10(0.00505), abs=1e-4)


def test_a_perfect_image_has_a_finite_number():
    assert psnr_db(squared_error(torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8))).item() == pytest.approx(100)


def test_error_of_each_image_ignores_the_others():
    x = toy_batch(4)["x"]
    x_hat = x.flip(0)
    assert torch.equal(squared_error(x, x_hat)[1:2], squared_error(x[1:2], x_hat[1:2]))
