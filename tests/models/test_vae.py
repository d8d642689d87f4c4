"""vae.py: sizes, latents of unit variance at no cost, and a stock pipeline that generates through it."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from palindiff.models.vae import VaeConfig, build_vae, normalize_latents
from palindiff.pretrained.text_encoders import load_text_encoder
from toys.text_encoders import stock_pipeline, write_sentence_encoder

TOY = VaeConfig(widths=(8, 8), latent_channels=4, norm_groups=4, image_size_px=16)


def toy_vae():
    """Random weights whose latents are far from unit variance, each channel in its own way."""
    torch.manual_seed(0)
    vae = build_vae(TOY).eval()
    with torch.no_grad():
        vae.quant_conv.weight[:4] *= torch.tensor([0.3, 1.0, 4.0, 10.0])[:, None, None, None]
        vae.quant_conv.bias[:4] += torch.tensor([-3.0, 0.0, 2.0, 7.0])
        vae.quant_conv.bias[4:] += torch.tensor([-2.0, -1.0, 1.0, 3.0])  # log-variances
    return vae


def toy_x(n=16, size_px=16):
    return torch.rand(n, 3, size_px, size_px, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def encode(vae, x):
    posterior = vae.encode(x).latent_dist
    return posterior.mean, posterior.std


@torch.no_grad()
def decode(vae, z):
    return vae.decode(z).sample


def draw_moments(vae, x):
    """Mean and deviation of a draw of the posterior, by the law of total variance."""
    mean, std = encode(vae, x)
    by_channel = mean.transpose(0, 1).flatten(1), std.transpose(0, 1).flatten(1)  # (n, ch, h, w) -> (ch, n*h*w)
    return by_channel[0].mean(dim=1), (by_channel[0].var(dim=1) + by_channel[1].square().mean(dim=1)).sqrt()


@pytest.mark.parametrize(
    ("config", "size_px", "latent_size"), [(VaeConfig(), 64, (16, 8, 8)), (TOY, 16, (4, 8, 8)), (TOY, 24, (4, 12, 12))]
)
def test_each_width_after_the_first_halves_the_side(config, size_px, latent_size):
    vae = build_vae(config).eval()
    x = toy_x(2, size_px)
    mean, std = encode(vae, x)
    assert mean.shape == std.shape == (2, *latent_size)
    assert decode(vae, mean).shape == x.shape
    assert vae.config.scaling_factor == 1


def test_normalized_latents_have_mean_0_and_deviation_1_in_each_channel():
    vae, x = toy_vae(), toy_x()
    mean, deviation = draw_moments(vae, x)
    assert deviation.max() / deviation.min() > 3  # or there were nothing to do
    normalize_latents(vae, mean, deviation)
    mean, deviation = draw_moments(vae, x)
    torch.testing.assert_close(mean, torch.zeros(4), rtol=0, atol=1e-5)  # float32, some hundred numbers a channel
    torch.testing.assert_close(deviation, torch.ones(4), rtol=0, atol=1e-5)


def test_normalizing_scales_the_posterior_s_deviation_with_its_mean():
    vae, x = toy_vae(), toy_x()
    mean, deviation = draw_moments(vae, x)
    before = encode(vae, x)
    normalize_latents(vae, mean, deviation)
    after = encode(vae, x)
    mean, deviation = mean[:, None, None], deviation[:, None, None]
    torch.testing.assert_close(after[0], (before[0] - mean) / deviation, rtol=1e-4, atol=1e-5)  # float32 convolutions
    torch.testing.assert_close(after[1], before[1] / deviation, rtol=1e-4, atol=0)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_normalizing_changes_no_reconstruction(noise):
    """Of the mean and of a draw: 1e-4 on images in [-1, 1] is what float32 loses around latents as large as 10."""
    vae, x = toy_vae(), toy_x()
    eps = noise * torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    mean, std = encode(vae, x)
    before = decode(vae, mean + std * eps)
    normalize_latents(vae, *draw_moments(vae, x))
    mean, std = encode(vae, x)
    torch.testing.assert_close(decode(vae, mean + std * eps), before, rtol=0, atol=1e-4)
    assert before.std() > 0.01


def test_a_stock_pipeline_generates_through_it(tmp_path):
    encoder = load_text_encoder(str(write_sentence_encoder(tmp_path / "encoder")))
    parts = stock_pipeline(encoder).components | {"vae": toy_vae()}
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    assert pipeline.vae_scale_factor == 2
    assert pipeline("a red apple", num_inference_steps=1).images[0].size == (16, 16)
