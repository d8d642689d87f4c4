"""diffusion_classifier.py against its definition in loops, elimination by hand, invariances, and what it refuses."""

import math

import pytest
import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline

from palindiff.data.images import read_pixels
from palindiff.evaluation.cost import count_tflop
from palindiff.evaluation.diffusion_classifier import (
    Stage,
    calls_per_image,
    classifier_tflop,
    classify_by_diffusion,
    encode_prompts,
    places,
    van_der_corput,
)
from palindiff.models.vae import posterior_mean
from palindiff.seeds import seeded_generator
from toys.models import toy_images, toy_pipeline

PROMPTS = ["a red apple", "fire", "a blue car", "water"]
STAGES = [Stage(3, 2), Stage(6, 1)]


@pytest.fixture(scope="module")
def ours(encoder_folder):
    """A pipeline of ours, which predicts v."""
    return toy_pipeline(encoder_folder, "clip")


@pytest.fixture(scope="module")
def z(ours):
    return ours.encode_latents(toy_images(3))


@pytest.fixture(scope="module")
def stock(stable_diffusion):
    """A stock Stable Diffusion 1.x, which predicts ε and generates with PNDM."""
    return StableDiffusionPipeline.from_pretrained(stable_diffusion / "sd1")


@torch.no_grad()
def error_by_hand(pipeline, latent, prompt, i, seed=0):
    """‖ε - ε_θ(z_t, t, c)‖², over its numbers, for draw i: one image, one class, one forward."""
    t = int(1000 * [1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8][i])
    eps = torch.randn(latent.shape, generator=seeded_generator("diffusion_classifier", seed, i))
    alpha = float(pipeline.scheduler.alphas_cumprod[t])
    z_t = math.sqrt(alpha) * latent + math.sqrt(1 - alpha) * eps
    c, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
    output = pipeline.unet(z_t[None], t, c).sample[0]
    if pipeline.scheduler.config.prediction_type == "v_prediction":  # v = √ᾱ ε - √(1-ᾱ) z_0
        output = math.sqrt(alpha) * output + math.sqrt(1 - alpha) * z_t
    return float((eps - output).square().sum()) / eps.numel()


def classify_by_hand(pipeline, z, prompts, stages, seed=0):
    """Algorithm 2 in loops: -> mean errors and numbers of draws by image and class."""
    errors, counts = [], []
    for latent in z:
        found, kept = {prompt: [] for prompt in prompts}, list(prompts)
        for num_draws, num_kept in stages:
            for prompt in kept:
                for i in range(len(found[prompt]), num_draws):
                    found[prompt].append(error_by_hand(pipeline, latent, prompt, i, seed))
            kept = sorted(kept, key=lambda prompt: sum(found[prompt]) / len(found[prompt]))[:num_kept]
        errors.append([sum(each) / len(each) for each in found.values()])
        counts.append([len(each) for each in found.values()])
    return torch.tensor(errors), torch.tensor(counts)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_errors_equal_the_definition_in_loops(ours, stock, z, prediction_type):
    pipeline = ours if prediction_type == "v_prediction" else stock
    assert pipeline.scheduler.config.prediction_type == prediction_type
    latents = z if pipeline is ours else torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = classify_by_diffusion(pipeline, latents, PROMPTS, STAGES, seed=4)
    errors, counts = classify_by_hand(pipeline, latents, PROMPTS, STAGES, seed=4)
    assert torch.equal(found.num_draws, counts)
    torch.testing.assert_close(found.errors, errors, rtol=1e-5, atol=1e-6)  # float32 networks, another batch
    for row in range(len(latents)):
        best_first = sorted(range(4), key=lambda k: (-counts[row, k], errors[row, k]))
        assert found.scores[row].sort(descending=True).indices.tolist() == best_first
        assert found.scores[row].sort().values.tolist() == [-3, -2, -1, 0]
        assert found.chosen[row] == best_first[0]
    assert found.num_calls == int(counts.sum()) == len(latents) * calls_per_image(4, STAGES)


def test_a_class_is_eliminated_where_its_error_is_largest_although_more_draws_would_save_it():
    """Place by draws first: a class that was left out early never comes before one that stayed."""
    errors = torch.tensor([[0.1, 0.5, 0.3, 0.3], [0.4, 0.1, 0.2, 0.3]])
    num_draws = torch.tensor([[3, 6, 6, 3], [6, 6, 6, 6]])
    assert places(errors, num_draws).tolist() == [[2, 1, 0, 3], [3, 0, 1, 2]]
    equal = torch.ones(1, 4)
    assert places(equal, equal.long()).tolist() == [[0, 1, 2, 3]]


def test_stages_that_keep_every_class_equal_one_stage(ours, z):
    staged = classify_by_diffusion(ours, z, PROMPTS, [Stage(2, 4), Stage(3, 4), Stage(6, 4)])
    whole = classify_by_diffusion(ours, z, PROMPTS, [Stage(6, 1)])
    torch.testing.assert_close(staged.errors, whole.errors, rtol=1e-6, atol=0)  # batches of another size
    assert torch.equal(staged.scores, whole.scores)
    assert (staged.num_draws == 6).all()
    eliminated = classify_by_diffusion(ours, z, PROMPTS, [Stage(2, 3), Stage(6, 1)])
    stayed = eliminated.num_draws == 6
    assert stayed.sum(dim=1).tolist() == [3, 3, 3]
    torch.testing.assert_close(eliminated.errors[stayed], whole.errors[stayed], rtol=1e-6, atol=0)


