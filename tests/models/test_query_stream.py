"""query_stream.py against a plain re-statement of Fig. 3, the fusions against each other, and what it refuses."""

import inspect
import json
import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from palindiff.models.clip_projection import ClipProjection
from palindiff.models.image_reading import ImageReading
from palindiff.models.logit_scale import clamp_log_logit_scale_
from palindiff.models.query_stream import FUSIONS, QueryStream, QueryStreamConfig
from palindiff.models.text_diffusion import QuerySchedulerConfig, text_diffusion_scheduler
from palindiff.models.unet_encoder import unet_encoder_parameters
from toys.models import D_E, toy_inputs, toy_stream, toy_unet


def attention_by_hand(layer, from_tokens, to_tokens):
    """Softmax attention of a diffusers layer, head by head."""
    q, k, v = layer.to_q(from_tokens), layer.to_k(to_tokens), layer.to_v(to_tokens)
    width, heads = q.shape[-1] // layer.heads, []
    for number in range(layer.heads):
        part = slice(number * width, (number + 1) * width)
        weight = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width), dim=-1)
        heads.append(weight @ v[..., part])
    return layer.to_out[0](torch.cat(heads, dim=-1))


def fig_3_by_hand(unet, stream, z, e_t, t_e, fusion, t_image=0):
    """The encoder half with both streams, written down in the order of Fig. 2 and 3, for layouts of `toy_unet`."""
    sees_at_sites, sees_in_head = fusion == "joint", fusion in ("joint", "head")  # the image sees the query
    has_own_norms = stream.config.query_norms == "own"
    half = D_E // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half) / half)
    angles = t_e[:, None].float() * frequencies
    tau = stream.time_embedding(torch.cat([angles.cos(), angles.sin()], dim=-1))
    no_text = torch.zeros(len(z), 1, 10)
    time = unet.time_embedding(unet.time_proj(torch.zeros(len(z), dtype=torch.long) + t_image))
    state = {"h": torch.zeros(len(z), D_E), "sites": iter(stream.sites)}
    if fusion == "head":
        state["h"] = e_t + tau

    def site(transformer, image):
        residual, image = image, transformer.norm(image)
        b, _, height, width = image.shape
        if transformer.use_linear_projection:
            p = transformer.proj_in(image.permute(0, 2, 3, 1).reshape(b, height * width, -1))
        else:
            p = transformer.proj_in(image).permute(0, 2, 3, 1).reshape(b, height * width, -1)
        if fusion == "head":
            for block in transformer.transformer_blocks:
                p = block(p, encoder_hidden_states=no_text)
        else:
            p = both_streams(next(state["sites"]), transformer, p)
        if transformer.use_linear_projection:
            image = transformer.proj_out(p).reshape(b, height, width, -1).permute(0, 3, 1, 2)
        else:
            image = transformer.proj_out(p.reshape(b, height, width, -1).permute(0, 3, 1, 2))
        return image + residual

    def both_streams(own, transformer, p):
        q = own.into(state["h"] + e_t + tau).unsqueeze(1)
        for i, block in enumerate(transformer.transformer_blocks):
            p_normed, q_normed = block.norm1(p), (own.attention_norms[i] if has_own_norms else block.norm1)(q)
            both = torch.cat([p_normed, q_normed], dim=1)
            q = q + attention_by_hand(block.attn1, q_normed, both)
            p = p + attention_by_hand(block.attn1, p_normed, both if sees_at_sites else p_normed)
            p = p + attention_by_hand(block.attn2, block.norm2(p), no_text)
            p = p + block.ff(block.norm3(p))
            q = q + own.ffns[i]((own.ffn_norms[i] if has_own_norms else block.norm3)(q))
        state["h"] = own.out(q.squeeze(1))
        return p

    x = unet.conv_in(z)
    for number in (0, 1):
        x = unet.down_blocks[0].resnets[number](x, time)
        x = site(unet.down_blocks[0].attentions[number], x)
    x = unet.down_blocks[0].downsamplers[0](x)
    for resnet in unet.down_blocks[1].resnets:
        x = resnet(x, time)
    x = unet.mid_block.resnets[0](x, time)
    x = site(unet.mid_block.attentions[0], x)
    x = unet.mid_block.resnets[1](x, time)
    p = stream.image_into_head(x.permute(0, 2, 3, 1).reshape(len(z), -1, 16))
    q = stream.query_into_head(state["h"]).unsqueeze(1)
    for layer in stream.head:
        p_normed, q_normed = layer.attention_norm(p), layer.attention_norm(q)
        both = torch.cat([p_normed, q_normed], dim=1)
        q = q + attention_by_hand(layer.attention, q_normed, both)
        p = p + attention_by_hand(layer.attention, p_normed, both if sees_in_head else p_normed)
        q, p = q + layer.ffn(layer.ffn_norm(q)), p + layer.ffn(layer.ffn_norm(p))
    e_0_hat = stream.predictor(stream.head_norm(q.squeeze(1)))
    return e_0_hat / e_0_hat.norm(dim=-1, keepdim=True), x


