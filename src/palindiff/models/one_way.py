"""Fusion `one_way`: the query attends to the image and not the reverse, so an image is read once for all queries.

Here: what is read of an image, and the query predicted from it. Not here: the layers (`query_layers.py`).
"""

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor

from palindiff.models.query_layers import QueryLayers, masked_text
from palindiff.models.unet_encoder import Carry, attend, attention_sites, image_block, keys_values, unet_encoder

READS_ONCE, HAS_SITES = True, True


def read_image(layers: QueryLayers, unet: UNet2DConditionModel, z: Tensor) -> tuple[Tensor, ...]:
    """Compute keys and values of the image at every transformer block and head layer, which no query changes.

    Source: ours.
    Shapes: z (b, ch, h, w) -> keys, values (b, heads, n, d) of the first block, of the second, ...
    """

    def visit(site: int, transformer: Transformer2DModel, tokens: Tensor, context: Tensor, carry: Carry):  # type: ignore[no-untyped-def]
        """Run a site's blocks on the image; the carry is every block's keys and values so far."""
        for block in transformer.transformer_blocks:
            normed = block.norm1(tokens)
            keys, values = keys_values(block.attn1, normed)
            tokens = image_block(block, tokens, attend(block.attn1, normed, keys, values), context)
            carry = (*carry, keys, values)
        return tokens, carry

    t_zero = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    mid, carry = unet_encoder(unet, z, t_zero, masked_text(unet, z), visit)
    tokens = layers.image_tokens(mid)
    for layer in layers.head:
        keys, values = keys_values(layer.attention, layer.attention_norm(tokens))
        carry = (*carry, keys, values)
        if layer is not layers.head[-1]:  # the last layer's output at the image's tokens is not used
            tokens = layer(tokens, keys, values)
    return carry


def predict(
    layers: QueryLayers, unet: UNet2DConditionModel, tensors: tuple[Tensor, ...], drive: Tensor, t_image: Tensor | None
) -> Tensor:
    """Run the query through every site and the head; it attends to the image and not the reverse.

    Source: DiffDis Fig. 3.
    Shapes: tensors as `read_image` returns them; drive (b, d_e); t_image is not used -> (b, head_width).
    Departs: the image's tokens do not see the query, so one reading serves every step and every query.
    """
    h, pairs = torch.zeros_like(drive), zip(tensors[::2], tensors[1::2], strict=True)
    for site, transformer in zip(layers.sites, attention_sites(unet), strict=True):
        q = site.into(h + drive)[:, None]  # (b, d_e) -> (b, 1, ch)
        for number, block in enumerate(transformer.transformer_blocks):
            normed, (keys, values) = site.normed(block, number, q), next(pairs)
            own_keys, own_values = keys_values(block.attn1, normed)
            attended = attend(block.attn1, normed, _join(own_keys, keys), _join(own_values, values))
            q = q + attended.to(q.dtype)
            q = site.feed_forward(block, number, q)
        h = site.out(q[:, 0])  # (b, 1, ch) -> (b, d_e)
    q = layers.query_into_head(h)[:, None]
    for layer, (keys, values) in zip(layers.head, pairs, strict=True):
        own_keys, own_values = keys_values(layer.attention, layer.attention_norm(q))
        q = layer(q, _join(own_keys, keys), _join(own_values, values))
    return q[:, 0]


def _join(own: Tensor, image: Tensor) -> Tensor:
    return torch.cat([own, image.to(own.dtype)], dim=2)  # (b, heads, 1, d), (b, heads, n, d) -> (b, heads, 1 + n, d)
