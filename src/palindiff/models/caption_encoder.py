"""A text encoder that takes part in training: captions' tokens to c and e at each step, with gradients if it learns.

Here: the module that a trained or uncached tower is. Not here: encoding itself (`captions.py`).
"""

from typing import Self

import torch
from torch import Tensor, nn

from palindiff.models.text_encoder import EncodedCaptions, check_tower, encode_tokens, tokenize_captions
from palindiff.pretrained.text_encoders import TextEncoder


class CaptionEncoder(nn.Module):
    """A tower as a module; what of it the query stream keeps (projection, last layers) stays the stream's.

    Source: DiffDis Table 5, whose first row trains the text encoder.
    Departs: the projection stays frozen, and dropout off (CLIP has none); gradients reach the tower through c, and
             through e, noised and as target.
    """

    empty_ids: Tensor
    empty_mask: Tensor

    def __init__(self, tower: TextEncoder, is_trained: bool) -> None:
        """is_trained: whether the tower learns; otherwise it stays frozen."""
        super().__init__()
        check_tower(tower)
        self.tower, self.is_trained = tower, is_trained  # no module: its tail is registered in the query stream
        self.text_encoder = tower.text_encoder.requires_grad_(is_trained)
        empty = tokenize_captions([""], tower.tokenizer)
        self.register_buffer("empty_ids", empty.input_ids, persistent=False)
        self.register_buffer("empty_mask", empty.attention_mask.bool(), persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: a sentence encoder's dropout draws numbers that no resumed run could draw again."""
        return super().train(False)

    def forward(self, ids: Tensor, mask: Tensor) -> EncodedCaptions:
        """Encode a batch's captions, and behind them the empty one.

        Shapes: ids (b, l) int64; mask (b, l) bool -> c (b + 1, l, d_c), mask (b + 1, l), e (b + 1, d_e).
        """
        ids, mask = torch.cat([ids, self.empty_ids]), torch.cat([mask, self.empty_mask])
        with torch.set_grad_enabled(self.is_trained and torch.is_grad_enabled()):
            return encode_tokens(ids, mask, self.tower)