def predict(stream, unet, z, e_t, t_e):
    """Read the images, and predict one query of each."""
    return stream(unet, stream.read_image(unet, z), e_t, t_e)


def predict_with_features(stream, unet, z, e_t, t_e):
    """Predict, and see what the mid block gives the query head: -> e_0_hat, tokens (b, h*w, ch)."""
    seen = []
    hook = stream.image_into_head.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    e_0_hat = predict(stream, unet, z, e_t, t_e)
    hook.remove()
    (mid,) = seen
    return e_0_hat, mid


def as_tokens(mid):
    """Shapes: (b, ch, h, w) -> (b, h*w, ch)."""
    return mid.flatten(2).transpose(1, 2)


def gradients(unet, stream, value):
    """Gradients of a fixed weighted sum, by parameter name; unused parameters are left out."""
    parameters = dict(unet.named_parameters()) | {f"stream.{n}": w for n, w in stream.named_parameters()}
    weights = torch.linspace(-1, 1, value.numel()).reshape(value.shape)
    found = torch.autograd.grad((value * weights).sum(), list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


@pytest.mark.parametrize("use_linear_projection", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_equals_fig_3_by_hand_in_values_and_gradients(fusion, use_linear_projection):
    unet = toy_unet(use_linear_projection)
    stream = toy_stream(unet, fusion=fusion)
    z, e_t, t_e = toy_inputs()
    by_hand, _ = fig_3_by_hand(unet, stream, z, e_t, t_e, fusion)
    predicted = predict(stream, unet, z, e_t, t_e)
    assert (predicted - by_hand).abs().max() <= 1e-5  # fp32, some twenty layers
    expected, found = gradients(unet, stream, by_hand), gradients(unet, stream, predicted)
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) <= 1e-5


@pytest.mark.parametrize("fusion", ["one_way", "head"])
def test_a_reading_used_again_equals_a_new_one(fusion):
    unet = toy_unet()
    stream = toy_stream(unet, fusion=fusion)
    z, e_t, t_e = toy_inputs(b=3)
    reading = stream.read_image(unet, z)
    for queries in (e_t, e_t.flip(0), torch.zeros_like(e_t)):
        recomputed, _ = fig_3_by_hand(unet, stream, z, queries, t_e, fusion)
        assert (stream(unet, reading, queries, t_e) - recomputed).abs().max() <= 1e-5


def test_image_features_change_with_the_query_in_joint_alone():
    unet = toy_unet()
    z, e_t, t_e = toy_inputs()
    joint = toy_stream(unet, fusion="joint")
    _, mid = predict_with_features(joint, unet, z, e_t, t_e)
    _, mid_other = predict_with_features(joint, unet, z, e_t + 1, t_e)
    assert (mid - mid_other).abs().max() > 1e-4
    one_way = toy_stream(unet, fusion="one_way")
    _, mid = predict_with_features(one_way, unet, z, e_t, t_e)
    _, mid_other = predict_with_features(one_way, unet, z, e_t + 1, t_e)
    assert torch.equal(mid, mid_other)
    _, mid_by_hand = fig_3_by_hand(unet, one_way, z, e_t, t_e, "one_way")
    assert (mid - as_tokens(mid_by_hand)).abs().max() <= 1e-5
    _, mid = fig_3_by_hand(unet, one_way, z, e_t, t_e, "one_way")
    _, mid_other = fig_3_by_hand(unet, one_way, z, e_t + 1, t_e, "one_way")
    assert torch.equal(mid, mid_other)
    stock = {}
    hook = unet.mid_block.register_forward_hook(lambda module, inputs, output: stock.update(mid=output))
    unet(z, torch.zeros(2, dtype=torch.long), torch.zeros(2, 1, 10))
    hook.remove()
    assert (mid - stock["mid"]).abs().max() <= 1e-5  # the image's stream is the bare U-Net's


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_batch_changes_no_answer(fusion):
    unet = toy_unet()
    stream = toy_stream(unet, fusion=fusion)
    z, e_t, t_e = toy_inputs(b=4)
    together = predict(stream, unet, z, e_t, t_e)
    alone = torch.cat([predict(stream, unet, z[i : i + 1], e_t[i : i + 1], t_e[i : i + 1]) for i in range(4)])
    assert (together - alone).abs().max() <= 1e-5  # sums in another order


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_reading_can_be_repeated_concatenated_cut_and_moved(fusion):
    unet = toy_unet()
    stream = toy_stream(unet, fusion=fusion)
    z, e_t, t_e = toy_inputs(b=3)
    reading = stream.read_image(unet, z)
    whole = stream(unet, reading, e_t, t_e)
    joined = ImageReading.cat([reading[:1], reading[torch.tensor([1, 2])]])
    assert torch.equal(stream(unet, joined, e_t, t_e), whole)
    repeated = reading.repeat(2)
    assert len(repeated) == 6
    twice = stream(unet, repeated, e_t.repeat_interleave(2, 0), t_e.repeat_interleave(2, 0))
    assert (twice[::2] - whole).abs().max() <= 1e-5
    assert {tensor.dtype for tensor in reading.to(dtype=torch.float16).tensors} == {torch.float16}
    with pytest.raises(ValueError, match="got no readings"):
        ImageReading.cat([])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_reading_keeps_the_shape_of_the_latents(fusion):
    unet = toy_unet()
    stream = toy_stream(unet, fusion=fusion)
    square, wide = (stream.read_image(unet, torch.zeros(2, 3, *sides)) for sides in ((4, 4), (2, 8)))
    assert (square.latent_shape, wide.latent_shape) == ((3, 4, 4), (3, 2, 8))
    for same in (wide[:1], wide.repeat(2), wide.to(dtype=torch.float16), ImageReading.cat([wide, wide])):
        assert same.latent_shape == (3, 2, 8)
    with pytest.raises(ValueError, match=r"latents of shapes \(3, 2, 8\) and \(3, 4, 4\)\. Expected one shape"):
        ImageReading.cat([square, wide])


def test_gradient_checkpointing_changes_no_gradient():
    unet = toy_unet()
    for fusion in FUSIONS:
        stream = toy_stream(unet, fusion=fusion)
        z, e_t, t_e = toy_inputs()
        unet.disable_gradient_checkpointing()
        plain = gradients(unet, stream, predict(stream, unet, z, e_t, t_e))
        unet.enable_gradient_checkpointing()
        unet.train()
        checkpointed = gradients(unet, stream, predict(stream, unet, z, e_t, t_e))
        assert max(float((plain[n] - checkpointed[n]).abs().max()) for n in plain) <= 1e-6


def test_regression_uses_no_noise_and_no_time():
    unet = toy_unet()
    assert toy_stream(unet).has_text_diffusion
    stream = toy_stream(unet, text_chain="none")
    assert not stream.has_text_diffusion
    z, e_t, t_e = toy_inputs()
    assert torch.equal(predict(stream, unet, z, e_t, t_e), predict(stream, unet, z, None, None))
    assert not any("time" in name for name, _ in stream.named_parameters())


def test_image_timestep_query_gives_the_image_the_query_s_step():
    unet = toy_unet()
    stream = toy_stream(unet, fusion="joint", image_timestep="query")
    z, e_t, t_e = toy_inputs()
    e_0_hat, mid = predict_with_features(stream, unet, z, e_t, t_e)
    by_hand, mid_by_hand = fig_3_by_hand(unet, stream, z, e_t, t_e, "joint", t_image=t_e)
    mid_by_hand = as_tokens(mid_by_hand)
    assert max((e_0_hat - by_hand).abs().max(), (mid - mid_by_hand).abs().max()) <= 1e-5  # fp32, some twenty layers
    _, mid_at_zero = fig_3_by_hand(unet, stream, z, e_t, t_e, "joint")
    assert (mid - as_tokens(mid_at_zero)).abs().max() > 1e-4


def test_query_ffn_can_start_as_a_copy_of_the_image_s():
    unet = toy_unet()
    stream = toy_stream(unet, query_ffn="copy")
    theirs = unet.down_blocks[0].attentions[0].transformer_blocks[0].ff.state_dict()
    ours = stream.sites[0].ffns[0].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_query_that_enters_at_the_head_has_no_layers_at_the_sites():
    unet = toy_unet()
    stream = toy_stream(unet, fusion="head", query_ffn="copy")
    assert not list(stream.sites.parameters())
    z, e_t, t_e = toy_inputs()
    found = gradients(unet, stream, predict(stream, unet, z, e_t, t_e))
    unused = {name for name, _ in stream.named_parameters() if f"stream.{name}" not in found}
    assert unused == {"log_logit_scale"}, "DDP refuses weights without a gradient; the loss uses this one"


@pytest.mark.parametrize("fusion", FUSIONS)
def test_shared_norms_are_the_image_s(fusion):
    unet = toy_unet()
    generator = torch.Generator().manual_seed(0)
    for name, weight in unet.named_parameters():  # each norm of its own, which new ones are not
        if ".norm" in name and "transformer_blocks" in name:
            weight.data += torch.randn(weight.shape, generator=generator)
    stream = toy_stream(unet, fusion=fusion, query_norms="shared")
    assert not any("sites" in name and "norm" in name for name, _ in stream.named_parameters())
    z, e_t, t_e = toy_inputs()
    by_hand, _ = fig_3_by_hand(unet, stream, z, e_t, t_e, fusion)
    assert (predict(stream, unet, z, e_t, t_e) - by_hand).abs().max() <= 1e-5  # fp32, some twenty layers


def test_encoder_half_parameters_leave_out_the_decoder():
    unet = toy_unet()
    encoder = {id(weight) for weight in unet_encoder_parameters(unet)}
    names = {name.split(".")[0] for name, weight in unet.named_parameters() if id(weight) not in encoder}
    assert names == {"up_blocks", "conv_norm_out", "conv_out"}


def test_saved_stream_is_the_same_stream(tmp_path):
    unet = toy_unet()
    sizes = {"hidden_size": 10, "intermediate_size": 8, "num_attention_heads": 1}
    projection = ClipProjection({"d_e": D_E, "num_layers": 0, "hidden_act": "gelu", "layer_norm_eps": 1e-5, **sizes})
    projection.weight.copy_(torch.randn(D_E, 10, generator=torch.Generator()))
    stream = QueryStream.for_unet(unet, D_E, toy_config(), "clip", projection)
    assert torch.equal(stream.clip_projection.weight, projection.weight)
    stream.save_pretrained(tmp_path)
    loaded = QueryStream.from_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert all(torch.equal(loaded.state_dict()[n], tensor) for n, tensor in stream.state_dict().items())
    z, e_t, t_e = toy_inputs()
    assert torch.equal(predict(loaded, unet, z, e_t, t_e), predict(stream.eval(), unet, z, e_t, t_e))


def toy_config():
    return QueryStreamConfig(num_head_layers=1, head_width=16, head_dim=8)


def test_defaults_are_those_of_the_config_and_a_saved_config_states_every_setting(tmp_path):
    settings = QueryStreamConfig().model_dump(exclude={"query_ffn"})
    defaults = {name: p.default for name, p in inspect.signature(QueryStream).parameters.items()}
    assert {name: defaults[name] for name in settings} == settings
    assert get_args(QueryStreamConfig.model_fields["fusion"].annotation) == tuple(FUSIONS)
    toy_stream(toy_unet()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).keys() >= defaults.keys()


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("text_chain", ["diffusion", "none"])
def test_denoise_yields_every_step_of_the_text_diffusion_or_the_one_of_a_regression(text_chain, num_steps):
    unet = toy_unet()
    stream = toy_stream(unet, text_chain=text_chain)
    z, e_T, _ = toy_inputs()
    seen, unseen = stream.read_image(unet, z), stream.read_image(unet, torch.zeros_like(z))
    steps = list(stream.denoise(unet, seen, unseen, text_diffusion_scheduler(), e_T, num_steps, 4.0))
    assert len(steps) == (num_steps if text_chain == "diffusion" else 1)
    query = (steps[0].e_t, torch.full((2,), steps[0].t_e)) if text_chain == "diffusion" else (None, None)
    expected = F.normalize(4 * stream(unet, seen, *query) - 3 * stream(unet, unseen, *query), dim=-1)
    assert (steps[0].e_0_hat - expected).abs().max() <= 1e-6
    assert torch.equal(steps[0].e_t, e_T) == (text_chain == "diffusion")


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.5, float("nan")])
def test_stream_refuses_gamma_outside_its_range(gamma):
    with pytest.raises(ValueError, match="gamma"):
        toy_stream(toy_unet(), gamma=gamma)


