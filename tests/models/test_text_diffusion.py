"""text_diffusion.py against Algorithm 3 and eq. 5 by hand, and the leak formula on Stable Diffusion's schedule."""

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

from palindiff.models.text_diffusion import (
    QuerySchedulerConfig,
    denoise,
    draw_steps,
    first_noise,
    guided,
    input_scale,
    leak,
    noisy_query,
    text_diffusion_scheduler,
)

ZERO_SNR = QuerySchedulerConfig(rescale_betas_zero_snr=True)


def alphas_by_hand():
    betas = [(math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * t / 999) ** 2 for t in range(1000)]
    alphas, product = [], 1.0
    for beta in betas:
        product *= 1 - beta
        alphas.append(product)
    return alphas


def zero_snr_alphas_by_hand():
    """Algorithm 1 of arXiv 2305.08891: shift the roots so that the last is 0, scale them so that the first stays."""
    roots = [math.sqrt(alpha) for alpha in alphas_by_hand()]
    return [((root - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2 for root in roots]


def toy_predictor(seed):
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed))
    return lambda e_t, t_e: F.normalize(e_t @ weight + t_e[:, None] / 1000, dim=-1)


def slow_predictor(seed):
    """A clean query that changes with the noisy one, smoothly."""
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(6, 6, generator=generator), torch.randn(6, generator=generator)
    return lambda e_t, t_e: F.normalize(bias + torch.tanh(e_t) @ weight / 2, dim=-1)