def test_neither_batch_nor_other_images_nor_order_of_classes_changes_an_answer(ours, z):
    whole = classify_by_diffusion(ours, z, PROMPTS, STAGES)
    for batch_size in (1, 3, 7):
        found = classify_by_diffusion(ours, z, PROMPTS, STAGES, batch_size=batch_size)
        torch.testing.assert_close(found.errors, whole.errors, rtol=1e-5, atol=1e-6)  # sums in another order
        assert torch.equal(found.scores, whole.scores)
    alone = [classify_by_diffusion(ours, z[row : row + 1], PROMPTS, STAGES) for row in (2, 0)]
    assert torch.equal(torch.cat([each.errors for each in alone]), whole.errors[[2, 0]])
    backwards = classify_by_diffusion(ours, z, PROMPTS[::-1], STAGES)
    torch.testing.assert_close(backwards.errors.flip(1), whole.errors, rtol=1e-5, atol=1e-6)


def test_a_seed_decides_the_noise(ours, z):
    first, again, other = (classify_by_diffusion(ours, z, PROMPTS, STAGES, seed=seed).errors for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_progress_counts_images(ours, z):
    seen = []
    classify_by_diffusion(ours, z, PROMPTS, STAGES, progress=lambda *counts: seen.append(counts))
    assert seen == [("images", 1, 3), ("images", 2, 3), ("images", 3, 3)]


@pytest.mark.parametrize("num_draws", [1, 3, 7, 63])
def test_steps_of_any_number_of_draws_are_evenly_spread(num_draws):
    """1, 3, 7, ... draws cut the steps into equal parts."""
    assert sorted(van_der_corput(i) for i in range(1, num_draws + 1)) == [
        i / (num_draws + 1) for i in range(1, num_draws + 1)
    ]


def test_cost_is_the_calls_times_one_call(stock):
    assert calls_per_image(10, [Stage(50, 5), Stage(500, 1)]) == 50 * 10 + 450 * 5
    assert calls_per_image(3, [Stage(50, 5), Stage(60, 1)]) == 60 * 3
    c = encode_prompts(stock, ["a cat"])
    with torch.no_grad():
        one = count_tflop(lambda: stock.unet(torch.zeros(1, 4, 8, 8), torch.tensor([3]), c))
    assert classifier_tflop(stock, 10, STAGES) == pytest.approx(one * (3 * 10 + 3 * 2))


@torch.no_grad()
def test_pixels_become_latents_as_the_pipeline_makes_them(ours, stock):
    x = torch.stack([read_pixels(image, 8) for image in toy_images(2)])
    z = stock.vae.encode(x.repeat_interleave(8, 2).repeat_interleave(8, 3)).latent_dist.mean
    found = posterior_mean(stock.vae, x.repeat_interleave(8, 2).repeat_interleave(8, 3))
    torch.testing.assert_close(found, z * stock.vae.config.scaling_factor)
    assert torch.equal(posterior_mean(ours.vae, x), ours.encode_pixels(x))
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=3, scaling_factor=0.5,
    )  # fmt: skip
    assert torch.equal(posterior_mean(tiny, x), 0.5 * tiny.encode(x).latents)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"z": torch.zeros(2, 4, 4, 4)}, r"Latents have shape \(2, 4, 4, 4\).*Expected \(n, 3, h, w\)"),
        ({"z": torch.zeros(0, 3, 4, 4)}, r"Latents have shape \(0, 3, 4, 4\).*n from 1 on"),
        ({"z": torch.zeros(1, 3, 4, 4).long()}, r"type torch\.int64.*Expected \(n, 3, h, w\), floating point"),
        ({"prompts": "fire"}, r"`prompts` is one string"),
        ({"prompts": ["fire"]}, r"`prompts` is 1 prompts, 1 different\. Expected a different prompt"),
        ({"prompts": ["fire", "fire"]}, r"`prompts` is 2 prompts, 1 different"),
        ({"stages": []}, r"`stages` is \[\]\. Expected one or more"),
        ({"stages": [Stage(0, 1)]}, r"`stages` is \[\(0, 1\)\]"),
        ({"stages": [Stage(4, 2), Stage(4, 1)]}, r"Expected .* more draws in each stage"),
        ({"stages": [Stage(4, 1), Stage(5, 2)]}, r"no more classes kept"),
        ({"stages": [Stage(4, 0)]}, r"but at least 1"),
        ({"batch_size": 0}, r"`batch_size` is 0\. Expected at least 1"),
    ],
)
def test_what_cannot_be_classified_is_refused(ours, z, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        classify_by_diffusion(ours, **{"z": z, "prompts": PROMPTS, "stages": STAGES} | given)


def test_a_model_that_predicts_something_else_is_refused(encoder_folder, z):
    pipeline = toy_pipeline(encoder_folder)
    pipeline.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(
        ValueError, match=r"DDIMScheduler has `prediction_type` 'sample'\. Expected the noise schedule"
    ):
        classify_by_diffusion(pipeline, z, PROMPTS, STAGES)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="The scheduler FlowMatchEulerDiscreteScheduler has"):
        classify_by_diffusion(pipeline, z, PROMPTS, STAGES)