def test_stream_refuses_what_cannot_work():
    unet = toy_unet()
    with pytest.raises(ValueError, match=r"`image_timestep` is 'query' with `fusion` = 'one_way'"):
        toy_stream(unet, image_timestep="query")
    with pytest.raises(ValueError, match=r"`head_width` is 20 and `head_dim` 8"):
        toy_stream(unet, head_width=20)
    z, e_t, t_e = toy_inputs()
    stream = toy_stream(unet)
    with pytest.raises(ValueError, match=r"`e_t` has shape \(1, 12\) and `t_e` \(2,\).*Expected \(2, 12\) and \(2,\)"):
        predict(stream, unet, z, e_t[:1], t_e)
    with pytest.raises(ValueError, match=r"`e_t` has shape None"):
        predict(stream, unet, z, None, None)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"addition_embed_type": "text_time"}, "`addition_embed_type` = 'text_time'"),
        ({"num_class_embeds": 10}, "`num_class_embeds` = 10"),
        ({"center_input_sample": True}, "`center_input_sample` = True"),
        ({"attention_type": "gated"}, "`attention_type` = 'gated'"),
    ],
)
def test_stream_refuses_other_unets(settings, found):
    unet = toy_unet()
    unet.register_to_config(**settings)
    with pytest.raises(ValueError, match=rf"The U-Net has .* \({found}\), which .* Expected Stable Diffusion 1.x or"):
        toy_stream(unet)


