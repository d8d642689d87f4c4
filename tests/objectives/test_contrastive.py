"""contrastive.py against InfoNCE written out, its invariances, and which weights it trains at which rate."""

import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import debug_launcher

from palindiff.data.images import to_pixels
from palindiff.models.clip_projection import TrainedClipProjection
from palindiff.models.logit_scale import MAX_LOGIT_SCALE
from palindiff.models.text_encoder import TextEncoder
from palindiff.objectives.contrastive import ContrastiveConfig, ContrastiveObjective
from palindiff.pretrained.text_encoders import load_text_encoder
from toys.contrastive import toy_image_encoder
from toys.text_encoders import QUERY_WIDTH

CAPTIONS = ["red", "an apple", "a b c", "x", "an apple", "y z"]
KAPPA = 5.0


def make_batch(b=6, d=QUERY_WIDTH):
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(256, (b, 3, 16, 16), generator=generator, dtype=torch.uint8)
    e_0 = F.normalize(torch.randn(b, d, generator=generator), dim=-1)
    return {"x": x, "e_0": e_0, "caption_id": torch.arange(b)}


def frozen_text():
    return ContrastiveObjective(toy_image_encoder(QUERY_WIDTH), ContrastiveConfig(logit_scale=KAPPA))


def loss_by_hand(v, e, positives):
    """Each image among all captions and each caption among all images; several right answers share the weight."""
    total, b = 0.0, len(v)
    for one, other in ((v, e), (e, v)):
        for i in range(b):
            scores = [KAPPA * float(one[i] @ other[j]) for j in range(b)]
            normaliser = math.log(sum(math.exp(score) for score in scores))
            right = positives[i].nonzero().flatten().tolist()
            total -= sum(scores[j] - normaliser for j in right) / len(right)
    return total / (2 * b)


def unit_images(encoder, x):
    """By transformers' own forward, on pixels that CLIP's numbers normalise."""
    mean, deviation = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    pixels = (x.float() / 255 - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        return F.normalize(encoder.model(pixels).image_embeds, dim=-1)


@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 1, 5]])  # all captions differ; two are equal
def test_loss_is_infonce_by_hand(ids):
    objective, batch = frozen_text(), make_batch() | {"caption_id": torch.tensor(ids)}
    losses = objective(batch, objective.draw(6, torch.Generator()))
    v, positives = (
        unit_images(objective.image_encoder, batch["x"]),
        batch["caption_id"] == batch["caption_id"][:, None],
    )
    assert losses["loss"].item() == pytest.approx(loss_by_hand(v, batch["e_0"], positives), abs=1e-5)  # float32
    assert losses["contrastive"] == losses["loss"]
    assert not losses["contrastive"].requires_grad


def test_loss_ignores_the_order_of_the_batch():
    objective, batch, order = frozen_text(), make_batch(), torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = {name: each[order] for name, each in batch.items()}
    assert objective(shuffled, {})["loss"].item() == pytest.approx(objective(batch, {})["loss"].item(), abs=1e-6)


def test_captions_are_encoded_in_the_step_where_there_is_an_encoder(encoder_folder):
    text = load_text_encoder(str(encoder_folder / "clip"))
    with torch.no_grad():
        ids, mask = text.tokenize(CAPTIONS)
        e_0 = text(ids, mask).e
    batch = make_batch()
    encoder = toy_image_encoder(QUERY_WIDTH)
    live = ContrastiveObjective(encoder, ContrastiveConfig(logit_scale=KAPPA), text)
    kept = ContrastiveObjective(encoder, ContrastiveConfig(logit_scale=KAPPA))
    found = live({"x": batch["x"], "ids": ids, "mask": mask, "caption_id": batch["caption_id"]}, {})
    assert torch.equal(found["loss"], kept(batch | {"e_0": e_0}, {})["loss"])


def trained_clip(encoder_folder):
    frozen = load_text_encoder(str(encoder_folder / "clip"))
    projection = TrainedClipProjection.from_clip(frozen.model, frozen.projection.weight)
    text = TextEncoder(frozen.model.requires_grad_(True), frozen.tokenizer, "clip", projection)
    return ContrastiveObjective(toy_image_encoder(QUERY_WIDTH), ContrastiveConfig(), text)