def algorithm_3_by_hand(predict, predict_uncond, e_t, steps, w, gamma, alphas):
    """e_T ~ N(0, I); predict with guidance, one DDIM step whose clean sample is gamma * e_0_hat; normalise last."""
    times = [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
    for i, t in enumerate(times):
        t_e = torch.full((len(e_t),), t)
        e_0_hat = (1 + w) * predict(e_t, t_e) - w * predict_uncond(e_t, t_e)
        alpha = alphas[t]
        alpha_next = alphas[times[i + 1]] if i + 1 < steps else 1.0
        clean = gamma * e_0_hat
        noise = (e_t - math.sqrt(alpha) * clean) / math.sqrt(1 - alpha)
        e_t = math.sqrt(alpha_next) * clean + math.sqrt(1 - alpha_next) * noise
    return e_t / e_t.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize(("steps", "w", "gamma"), [(8, 3.0, 0.01), (8, 0.0, 1.0), (1, 3.0, 0.1), (20, 1.0, 1.0)])
def test_denoise_equals_algorithm_3_by_hand(steps, w, gamma):
    e_t = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    predict, predict_uncond = toy_predictor(1), toy_predictor(2)
    *_, last = denoise(guided(predict, predict_uncond, 1 + w), text_diffusion_scheduler(), e_t, steps, gamma)
    by_hand = algorithm_3_by_hand(predict, predict_uncond, e_t, steps, w, gamma, alphas_by_hand())
    assert (last.e_0_hat - by_hand).abs().max() <= 2e-5  # the schedule is float32 there and float64 here


@pytest.mark.parametrize(("steps", "w", "gamma"), [(8, 3.0, 0.3), (1, 0.0, 1.0), (20, 1.0, 1.0)])
def test_denoise_from_zero_terminal_snr_equals_algorithm_3_by_hand(steps, w, gamma):
    """The first step, at T - 1, divides by √(1-ᾱ) = 1 and never by √ᾱ = 0."""
    alphas, scheduler = zero_snr_alphas_by_hand(), text_diffusion_scheduler(config=ZERO_SNR)
    assert alphas[-1] == float(scheduler.alphas_cumprod[-1]) == 0
    e_t = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    predict, predict_uncond = slow_predictor(1), slow_predictor(2)
    first, *_ = steps_made = list(denoise(guided(predict, predict_uncond, 1 + w), scheduler, e_t, steps, gamma))
    assert (first.t_e, torch.equal(first.e_t, e_t)) == (999, True)
    by_hand = algorithm_3_by_hand(predict, predict_uncond, e_t, steps, w, gamma, alphas)
    assert (steps_made[-1].e_0_hat - by_hand).abs().max() <= 2e-5  # the schedule is float32 there, float64 here


def test_a_query_at_the_last_step_of_zero_terminal_snr_is_its_noise():
    scheduler, last = text_diffusion_scheduler(config=ZERO_SNR), torch.full((4,), 999)
    generator = torch.Generator().manual_seed(0)
    e_0, eps_e = (torch.randn(4, 6, generator=generator) for _ in range(2))
    assert torch.equal(noisy_query(scheduler, e_0, eps_e, last, 1.0), eps_e)
    assert not torch.equal(noisy_query(text_diffusion_scheduler(), e_0, eps_e, last, 1.0), eps_e)
    assert leak(scheduler, 1.0)[-1] == 0
    assert leak(scheduler, 1.0)[:-1].min() > 0


def test_a_zero_terminal_snr_is_saved_and_loaded(tmp_path):
    scheduler = text_diffusion_scheduler(config=ZERO_SNR)
    scheduler.save_pretrained(tmp_path)
    loaded = type(scheduler).from_pretrained(tmp_path)
    assert torch.equal(loaded.alphas_cumprod, scheduler.alphas_cumprod)


def test_steps_are_drawn_alike_or_towards_noise_as_the_formula_says():
    """P(t_e >= t) = (1 - t/T)^(1/k)."""
    assert torch.equal(
        draw_steps(64, 1000, 1.0, torch.Generator().manual_seed(1)),
        torch.randint(1000, (64,), generator=torch.Generator().manual_seed(1)),
    )
    for power in (1.0, 1.5, 4.0):
        t_e = draw_steps(40_000, 1000, power, torch.Generator().manual_seed(0))
        assert (t_e.dtype, t_e.min() >= 0, t_e.max() <= 999) == (torch.int64, True, True)
        for t in (100, 500, 900):
            share = (1 - t / 1000) ** (1 / power)
            assert (t_e >= t).float().mean().item() == pytest.approx(share, abs=0.0125)  # 5 standard errors
    uniform = torch.rand(64, generator=torch.Generator().manual_seed(2)).tolist()
    by_hand = [min(math.floor(1000 * (1 - u**4)), 999) for u in uniform]
    assert draw_steps(64, 1000, 4.0, torch.Generator().manual_seed(2)).tolist() == by_hand


@pytest.mark.parametrize("config", [QuerySchedulerConfig(), ZERO_SNR])
@pytest.mark.parametrize("signal_scale", [0.3, 0.3 * math.sqrt(64)])
def test_scaled_queries_are_equally_long_at_every_step(config, signal_scale):
    """The mean square of a dimension is 1 over 2,000 queries of 64 dimensions, known to √(2/128,000) = 0.4 %."""
    scheduler, generator, n = text_diffusion_scheduler(config=config), torch.Generator().manual_seed(0), 2000
    e_0, eps_e = (torch.randn(n, 64, generator=generator) for _ in range(2))
    for t in (0, 50, 500, 999):
        t_e = torch.full((n,), t)
        e_t = noisy_query(scheduler, F.normalize(e_0, dim=-1), eps_e, t_e, signal_scale)
        c_in = input_scale(scheduler, t_e, signal_scale, 64)
        assert (c_in * e_t).square().mean().item() == pytest.approx(1, abs=0.02)
        alpha = float(scheduler.alphas_cumprod[t])
        assert c_in.shape == (n, 1)
        assert c_in[0].item() == pytest.approx(1 / math.sqrt(alpha * signal_scale**2 / 64 + 1 - alpha), rel=1e-4)


def test_the_scale_is_edm_s_c_in_of_its_own_variables():
    """c_in = 1 / √(σ_data² + σ²) times s e_0 + σ ε, with σ² = (1-ᾱ)/ᾱ and σ_data² = s²/d, is c_in here times e_t."""
    scheduler, generator = text_diffusion_scheduler(), torch.Generator().manual_seed(0)
    e_0, eps_e = F.normalize(torch.randn(1, 16, generator=generator), dim=-1), torch.randn(1, 16, generator=generator)
    for t, s in ((10, 1.0), (400, 4.0), (900, 0.5)):
        alpha = float(scheduler.alphas_cumprod[t])
        sigma = math.sqrt((1 - alpha) / alpha)
        edm = (s * e_0 + sigma * eps_e) / math.sqrt(s**2 / 16 + sigma**2)
        t_e = torch.tensor([t])
        ours = input_scale(scheduler, t_e, s, 16) * noisy_query(scheduler, e_0, eps_e, t_e, s)
        assert (ours - edm).abs().max() <= 1e-4  # 1 - ᾱ is float32 there and float64 here


def test_denoising_starts_at_the_last_step_and_changes_no_scheduler():
    scheduler = text_diffusion_scheduler()
    before = scheduler.timesteps.clone()
    one_step = next(denoise(toy_predictor(1), scheduler, torch.randn(1, 6), 1, 1.0))
    assert one_step.t_e == 999
    assert torch.equal(scheduler.timesteps, before)


def test_denoising_with_leading_spacing_would_start_at_almost_no_noise():
    """Design §3 row 12: with "leading" spacing a single step would have t = 0 or 1 and pure noise."""
    scheduler = text_diffusion_scheduler()
    scheduler.register_to_config(timestep_spacing="leading")
    one_step = next(denoise(toy_predictor(1), scheduler, torch.randn(1, 6), 1, 1.0))
    assert one_step.t_e <= 1


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_denoise_works_with_another_scheduler_and_gives_the_same_answer(kind):
    """Three solvers of one equation agree once their steps are small."""
    ddim = text_diffusion_scheduler()
    other = kind.from_config(ddim.config)
    e_t = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    answers = []
    for scheduler in (ddim, other):
        *_, last = denoise(guided(slow_predictor(1), slow_predictor(2), 2.0), scheduler, e_t, 200, 1.0)
        answers.append(last.e_0_hat)
    assert F.cosine_similarity(*answers).min() > 0.995
    assert F.cosine_similarity(answers[0], F.normalize(slow_predictor(1)(e_t, torch.full((3,), 999)))).min() < 0.98


def test_noisy_query_equals_eq_5_by_hand():
    generator = torch.Generator().manual_seed(0)
    e_0, eps_e, t_e = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator), [0, 10, 500, 999]
    alphas = alphas_by_hand()
    for gamma in (1.0, 0.1):
        e_t = noisy_query(text_diffusion_scheduler(), e_0, eps_e, torch.tensor(t_e), gamma)
        rows = [gamma * math.sqrt(alphas[t]) * e_0[i] + math.sqrt(1 - alphas[t]) * eps_e[i] for i, t in enumerate(t_e)]
        assert (e_t - torch.stack(rows)).abs().max() <= 1e-5  # float32 schedule