def test_stream_leaves_gradient_checkpointing_to_the_unet():
    with pytest.raises(ValueError, match="QueryStream does not support gradient checkpointing"):
        toy_stream(toy_unet()).enable_gradient_checkpointing()


def test_logit_scale_is_clamped_as_clip_s():
    stream = toy_stream(toy_unet())
    assert stream.logit_scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    torch.nn.init.constant_(stream.log_logit_scale, 9.0)
    assert stream.logit_scale.item() == pytest.approx(100, rel=1e-6)  # the bound's logarithm is rounded to float32
    assert stream.log_logit_scale.item() == 9  # looking changes no weight


def test_logit_scale_has_a_gradient_at_its_bound():
    stream = toy_stream(toy_unet())
    torch.nn.init.constant_(stream.log_logit_scale, 9.0)
    clamp_log_logit_scale_(stream.log_logit_scale)
    assert stream.log_logit_scale.item() == pytest.approx(math.log(100), rel=1e-6)
    stream.logit_scale.backward()
    assert stream.log_logit_scale.grad.item() == pytest.approx(100, rel=1e-6)  # the derivative of exp is exp


def test_signal_scale_is_gamma_or_gamma_root_d():
    unet = toy_unet()
    assert toy_stream(unet, gamma=0.5).signal_scale == 0.5
    assert toy_stream(unet, gamma=0.5, query_scale="sqrt_d").signal_scale == pytest.approx(0.5 * math.sqrt(D_E))