def test_every_weight_gets_a_gradient_the_text_projection_too(encoder_folder):
    objective = trained_clip(encoder_folder)
    ids, mask = objective.text_encoder.tokenize(CAPTIONS)
    batch = make_batch()
    objective({"x": batch["x"], "ids": ids, "mask": mask, "caption_id": batch["caption_id"]}, {})["loss"].backward()
    without = [name for name, weight in objective.named_parameters() if weight.grad is None or not weight.grad.any()]
    # A bias of the keys moves no softmax; its gradient is rounding.
    assert not [name for name in without if not name.endswith("k_proj.bias")]
    assert "text_projection.weight" in dict(objective.named_parameters())


def test_rates_are_those_of_old_and_new_weights_and_gains_do_not_decay(encoder_folder):
    objective = trained_clip(encoder_folder)
    groups = objective.parameter_groups(1e-5, 1e-3)
    rate = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    decays = {id(weight): "weight_decay" not in group for group in groups for weight in group["params"]}
    assert len(rate) == sum(len(group["params"]) for group in groups) == len(list(objective.parameters()))
    for name, weight in objective.named_parameters():
        assert rate[id(weight)] == (1e-5 if name.startswith("text_") else 1e-3), name
        assert decays[id(weight)] == (weight.ndim >= 2), name
    assert all(group.get("weight_decay", 0) == 0 for group in groups)


def test_only_image_encoder_and_scale_are_trained_beside_a_frozen_text_encoder(encoder_folder):
    text = load_text_encoder(str(encoder_folder / "clip"))
    objective = ContrastiveObjective(toy_image_encoder(QUERY_WIDTH), ContrastiveConfig(), text)
    trained = {id(weight) for group in objective.parameter_groups(1.0, 1.0) for weight in group["params"]}
    assert trained == {id(each) for each in [*objective.image_encoder.parameters(), objective.log_logit_scale]}


def test_the_scale_is_clamped_in_training_where_it_keeps_its_gradient():
    objective, batch = frozen_text(), make_batch()
    with torch.no_grad():
        objective.log_logit_scale.fill_(7.0)
    objective.eval()(batch, {})
    assert objective.log_logit_scale.item() == 7
    assert objective.logit_scale.item() == pytest.approx(MAX_LOGIT_SCALE, rel=1e-6)
    objective.train()(batch, {})["loss"].backward()
    assert objective.log_logit_scale.item() == pytest.approx(math.log(MAX_LOGIT_SCALE), rel=1e-6)
    assert objective.log_logit_scale.grad != 0


def _loss_of_a_share(folder):
    """Each of two processes has half of the batch; equal captions lie in different halves."""
    rank = torch.distributed.get_rank()
    objective = frozen_text()
    batch = {name: each.chunk(2)[rank] for name, each in two_halves().items()}
    loss = objective(batch, {})["loss"]
    loss.backward()
    gradients = [weight.grad for weight in objective.parameters()]
    torch.save([loss.detach(), *gradients], folder / f"{rank}.pt")


def two_halves():
    return make_batch() | {"caption_id": torch.tensor([0, 1, 2, 3, 1, 5])}


def test_two_processes_share_one_global_batch(tmp_path):
    objective = frozen_text()
    loss = objective(two_halves(), {})["loss"]
    loss.backward()
    debug_launcher(_loss_of_a_share, (tmp_path,), num_processes=2)
    (one, *first), (other, *second) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert one.item() == other.item() == pytest.approx(loss.item(), abs=1e-6)
    for weight, a, b in zip(objective.parameters(), first, second, strict=True):
        torch.testing.assert_close((a + b) / 2, weight.grad, rtol=1e-4, atol=1e-6)  # DDP averages over processes


def test_pixels_are_read_as_bytes():
    objective, batch = frozen_text(), make_batch()
    v = objective.image_encoder(to_pixels(batch["x"]))
    torch.testing.assert_close(v, unit_images(objective.image_encoder, batch["x"]), rtol=0, atol=1e-6)  # float32


def test_a_gradient_cache_changes_neither_loss_nor_gradients(encoder_folder):
    objective = trained_clip(encoder_folder)
    ids, mask = objective.text_encoder.tokenize(CAPTIONS)
    batch = make_batch() | {"ids": ids, "mask": mask}
    found = []
    for num_rows in (0, 4):
        objective.grad_cache_size = num_rows
        objective.zero_grad()
        loss = objective(batch, {})["loss"]
        loss.backward()
        found.append((loss.detach(), [weight.grad.clone() for weight in objective.parameters()]))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)
