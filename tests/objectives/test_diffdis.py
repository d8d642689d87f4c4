"""diffdis.py: both losses by hand, where their gradients go, what is dropped, and two processes against one."""

import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler

from palindiff.models.text_diffusion import text_diffusion_scheduler
from palindiff.models.unet_encoder import unet_encoder_parameters
from palindiff.objectives.diffdis import DiffDisConfig, DiffDisObjective
from palindiff.pretrained.text_encoders import load_text_encoder
from toys.models import D_E, toy_stream, toy_unet
from toys.text_encoders import write_clip


def toy_objective(prediction_type="epsilon", unet=None, stream_settings=None, **settings):
    unet = unet or toy_unet()
    scheduler = DDIMScheduler.from_config(text_diffusion_scheduler().config | {"prediction_type": prediction_type})
    c_empty = torch.full((1, 5, 10), 0.5)
    stream = toy_stream(unet, **(stream_settings or {}))
    return DiffDisObjective(
        unet, stream, scheduler, text_diffusion_scheduler(), c_empty, DiffDisConfig(**settings)
    ).train()


def toy_batch(b=4, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return {
        "z_mean": torch.randn(b, 3, 4, 4, generator=generator).half(),
        "z_std": torch.rand(b, 3, 4, 4, generator=generator).half() / 10,
        "c": torch.randn(b, 5, 10, generator=generator).half(),
        "e_0": F.normalize(torch.randn(b, D_E, generator=generator), dim=-1),
        "caption_id": torch.arange(b),
    }


def toy_draws(objective, b=4, seed=6):
    return objective.draw(b, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_generation_loss_equals_eq_4_by_hand(prediction_type):
    objective = toy_objective(prediction_type, text_drop_rate=0)
    batch, draws = toy_batch(), toy_draws(objective)
    alphas = objective.scheduler.alphas_cumprod
    total = 0.0
    for i in range(4):
        z_0 = batch["z_mean"][i].float() + batch["z_std"][i].float() * draws["eps_posterior"][i]
        root, rest = alphas[draws["t_z"][i]].sqrt(), (1 - alphas[draws["t_z"][i]]).sqrt()
        z_t = root * z_0 + rest * draws["eps_z"][i]
        target = draws["eps_z"][i] if prediction_type == "epsilon" else root * draws["eps_z"][i] - rest * z_0
        predicted = objective.unet(z_t[None], draws["t_z"][i : i + 1], batch["c"][i : i + 1].float()).sample[0]
        total += (predicted - target).square().mean().item() / 4
    assert objective(batch, draws)["generation"].item() == pytest.approx(total, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("fusion", "query_input", "query_caption"),
    [("one_way", "raw", "target"), ("joint", "raw", "target"), ("one_way", "normalised", "any")],
)
def test_alignment_equals_eq_5_to_8_by_hand(fusion, query_input, query_caption):
    """Algorithm 1's second half, image by image, with rows 0 and 2 of one caption and images 1 and 2 dropped.

    The embeddings of rows 0 and 2 differ, or sharing the weight would change nothing: their logits would be equal.
    """
    settings = {"fusion": fusion, "gamma": 0.5, "query_scale": "sqrt_d", "query_input": query_input}
    rates = {"image_drop_rate": 0.5, "text_drop_rate": 0.5}
    objective = toy_objective(stream_settings=settings, query_caption=query_caption, **rates)
    batch, draws = toy_batch(), toy_draws(objective)
    batch["caption_id"] = torch.tensor([7, 8, 7, 9])
    draws["image_uniform"] = torch.tensor([0.9, 0.1, 0.2, 0.7])
    draws["text_uniform"] = torch.tensor([0.1, 0.9, 0.6, 0.2])  # the other way round: of no interest to naming
    alphas, e_0, predicted = objective.query_scheduler.alphas_cumprod, batch["e_0"], []
    batch["e_query"] = noised = e_0 if query_caption == "target" else toy_batch(seed=8)["e_0"]
    for i, is_dropped in enumerate([False, True, True, False]):
        alpha = alphas[draws["t_e"][i]]
        e_t = 0.5 * math.sqrt(D_E) * alpha.sqrt() * noised[i] + (1 - alpha).sqrt() * draws["eps_e"][i]
        if query_input == "normalised":
            e_t = e_t / math.sqrt(0.25 * alpha + 1 - alpha)
        z = batch["z_mean"][i].float() + batch["z_std"][i].float() * draws["eps_posterior"][i]
        z = torch.zeros_like(z) if is_dropped else z
        reading = objective.query_stream.read_image(objective.unet, z[None])
        predicted.append(objective.query_stream(objective.unet, reading, e_t[None], draws["t_e"][i : i + 1])[0])
    s = [[float(e_0_hat @ e) / 0.07 for e in e_0] for e_0_hat in predicted]
    total = 0.0
    for i, positives in enumerate([(0, 2), (1,), (0, 2), (3,)]):
        for logits in (s[i], [row[i] for row in s]):
            log_sum = math.log(sum(math.exp(logit) for logit in logits))
            total += sum(log_sum - logits[j] for j in positives) / len(positives) / 8
    assert objective(batch, draws)["alignment"].item() == pytest.approx(total, rel=1e-5)  # float32 networks


def test_steps_of_the_text_diffusion_are_drawn_towards_noise_and_nothing_else_changes():
    uniform, noisier = (toy_draws(toy_objective(t_e_power=power), b=64) for power in (1, 4))
    assert torch.equal(uniform["eps_e"], noisier["eps_e"])
    assert torch.equal(uniform["t_z"], noisier["t_z"])
    assert noisier["t_e"].float().mean() > 700 > uniform["t_e"].float().mean()  # expected: 800 and 500


@torch.no_grad()
def test_a_second_caption_of_the_image_is_left_out_unless_asked_for():
    batch = toy_batch()
    objective = toy_objective()
    draws, second = toy_draws(objective), {"e_query": toy_batch(seed=8)["e_0"]}
    plain = objective(batch, draws)["alignment"].item()
    assert objective(batch | second, draws)["alignment"].item() == plain
    from_any = toy_objective(query_caption="any")
    assert from_any(batch | second, draws)["alignment"].item() != plain
    assert from_any(batch | {"e_query": batch["e_0"]}, draws)["alignment"].item() == plain


def test_loss_is_eq_9_and_the_tasks_are_its_parts():
    unet = toy_unet()
    both = toy_objective(unet=unet, alignment_weight=0.25)
    batch, draws = toy_batch(), toy_draws(both)
    losses = both(batch, draws)
    assert losses.keys() == {"loss", "generation", "alignment"}
    assert losses["loss"].item() == pytest.approx(
        losses["generation"].item() + 0.25 * losses["alignment"].item(), rel=1e-6
    )
    for task, part in (("generation", "generation"), ("alignment", "alignment")):
        alone = toy_objective(unet=toy_unet(), task=task)(batch, draws)
        assert alone.keys() == {"loss", part}
        assert alone["loss"].item() == pytest.approx(losses[part].item(), rel=1e-6)


def is_used_without_text(name):
    """Cross-attention to one zero token passes its output bias on and nothing else."""
    is_cross_attention = ".attn2." in name or (".norm2." in name and "transformer_blocks" in name)
    return not is_cross_attention or name.endswith("attn2.to_out.0.bias")


def test_no_gradient_of_alignment_reaches_the_decoder_half():
    objective = toy_objective(stream_settings={"fusion": "one_way"})
    batch, draws = toy_batch(), toy_draws(objective)
    z_0 = batch["z_mean"].float()
    objective.alignment(z_0, batch["e_0"], batch["caption_id"], draws).backward()
    encoder = {id(weight) for weight in unet_encoder_parameters(objective.unet)}
    for name, weight in objective.unet.named_parameters():
        if id(weight) not in encoder:
            assert weight.grad is None, name
        elif is_used_without_text(name):
            assert weight.grad is not None, name
            assert weight.grad.abs().sum() > 0, name
    for name, weight in objective.query_stream.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("fusion", ["joint", "one_way"])
def test_every_trainable_parameter_gets_a_gradient_of_the_sum_and_frozen_parts_none(fusion):
    objective = toy_objective(stream_settings={"fusion": fusion})
    objective(toy_batch(), toy_draws(objective))["loss"].backward()
    for name, weight in objective.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
    assert objective.c_empty.grad is None
    assert not objective.c_empty.requires_grad


@pytest.mark.parametrize(("task", "frozen"), [("generation", {"query_stream"}), ("alignment", {"unet"})])
def test_a_task_alone_freezes_what_it_does_not_use(task, frozen):
    objective = toy_objective(task=task)
    objective(toy_batch(), toy_draws(objective))["loss"].backward()
    for name, weight in objective.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name
    without = {name.split(".")[0] for name, weight in objective.named_parameters() if not weight.requires_grad}
    assert without == frozen
    rates = {group["lr"]: len(group["params"]) for group in objective.parameter_groups(1e-5, 1e-4)}
    assert (1e-4 in rates) == (task != "generation")


def test_naming_alone_trains_no_weight_that_only_weight_decay_would_move():
    objective = toy_objective(task="alignment")
    before = {name: weight.detach().clone() for name, weight in objective.unet.named_parameters()}
    optimizer = torch.optim.AdamW(objective.parameter_groups(1e-2, 1e-2), weight_decay=0.1)
    objective(toy_batch(), toy_draws(objective))["loss"].backward()
    optimizer.step()
    encoder = {id(weight) for weight in unet_encoder_parameters(objective.unet)}
    for name, weight in objective.unet.named_parameters():
        is_trained = id(weight) in encoder and is_used_without_text(name)
        assert weight.requires_grad == is_trained, name
        assert torch.equal(weight, before[name]) != is_trained, name


def test_a_logit_scale_above_its_bound_comes_back_and_goes_on_learning():
    objective = toy_objective()
    weight = objective.query_stream.log_logit_scale
    torch.nn.init.constant_(weight, 9.0)
    objective.eval()
    objective(toy_batch(), toy_draws(objective))
    assert weight.item() == 9  # evaluating a loss changes no weight
    objective.train()
    objective(toy_batch(), toy_draws(objective))["loss"].backward()
    assert weight.item() == pytest.approx(math.log(100), rel=1e-6)
    assert abs(weight.grad.item()) > 1e-3


def test_parameter_groups_have_the_two_rates_and_every_weight_once():
    objective = toy_objective()
    unet_group, new_group = objective.parameter_groups(learning_rate=1e-5, new_learning_rate=1e-4)
    assert (unet_group["lr"], new_group["lr"]) == (1e-5, 1e-4)
    assert {id(w) for w in unet_group["params"]} == {id(w) for w in objective.unet.parameters()}
    assert {id(w) for w in new_group["params"]} == {id(w) for w in objective.query_stream.parameters()}


def test_a_dropped_caption_becomes_the_empty_one():
    objective = toy_objective(text_drop_rate=1)
    batch, draws = toy_batch(), toy_draws(objective)
    dropped = objective(batch, draws)["generation"]
    empty = toy_objective(unet=objective.unet, text_drop_rate=0)(batch | {"c": torch.full((4, 5, 10), 0.5)}, draws)
    assert dropped.item() == pytest.approx(empty["generation"].item(), rel=1e-6)


def test_a_dropped_image_becomes_the_zero_latent_when_named_and_stays_when_generated():
    objective = toy_objective(image_drop_rate=1)
    batch, draws = toy_batch(), toy_draws(objective)
    losses = objective(batch, draws)
    kept = toy_objective(unet=objective.unet, image_drop_rate=0)
    zeros = batch | {"z_mean": torch.zeros(4, 3, 4, 4), "z_std": torch.zeros(4, 3, 4, 4)}
    assert losses["alignment"].item() == pytest.approx(kept(zeros, draws)["alignment"].item(), rel=1e-5)
    assert losses["generation"].item() == pytest.approx(kept(batch, draws)["generation"].item(), rel=1e-6)


@torch.no_grad()
def test_texts_encodes_the_captions_and_last_the_empty_one_as_each_by_itself(tmp_path):
    encoder = load_text_encoder(str(write_clip(tmp_path / "clip")))
    unet, schedulers = toy_unet(), (text_diffusion_scheduler(), text_diffusion_scheduler())
    objective = DiffDisObjective(unet, toy_stream(unet), *schedulers, None, DiffDisConfig(), encoder)
    captions = ["a flat emoji of a red apple", "fire"]
    ids, mask = encoder.tokenize(captions)
    c, e_0, c_empty = objective.texts({"ids": ids, "mask": mask})
    expected, empty = encoder.encode(captions), encoder.encode([""])
    assert (c.shape, c_empty.shape, e_0.shape) == (expected.c.shape, empty.c.shape, expected.e.shape)
    for found, alone in ((c, expected.c), (e_0, expected.e), (c_empty, empty.c)):
        assert torch.allclose(found, alone, atol=1e-6)  # a batch of another size is summed in another order
    assert not torch.allclose(c_empty, c[-1:], atol=1e-3)  # so that a mistaken row would show


def test_naming_sees_its_own_view_of_an_image_and_generation_does_not():
    objective = toy_objective()
    batch, other, draws = toy_batch(), toy_batch(seed=9), toy_draws(objective)
    named = {"z_named_mean": other["z_mean"], "z_named_std": other["z_std"]}
    losses, alone = objective(batch | named, draws), objective(batch, draws)
    swapped = objective(batch | {"z_mean": other["z_mean"], "z_std": other["z_std"]}, draws)
    assert losses["generation"].item() == alone["generation"].item()
    assert losses["alignment"].item() == swapped["alignment"].item() != alone["alignment"].item()
    same = {"z_named_mean": batch["z_mean"], "z_named_std": batch["z_std"]}
    assert objective(batch | same, draws)["loss"].item() == alone["loss"].item()


@torch.no_grad()
def test_drop_rates_are_met_on_average():
    """Counted where the networks look: captions in the U-Net's context, latents in its first convolution."""
    objective = toy_objective(text_drop_rate=0.2, image_drop_rate=0.4)
    batch, draws, seen = toy_batch(b=2000), toy_draws(objective, b=2000), {}
    objective.unet.register_forward_pre_hook(lambda unet, inputs: seen.update(c=inputs[2]))
    objective.unet.conv_in.register_forward_pre_hook(lambda layer, inputs: seen.update(z=inputs[0]))
    z = batch["z_mean"].float()
    objective.generation_loss(z, batch["c"], objective.c_empty, draws)
    objective.alignment(z, batch["e_0"], batch["caption_id"], draws)
    has_no_text = (seen["c"] == objective.c_empty).all(dim=(1, 2))
    has_no_image = (seen["z"] == 0).all(dim=(1, 2, 3))
    assert has_no_text.float().mean().item() == pytest.approx(0.2, abs=0.045)  # 5 standard errors of 2,000 draws
    assert has_no_image.float().mean().item() == pytest.approx(0.4, abs=0.055)
    both = (has_no_text & has_no_image).float().mean().item()
    assert both == pytest.approx(0.08, abs=0.03)  # drawn apart


def test_regression_needs_no_noise():
    objective = toy_objective(stream_settings={"text_chain": "none"})
    batch, draws = toy_batch(), toy_draws(objective)
    other = draws | {"eps_e": draws["eps_e"] + 1, "t_e": 999 - draws["t_e"]}
    assert objective(batch, draws)["alignment"].item() == objective(batch, other)["alignment"].item()


def test_gradient_checkpointing_changes_no_gradient():
    found = []
    for is_on in (False, True):
        objective = toy_objective()
        if is_on:
            objective.unet.enable_gradient_checkpointing()
        objective(toy_batch(), toy_draws(objective))["loss"].backward()
        found.append({name: weight.grad for name, weight in objective.named_parameters()})
    assert max(float((found[0][name] - found[1][name]).abs().max()) for name in found[0]) <= 1e-6


def test_another_prediction_type_is_refused():
    objective = toy_objective("sample")
    with pytest.raises(ValueError, match=r"`prediction_type` = 'sample'.*'epsilon' or 'v_prediction'"):
        objective(toy_batch(), toy_draws(objective))


def loss_and_gradient_norm(accelerator):
    """One backward pass on this process's rows of a batch of 4, as the loop does it."""
    objective = toy_objective()
    batch, draws = toy_batch(), toy_draws(objective)
    batch["caption_id"] = torch.tensor([0, 1, 0, 2])  # an equal caption on the other process
    size = 4 // accelerator.num_processes
    share = slice(size * accelerator.process_index, size * (accelerator.process_index + 1))
    prepared = accelerator.prepare(objective)
    losses = prepared({k: v[share] for k, v in batch.items()}, {k: v[share] for k, v in draws.items()})
    accelerator.backward(losses["loss"])
    norm = math.sqrt(sum(float(w.grad.square().sum()) for w in objective.parameters()))
    return float(accelerator.reduce(losses["loss"].detach(), reduction="mean")), norm


def compare_with_one_process(expected):
    AcceleratorState._reset_state(reset_partial_state=True)  # a forked child inherits its parent's
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    found = loss_and_gradient_norm(accelerator)
    assert found == pytest.approx(expected, abs=1e-5), (found, expected)


def test_two_processes_equal_one_on_the_joined_batch():
    expected = loss_and_gradient_norm(Accelerator(cpu=True))
    debug_launcher(compare_with_one_process, args=(expected,), num_processes=2)


@pytest.mark.parametrize("chain", ["diffusion", "none"])
def test_a_gradient_cache_changes_neither_losses_nor_gradients(chain):
    objective, batch = toy_objective(stream_settings={"text_chain": chain}), toy_batch()
    draws, found = toy_draws(objective), []
    for num_rows in (0, 3):
        objective.grad_cache_size = num_rows
        objective.zero_grad()
        losses = objective(batch, draws)
        losses["loss"].backward()
        of_weights = [weight.grad.clone() for weight in objective.parameters() if weight.grad is not None]
        found.append(([loss.detach() for loss in losses.values()], of_weights))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)
