"""The encoder half of a U-Net, with access to its attention sites: conv_in, down blocks, mid block.

Here: the image's stream, exactly as diffusers computes it, and the attention that both streams share.
Not here: the second stream (`query_stream.py`), which takes part through `visit`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Carry = tuple[Tensor, ...]
VisitSite = Callable[[int, Transformer2DModel, Tensor, Tensor, Carry], tuple[Tensor, Carry]]
"""(site number, its layers, image tokens (b, n, ch), context, carry) -> tokens after the site, carry for the next"""

SETTINGS = {
    "addition_embed_type": (None, "added embeddings, as Stable Diffusion XL and unCLIP have"),
    "class_embed_type": (None, "class embeddings, as upscalers and unCLIP have"),
    "num_class_embeds": (None, "class embeddings, as upscalers have"),
    "label_emb": (None, "added or class embeddings, as Stable Diffusion XL, unCLIP and upscalers have"),  # in one file
    "encoder_hid_dim_type": (None, "conditions besides the text"),
    "time_cond_proj_dim": (None, "a guidance scale among its inputs, as latent consistency models have"),
    "time_embedding_act_fn": (None, "an activation after its time embedding"),
    "attention_type": ("default", "further attention layers, as GLIGEN has"),
    "center_input_sample": (False, "centered latents"),
    "dual_cross_attention": (False, "two transformers at each attention site"),
    "only_cross_attention": (False, "no self-attention"),
}
"""The value of each setting that the encoder half below supports, besides None, and what another value means."""

BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D", "UNetMidBlock2DCrossAttn"}
WORKS = "Expected Stable Diffusion 1.x or 2.x for text to image. Start from such a base model"


def unet_encoder(
    unet: UNet2DConditionModel, z: Tensor, t: Tensor, context: Tensor, visit: VisitSite, carry: Carry = ()
) -> tuple[Tensor, Carry]:
    """Run conv_in, the down blocks and the mid block; `visit` runs the transformer blocks of every attention site.

    Source: DiffDis Fig. 2; the image's stream is `UNet2DConditionModel.forward` up to the mid block.
    Shapes: z (b, ch, h, w); t (b,) int64; context (b, l, d_c) -> mid features (b, ch_mid, h_mid, w_mid), last carry.
    Departs: with the U-Net's gradient checkpointing, a resnet and its site are checkpointed together.
    """
    time = unet.time_embedding(unet.get_time_embed(sample=z, timestep=t))
    hidden, site = unet.conv_in(z), 0
    for block in unet.down_blocks:
        transformers = getattr(block, "attentions", [None] * len(block.resnets))
        for resnet, transformer in zip(block.resnets, transformers, strict=True):
            hidden, carry = _visit(unet, resnet, transformer, site, hidden, time, context, visit, carry)
            site += transformer is not None
        for downsampler in block.downsamplers or ():
            hidden = downsampler(hidden)
    hidden = unet.mid_block.resnets[0](hidden, time)
    for transformer, resnet in zip(unet.mid_block.attentions, unet.mid_block.resnets[1:], strict=True):
        hidden, carry = _visit(unet, None, transformer, site, hidden, time, context, visit, carry)
        hidden, site = resnet(hidden, time), site + 1
    return hidden, carry


def attention_sites(unet: UNet2DConditionModel) -> Iterator[Transformer2DModel]:
    """Yield the transformers of the encoder half in the order in which they run."""
    for block in (*unet.down_blocks, unet.mid_block):
        yield from getattr(block, "attentions", ())


def site_sizes(unet: UNet2DConditionModel) -> dict[str, Any]:
    """Return the sizes of the encoder half that a query stream is made for, under the names of its settings."""
    sites = list(attention_sites(unet))
    return {
        "site_widths": [transformer.inner_dim for transformer in sites],
        "site_num_blocks": [len(transformer.transformer_blocks) for transformer in sites],
        "mid_channels": unet.mid_block.resnets[-1].out_channels,
    }


def unet_encoder_parameters(unet: UNet2DConditionModel) -> Iterator[nn.Parameter]:
    """Yield the weights of the encoder half; only generation uses and trains the others, the decoder half."""
    for part in (unet.time_embedding, unet.conv_in, unet.down_blocks, unet.mid_block):
        yield from part.parameters()


def square_side(sample_size: int | Sequence[int]) -> int:
    """Return the side of the square latents that a U-Net was made for, from its setting, a number or two.

    Raises: ValueError if they are not square.
    """
    sides = (sample_size,) if isinstance(sample_size, int) else tuple(sample_size)
    if len(set(sides)) != 1:
        raise ValueError(
            f"The U-Net's `sample_size` is {sides}. Expected one side: images are fitted to squares. "
            "Encode images with the VAE and pass their latents."
        )
    return sides[0]


def cross_attention_without_text(unet: UNet2DConditionModel) -> Iterator[nn.Parameter]:
    """Yield the weights of the encoder half that get no gradient if the context is one zero token.

    Cross-attention then adds only its output bias, which does get a gradient and is not among them.
    """
    for transformer in attention_sites(unet):
        for block in transformer.transformer_blocks:
            for part in (block.norm2, block.attn2.to_q, block.attn2.to_k, block.attn2.to_v):
                yield from part.parameters()
            output = block.attn2.to_out[0].named_parameters()  # with LoRA, its two matrices too
            yield from (weight for name, weight in output if not name.endswith("bias"))


def image_block(block: BasicTransformerBlock, tokens: Tensor, attended: Tensor, context: Tensor) -> Tensor:
    """Run the rest of a transformer block of the image's stream after self-attention: cross-attention and FFN.

    Shapes: tokens, attended (b, n, ch); context (b, l, d_c) -> (b, n, ch).
    """
    tokens = tokens + attended
    tokens = tokens + block.attn2(block.norm2(tokens), encoder_hidden_states=context)
    return tokens + block.ff(block.norm3(tokens))


def keys_values(attention: Attention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes: tokens (b, n, ch), normed -> keys, values (b, heads, n, ch / heads)."""
    tokens = as_weights(attention.to_k, tokens)
    return _by_head(attention, attention.to_k(tokens)), _by_head(attention, attention.to_v(tokens))


