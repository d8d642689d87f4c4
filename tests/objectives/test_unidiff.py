"""unidiff.py: each loss alone is the plain one, all together share the networks, and chunks change nothing."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from palindiff.models.clip_projection import TrainedClipProjection
from palindiff.models.text_encoder import TextEncoder
from palindiff.objectives.contrastive import ContrastiveConfig, ContrastiveObjective
from palindiff.objectives.unidiff import UniDiffConfig, UniDiffObjective
from palindiff.pretrained.text_encoders import load_text_encoder
from toys.contrastive import toy_image_encoder
from toys.models import toy_unet
from toys.text_encoders import QUERY_WIDTH, WIDTH

CAPTIONS = ["red", "an apple", "a b c", "x", "an apple", "y z"]
OFF = {"contrastive_weight": 0.0, "generation_weight": 0.0, "consistency_weight": 0.0}


@pytest.fixture
def contrastive(encoder_folder):
    """A CLIP of which all weights are trained."""
    frozen = load_text_encoder(str(encoder_folder / "clip"))
    projection = TrainedClipProjection.from_clip(frozen.model, frozen.projection.weight)
    text = TextEncoder(frozen.model.requires_grad_(True), frozen.tokenizer, "clip", projection)
    return ContrastiveObjective(toy_image_encoder(QUERY_WIDTH), ContrastiveConfig(), text)


@pytest.fixture
def make(contrastive):
    def build(num_rows=0, **config):
        torch.manual_seed(7)
        unet, scheduler = toy_unet(d_c=WIDTH), DDPMScheduler(beta_schedule="scaled_linear")
        parts = copy.deepcopy(contrastive)
        parts.grad_cache_size = num_rows
        return UniDiffObjective(parts, unet, scheduler, UniDiffConfig(**config)).eval()

    return build


@pytest.fixture
def batch(contrastive):
    generator = torch.Generator().manual_seed(4)
    ids, mask = contrastive.text_encoder.tokenize(CAPTIONS)
    return {
        "x": torch.randint(256, (6, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "z_mean": torch.randn(6, 3, 4, 4, generator=generator),
        "z_std": torch.rand(6, 3, 4, 4, generator=generator),
        "ids": ids,
        "mask": mask,
        "caption_id": torch.tensor([0, 1, 2, 3, 1, 5]),
    }


def draws_of(objective):
    return objective.draw(6, torch.Generator().manual_seed(5))


def gradients(objective):
    return {name: each.grad for name, each in objective.named_parameters() if each.grad is not None}


def test_contrastive_alone_is_clip_s_own_step(make, contrastive, batch):
    objective = make(**OFF | {"contrastive_weight": 1.0})
    found = objective(batch, draws_of(objective))
    expected = contrastive(batch, {})
    assert found.keys() == {"loss", "contrastive"}
    assert torch.equal(found["loss"], expected["loss"])
    found["loss"].backward()
    expected["loss"].backward()
    own = gradients(objective.contrastive)
    for name, gradient in gradients(contrastive).items():
        assert torch.equal(own[name], gradient), name
    assert not any(weight.requires_grad for weight in objective.unet.parameters())


def test_generation_alone_is_the_step_of_diffusers_text_to_image_example(make, batch):
    """examples/text_to_image/train_text_to_image.py, with the same noise and steps."""
    objective = make(**OFF | {"generation_weight": 1.0}, text_drop_rate=0.0)
    draws = draws_of(objective)
    objective(batch, draws)["loss"].backward()
    found = gradients(objective)
    objective.zero_grad()
    latents = batch["z_mean"] + batch["z_std"] * draws["eps_posterior"]
    noisy_latents = objective.scheduler.add_noise(latents, draws["eps_z"], draws["t_z"])
    encoder_hidden_states = objective.text_encoder.model(batch["ids"], return_dict=False)[0]
    model_pred = objective.unet(noisy_latents, draws["t_z"], encoder_hidden_states, return_dict=False)[0]
    loss = F.mse_loss(model_pred.float(), draws["eps_z"].float(), reduction="mean")
    loss.backward()
    assert found.keys() == gradients(objective).keys()
    for name, gradient in gradients(objective).items():
        assert torch.equal(found[name], gradient), name
    assert all(name.startswith("unet.") for name in found)  # the example freezes the text encoder too


@pytest.mark.parametrize("consistency", ["projected", "relational"])
def test_the_total_is_the_weighted_sum_and_every_weight_learns(make, batch, consistency):
    weights = {"contrastive_weight": 0.5, "generation_weight": 2.0, "consistency_weight": 0.3}
    objective = make(**weights, consistency=consistency)
    found = objective(batch, draws_of(objective))
    total = sum(weights[f"{name}_weight"] * found[name] for name in ("contrastive", "generation", "consistency"))
    torch.testing.assert_close(found["loss"], total)
    assert found["consistency"] > 0
    found["loss"].backward()
    without = [name for name, weight in objective.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not [name for name in without if not name.endswith(("k_proj.bias", "to_k.bias"))]  # move no softmax


def test_generation_of_weight_0_is_reported_and_what_it_alone_would_train_is_frozen(make, batch):
    objective = make(generation_weight=0.0, consistency_weight=0.3)
    found = objective(batch, draws_of(objective))
    torch.testing.assert_close(found["loss"], found["contrastive"] + 0.3 * found["consistency"])
    assert found["generation"] > 0
    found["loss"].backward()
    trained = [(name, each) for name, each in objective.named_parameters() if each.requires_grad]
    assert [name for name, each in trained if each.grad is None] == []
    assert any(name.startswith("unet.down_blocks") for name, _ in trained)
    assert not any(name.startswith(("unet.up_blocks", "unet.conv_out", "unet.conv_norm_out")) for name, _ in trained)


def test_noisy_images_weigh_as_much_as_is_left_of_them(make, batch):
    plain, weighted = (make(noise_weighting=name) for name in ("none", "signal"))
    draws = draws_of(plain) | {"t_z": torch.full((6,), 400)}
    signal = plain.scheduler.alphas_cumprod[400]
    of_plain, of_weighted = (each(batch, draws)["consistency"] for each in (plain, weighted))
    torch.testing.assert_close(of_weighted, signal * of_plain)


@pytest.mark.parametrize("consistency", ["projected", "relational"])
def test_chunks_change_neither_loss_nor_gradients(make, batch, consistency):
    whole, cached = (make(num_rows, consistency=consistency) for num_rows in (0, 4))
    draws = draws_of(whole)
    losses = [each(batch, draws) for each in (whole, cached)]
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss, atol=1e-5, rtol=1e-5)
    for loss in losses:
        loss["loss"].backward()
    expected = gradients(whole)
    for name, gradient in gradients(cached).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", ["mid_block", "down_blocks.0", "up_blocks.1"])
def test_any_block_of_the_unet_gives_features(make, batch, layer):
    objective = make(feature_layer=layer)
    assert objective(batch, draws_of(objective))["consistency"].isfinite()


def test_a_block_that_the_unet_lacks_is_refused(make):
    blocks = "down_blocks.0, down_blocks.1, mid_block, up_blocks.0, up_blocks.1"
    with pytest.raises(ValueError, match=rf"`objective.feature_layer` is 'mid'.*Expected one of {blocks}\."):
        make(feature_layer="mid")


def test_rates_are_those_of_trained_weights_and_of_the_projection(make):
    objective = make()
    rate = {id(weight): group["lr"] for group in objective.parameter_groups(1.0, 2.0) for weight in group["params"]}
    assert len(rate) == len(list(objective.parameters()))
    for name, weight in objective.named_parameters():
        assert rate[id(weight)] == (2.0 if name.startswith("projection.") else 1.0), name
