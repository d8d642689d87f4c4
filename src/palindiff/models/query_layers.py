"""Layers of the query stream, which every fusion uses: at the U-Net's attention sites, and in the query head.

Not here: how image and query attend to each other (`one_way.py`, `joint.py`).
"""

from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from palindiff.models.unet_encoder import as_weights, attend, keys_values


class SiteQuery(nn.Module):
    """The query's layers at one attention site: a projection to its width, norms and an FFN per block, and back."""

    def __init__(self, d_e: int, ch: int, num_blocks: int, has_own_norms: bool) -> None:
        super().__init__()
        self.has_own_norms = has_own_norms
        self.into = nn.Linear(d_e, ch)
        norms = [nn.LayerNorm(ch) if has_own_norms else nn.Identity() for _ in range(2 * num_blocks)]
        self.attention_norms, self.ffn_norms = nn.ModuleList(norms[:num_blocks]), nn.ModuleList(norms[num_blocks:])
        self.ffns = nn.ModuleList(FeedForward(ch, activation_fn="geglu") for _ in range(num_blocks))
        self.out = nn.Linear(ch, d_e)

    def normed(self, block: BasicTransformerBlock, number: int, q: Tensor) -> Tensor:
        """Normalise the query before self-attention, with its own or the image's norm; `number` is the block's."""
        norm = self.attention_norms[number] if self.has_own_norms else block.norm1
        return norm(as_weights(norm, q))

    def feed_forward(self, block: BasicTransformerBlock, number: int, q: Tensor) -> Tensor:
        """Add the query's FFN; `number` is the block's."""
        norm = self.ffn_norms[number] if self.has_own_norms else block.norm3
        return q + self.ffns[number](norm(as_weights(norm, q)).to(q.dtype))

    def copy_image_ffns(self, transformer: Transformer2DModel) -> None:
        """Start the query's FFNs from the image's weights."""
        for ffn, block in zip(self.ffns, transformer.transformer_blocks, strict=True):
            ffn.load_state_dict(block.ff.state_dict())


class HeadLayer(nn.Module):
    """One pre-norm transformer block of the query head; image tokens and the query share its weights."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads=width // head_dim, dim_head=head_dim)
        self.ffn = FeedForward(width, activation_fn="geglu")

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Shapes: tokens (b, m, width), which attend; keys, values (b, heads, n, head_dim) -> (b, m, width)."""
        tokens = tokens + attend(self.attention, self.attention_norm(tokens), keys, values)
        return tokens + self.ffn(self.ffn_norm(tokens))


class QueryLayers(NamedTuple):
    """The layers that a fusion runs; the image's are those of the U-Net."""

    sites: list[SiteQuery]  # none where a fusion has no use for them
    image_into_head: nn.Linear
    query_into_head: nn.Linear
    head: list[HeadLayer]

    def image_tokens(self, mid: Tensor) -> Tensor:
        """Bring the mid features into the query head: (b, ch, h, w) -> (b, h*w, head_width)."""
        return self.image_into_head(as_weights(self.image_into_head, mid.flatten(2).transpose(1, 2)))

    def run_head(self, query: Tensor, image: Tensor) -> Tensor:
        """Run the query head on both, attending to each other.

        Source: DiffDis §3.3.
        Shapes: query (b, 1, head_width); image (b, n, head_width) -> the query (b, head_width).
        """
        tokens = torch.cat([query, image], dim=1)
        for layer in self.head:
            tokens = layer(tokens, *keys_values(layer.attention, layer.attention_norm(tokens)))
        return tokens[:, 0]


def masked_text(unet: UNet2DConditionModel, z: Tensor) -> Tensor:
    """Make the text condition while an image is named: one zero token (decisions row 8).

    Shapes: z (b, ch, h, w) -> (b, 1, d_c).
    """
    return z.new_zeros(len(z), 1, unet.config.cross_attention_dim)