def test_the_noise_leaks_as_the_formula_says():
    scheduler = text_diffusion_scheduler()
    assert int((leak(scheduler, 1.0) > 1).sum()) == 354
    assert int((leak(scheduler, 0.1) > 1).sum()) == 11
    assert leak(scheduler, 0.01).max().item() == pytest.approx(0.343, abs=5e-4)


def test_leak_formula_is_the_z_score_of_the_right_caption():
    """Score of a caption = its cosine with e_t; the right one stands z standard deviations of the noise above 0."""
    scheduler, t, d, n = text_diffusion_scheduler(), 300, 64, 4000
    generator = torch.Generator().manual_seed(0)
    e_0 = F.normalize(torch.randn(1, d, generator=generator), dim=-1).expand(n, -1)
    for gamma in (1.0, 0.1):
        e_t = noisy_query(scheduler, e_0, torch.randn(n, d, generator=generator), torch.full((n,), t), gamma)
        scores = (e_t * e_0).sum(-1)
        # mean and deviation over 4,000 draws, each known to 1 / sqrt(4000) = 1.6 %
        assert (scores.mean() / scores.std()).item() == pytest.approx(leak(scheduler, gamma)[t].item(), abs=0.08)


def test_first_noise_depends_on_the_image_s_seed_alone():
    assert torch.equal(first_noise([5, 7], 16)[1], first_noise([7], 16)[0])
    assert not torch.equal(first_noise([5], 16), first_noise([7], 16))
    assert first_noise(list(range(200)), 64).std().item() == pytest.approx(1, abs=0.02)
