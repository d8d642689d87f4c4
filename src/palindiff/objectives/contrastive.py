"""The contrastive objective: an image encoder and a text encoder, matched over the global batch.

Here: CLIP's training step. Not here: the loss itself (`alignment.py`), the encoders (`models/image_encoder.py`,
`models/text_encoder.py`).
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from palindiff.data.images import to_pixels
from palindiff.models.image_encoder import ImageEncoder
from palindiff.models.logit_scale import MAX_LOGIT_SCALE, bounded, clamp_log_logit_scale_
from palindiff.models.text_encoder import TextEncoder
from palindiff.objectives.alignment import global_alignment_loss
from palindiff.objectives.gradient_cache import in_chunks


class ContrastiveConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How images and captions are matched."""

    name: Literal["contrastive"] = "contrastive"  # chooses the trainer
    logit_scale: float = Field(1 / 0.07, gt=0, le=MAX_LOGIT_SCALE)  # initial value of the learned κ


class ContrastiveObjective(nn.Module):
    """Image and text embeddings of a batch under the symmetric cross-entropy of CLIP."""

    def __init__(
        self,
        image_encoder: ImageEncoder,
        config: ContrastiveConfig,
        text_encoder: TextEncoder | None = None,
        grad_cache_size: int = 0,
    ) -> None:
        """text_encoder: encodes the captions of each batch; None takes batches that bring their embeddings.

        grad_cache_size: rows whose activations are in memory at once; 0: those of all.
        """
        super().__init__()
        self.grad_cache_size = grad_cache_size
        self.image_encoder, self.text_encoder, self.config = image_encoder, text_encoder, config
        self.text_projection = None if text_encoder is None else text_encoder.projection  # not a part of the encoder
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale)))

    @property
    def logit_scale(self) -> Tensor:
        """κ of the loss, () float32, at most MAX_LOGIT_SCALE."""
        return bounded(self.log_logit_scale).exp()

    def draw(self, b: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw nothing: views and captions are all that is random, and the training set chooses them."""
        return {}

    def forward(self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Match images and captions of the global batch both ways.

        Source:  CLIP (Radford et al., 2021, Fig. 3); the first loss of UniDiff, which its abstract names ITC.
        Shapes:  batch: x (b, 3, H, W) uint8; e_0 (b, d) unit, or ids (b, l) int64 and mask (b, l) bool, which the text
                 encoder encodes; caption_id (b,) int64 -> () float32 each.
        Departs: equal captions are positives of each other and share the weight (decisions row 17).
        """
        (e_hat,) = in_chunks(self.embed_images, [batch["x"]], self.grad_cache_size)
        if self.text_encoder is None:
            e = batch["e_0"]
        else:
            (e,) = in_chunks(self._embed_captions, [batch["ids"], batch["mask"]], self.grad_cache_size)
        loss = self.match(e_hat, e, batch["caption_id"])
        return {"loss": loss, "contrastive": loss.detach()}

    def embed_images(self, x: Tensor) -> tuple[Tensor]:
        """Shapes: x (b, 3, H, W) uint8 -> v (b, d) unit."""
        return (self.image_encoder(to_pixels(x)),)

    def _embed_captions(self, ids: Tensor, mask: Tensor) -> tuple[Tensor]:
        assert self.text_encoder is not None, "batches bring embeddings where there is no text encoder"
        return (self.text_encoder(ids, mask).e,)

    def match(self, e_hat: Tensor, e: Tensor, caption_id: Tensor) -> Tensor:
        """Symmetric cross-entropy over the global batch; clamps κ before.

        Shapes: e_hat, e (b, d) unit; caption_id (b,) int64 -> () float32.
        """
        if self.training:
            clamp_log_logit_scale_(self.log_logit_scale)
        return global_alignment_loss(e_hat, e, self.logit_scale, caption_id)

    def parameter_groups(self, learning_rate: float, new_learning_rate: float) -> list[dict[str, Any]]:
        """Two learning rates: one of the text encoder, one of the new image encoder and κ.

        Source: CLIP (Radford et al., 2021, §2.5): gains, biases and κ, the weights of less than two dimensions, have
                no weight decay.
        """
        old = [weight for part in (self.text_encoder, self.text_projection) if part for weight in part.parameters()]
        new = [*self.image_encoder.parameters(), self.log_logit_scale]
        groups: list[dict[str, Any]] = []
        for weights, rate in ((old, learning_rate), (new, new_learning_rate)):
            trained = [weight for weight in weights if weight.requires_grad]
            groups.append({"params": [weight for weight in trained if weight.ndim >= 2], "lr": rate})
            groups.append({"params": [weight for weight in trained if weight.ndim < 2], "lr": rate, "weight_decay": 0})
        return [group for group in groups if group["params"]]
