"""Fusion `head`: the query meets the image in the query head alone, so an image is read once for all queries.

Here: the mid features that are read, and the query predicted from them. Not here: the layers (`query_layers.py`).
"""

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor

from palindiff.models.query_layers import QueryLayers, masked_text
from palindiff.models.unet_encoder import Carry, unet_encoder

READS_ONCE, HAS_SITES = True, False


def read_image(layers: QueryLayers, unet: UNet2DConditionModel, z: Tensor) -> tuple[Tensor, ...]:
    """Compute the mid features, at the width of the query head; no query changes them.

    Source: ours, for "without deep fusion blocks" in the caption of DiffDis Table 6 (decisions row 23).
    Shapes: z (b, ch, h, w) -> (b, h_mid * w_mid, head_width) alone.
    """

    def visit(site: int, transformer: Transformer2DModel, tokens: Tensor, context: Tensor, carry: Carry):  # type: ignore[no-untyped-def]
        """Run a site's blocks on the image alone."""
        for block in transformer.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states=context)
        return tokens, carry

    t_zero = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    mid, _ = unet_encoder(unet, z, t_zero, masked_text(unet, z), visit)
    return (layers.image_tokens(mid),)


def predict(
    layers: QueryLayers, unet: UNet2DConditionModel, tensors: tuple[Tensor, ...], drive: Tensor, t_image: Tensor | None
) -> Tensor:
    """Run the query head on query and image, which attend to each other.

    Source: DiffDis §3.3.
    Shapes: tensors as `read_image` returns them; drive (b, d_e); t_image is not used -> (b, head_width).
    """
    query = layers.query_into_head(drive)[:, None]
    return layers.run_head(query, tensors[0].to(query.dtype))
