"""Fusion `joint`, the paper's: image and query attend to each other, so every query runs the encoder half again.

Here: the query predicted from latents. Not here: the layers (`query_layers.py`).
"""

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor

from palindiff.models.query_layers import QueryLayers, masked_text
from palindiff.models.unet_encoder import Carry, attend, image_block, keys_values, unet_encoder

READS_ONCE, HAS_SITES = False, True


def read_image(layers: QueryLayers, unet: UNet2DConditionModel, z: Tensor) -> tuple[Tensor, ...]:
    """Keep the latents: everything else depends on the query."""
    return (z,)


def predict(
    layers: QueryLayers, unet: UNet2DConditionModel, tensors: tuple[Tensor, ...], drive: Tensor, t_image: Tensor | None
) -> Tensor:
    """Run the encoder half with query and image attending to each other.

    Source: DiffDis Fig. 3.
    Shapes: tensors: z (b, ch, h, w) alone; drive (b, d_e); t_image (b,) int64, None for 0 -> (b, head_width).
    Departs: own LayerNorms for the query (decisions row 13).
    """
    z = tensors[0].to(unet.dtype)

    def visit(site: int, transformer: Transformer2DModel, tokens: Tensor, context: Tensor, carry: Carry):  # type: ignore[no-untyped-def]
        """Run a site's blocks on query and image together; the carry is the query, h (b, d_e)."""
        own, (h,) = layers.sites[site], carry
        q = own.into(h + drive)[:, None]  # (b, d_e) -> (b, 1, ch)
        for number, block in enumerate(transformer.transformer_blocks):
            image = block.norm1(tokens)
            normed = torch.cat([own.normed(block, number, q).to(image.dtype), image], dim=1)  # (b, 1 + n, ch)
            attended = attend(block.attn1, normed, *keys_values(block.attn1, normed))
            q = own.feed_forward(block, number, q + attended[:, :1].to(q.dtype))
            tokens = image_block(block, tokens, attended[:, 1:], context)
        return tokens, (own.out(q[:, 0]),)

    t = torch.zeros(len(z), dtype=torch.int64, device=z.device) if t_image is None else t_image
    mid, (h,) = unet_encoder(unet, z, t, masked_text(unet, z), visit, (torch.zeros_like(drive),))
    return layers.run_head(layers.query_into_head(h)[:, None], layers.image_tokens(mid))