def test_the_network_gets_the_query_as_it_is_or_scaled_to_one_length():
    unet, scheduler = toy_unet(), text_diffusion_scheduler()
    _, e_t, t_e = toy_inputs()
    assert toy_stream(unet).network_input(scheduler, e_t, t_e) is e_t
    for query_scale, square in (("unit", 0.25 / D_E), ("sqrt_d", 0.25)):
        stream = toy_stream(unet, gamma=0.5, query_scale=query_scale, query_input="normalised")
        found = stream.network_input(scheduler, e_t, t_e)
        for i, t in enumerate(t_e.tolist()):
            alpha = float(scheduler.alphas_cumprod[t])
            torch.testing.assert_close(found[i], e_t[i] / math.sqrt(alpha * square + 1 - alpha))


@pytest.mark.parametrize("is_zero_snr", [False, True])
def test_denoising_scales_what_the_network_gets_and_not_the_query_itself(is_zero_snr):
    unet = toy_unet()
    scheduler = text_diffusion_scheduler(config=QuerySchedulerConfig(rescale_betas_zero_snr=is_zero_snr))
    stream = toy_stream(unet, gamma=0.5, query_scale="sqrt_d", query_input="normalised")
    z, e_T, _ = toy_inputs()
    reading = stream.read_image(unet, z)
    first, second = stream.denoise(unet, reading, reading, scheduler, e_T, 2, 1.0)
    for step in (first, second):
        alpha = float(scheduler.alphas_cumprod[step.t_e])
        scaled = step.e_t / math.sqrt(alpha * 0.25 + 1 - alpha)
        expected = stream(unet, reading, scaled, torch.full((2,), step.t_e))
        assert (step.e_0_hat - expected).abs().max() <= 1e-6
    assert torch.equal(first.e_t, e_T)


def test_prediction_has_unit_length():
    unet = toy_unet()
    predicted = predict(toy_stream(unet), unet, *toy_inputs())
    assert torch.allclose(predicted, F.normalize(predicted, dim=-1), atol=1e-6)  # float32 rounding
