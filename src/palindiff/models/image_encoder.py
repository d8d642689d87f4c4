"""The image encoder of a contrastive model: transformers' CLIP vision transformer, from pixels to unit embeddings.

Here: its shape, building one from scratch, and encoding. Not here: loading one (`pretrained/clip_folders.py`), the
text encoder (`text_encoder.py`), the loss (`objectives/contrastive.py`).
"""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from palindiff.models.fingerprint import fingerprint

FFN_FACTOR = 4  # the feed-forward layers' width as a multiple of the encoder's, as in CLIP
_SETTINGS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
    "hidden_act", "layer_norm_eps",
)  # fmt: skip


class ImageEncoderConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A vision transformer from scratch; the default is CLIP's ViT-B/32."""

    image_size_px: int = Field(224, gt=0)
    patch_size_px: int = Field(32, gt=0)
    width: int = Field(768, gt=0)
    num_layers: int = Field(12, gt=0)
    head_dim: int = Field(64, gt=0)  # channels of one attention head

    @model_validator(mode="after")
    def _divides_evenly(self) -> Self:
        for whole, part in (("image_size_px", "patch_size_px"), ("width", "head_dim")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"`{whole}` is {getattr(self, whole)} with `{part}` {getattr(self, part)}. Expected a multiple. "
                    "Change one of the two."
                )
        return self


class ImageEncoder(nn.Module):
    """A stock `CLIPVisionModelWithProjection` behind CLIP's normalisation of pixels.

    Source:  CLIP (Radford et al., 2021, §2.4).
    Departs: embeddings are normalised here, in float32 under any autocast.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        model: CLIPVisionModelWithProjection,
        mean: Sequence[float] = OPENAI_CLIP_MEAN,
        deviation: Sequence[float] = OPENAI_CLIP_STD,
    ) -> None:
        """mean, deviation: of pixels in [0, 1], for each colour, as the model's image processor states them."""
        super().__init__()
        self.model = model
        for name, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @property
    def image_size_px(self) -> int:
        """Side of the squares that are encoded."""
        side: int = self.model.config.image_size  # type: ignore[assignment]  # CLIP's images are square
        return side

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides an embedding: shape, normalisation, weights. Reads every weight."""
        settings = {name: getattr(self.model.config, name) for name in _SETTINGS}
        settings |= {"mean": self.mean.flatten().tolist(), "deviation": self.deviation.flatten().tolist()}
        return fingerprint(self.model, settings)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (b, 3, H, W) in [-1, 1] -> v (b, d) float32, unit length."""
        pixels = ((x + 1) / 2 - self.mean) / self.deviation
        v = self.model(pixel_values=pixels.to(self.model.dtype)).image_embeds
        with torch.autocast(v.device.type, enabled=False):
            return F.normalize(v.float(), dim=-1)


def build_image_encoder(config: ImageEncoderConfig, d_e: int) -> ImageEncoder:
    """Build a vision transformer with random weights, which projects to the width of the text embeddings.

    Source: CLIP (Radford et al., 2021, Table 20) for the default; transformers initialises the weights as CLIP does.
    """
    vision = CLIPVisionConfig(
        hidden_size=config.width,
        intermediate_size=FFN_FACTOR * config.width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.width // config.head_dim,
        image_size=config.image_size_px,
        patch_size=config.patch_size_px,
        projection_dim=d_e,
    )
    return ImageEncoder(CLIPVisionModelWithProjection(vision))