def attend(attention: Attention, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend from tokens to given keys and values with the query and output weights of a layer.

    Shapes: tokens (b, m, ch), normed; keys, values (b, heads, n, ch / heads) -> (b, m, ch).
    """
    queries = _by_head(attention, attention.to_q(as_weights(attention.to_q, tokens)))
    attended = F.scaled_dot_product_attention(queries, keys, values)
    return attention.to_out[0](attended.transpose(1, 2).flatten(2))  # (b, heads, m, d) -> (b, m, heads * d)


def as_weights(layer: nn.Module, tokens: Tensor) -> Tensor:
    """Convert to the type of a layer's weights: U-Net and query stream may have different ones, and meet here.

    Under autocast it changes no number: the layer converts to the type of autocast anyway.
    """
    return tokens.to(dtype=layer.weight.dtype)  # type: ignore[arg-type]  # no layer without weights


def check_unet(config: Mapping[str, Any], subject: str = "The U-Net") -> None:
    """Refuse the config of a U-Net whose encoder half has layers or inputs that Stable Diffusion's does not have.

    Raises: ValueError; `subject` is what it calls the U-Net.
    """
    found = [
        f"{meaning} (`{name}` = {config[name]!r})"
        for name, (supported, meaning) in SETTINGS.items()
        if config.get(name) not in (None, supported) and not isinstance(config[name], list | tuple)
    ]
    kinds = {*config.get("down_block_types", ()), config.get("mid_block_type", "UNetMidBlock2DCrossAttn")}
    found += [f"blocks of type `{kind}`" for kind in sorted(map(str, kinds - BLOCKS))]
    if found:
        raise ValueError(f"{subject} has {' and '.join(found)}, which naming does not support. {WORKS}.")


def _visit(unet, resnet, transformer, site, hidden, time, context, visit, carry):  # type: ignore[no-untyped-def]
    """Run a resnet and the transformer after it, either of which may be missing."""

    def run(hidden: Tensor, time: Tensor, context: Tensor, *carry: Tensor) -> tuple[Tensor, Carry]:
        if resnet is not None:
            hidden = resnet(hidden, time)
        if transformer is None:
            return hidden, carry
        tokens = _tokens_in(transformer, hidden)
        tokens, carry = visit(site, transformer, tokens, context, carry)
        return _tokens_out(transformer, tokens, hidden), carry

    if torch.is_grad_enabled() and unet.is_gradient_checkpointing:
        return checkpoint(run, hidden, time, context, *carry, use_reentrant=False)
    return run(hidden, time, context, *carry)


def _tokens_in(transformer: Transformer2DModel, hidden: Tensor) -> Tensor:
    hidden = transformer.norm(hidden)
    if transformer.use_linear_projection:
        return transformer.proj_in(hidden.flatten(2).transpose(1, 2))  # (b, ch, h, w) -> (b, h*w, ch)
    return transformer.proj_in(hidden).flatten(2).transpose(1, 2)  # (b, ch, h, w) -> (b, h*w, ch)


def _tokens_out(transformer: Transformer2DModel, tokens: Tensor, residual: Tensor) -> Tensor:
    size = residual.shape[2:]
    if transformer.use_linear_projection:
        hidden = transformer.proj_out(tokens).transpose(1, 2).unflatten(2, size)  # (b, h*w, ch) -> (b, ch, h, w)
    else:
        hidden = transformer.proj_out(tokens.transpose(1, 2).unflatten(2, size).contiguous())
    return hidden.contiguous() + residual


def _by_head(attention: Attention, tokens: Tensor) -> Tensor:
    return tokens.unflatten(2, (attention.heads, -1)).transpose(1, 2)  # (b, n, ch) -> (b, heads, n, ch / heads)
