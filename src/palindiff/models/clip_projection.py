"""What makes CLIP's caption embedding of a Stable Diffusion text encoder: the text projection and missing layers.

Here: both as one frozen module, a part of the query stream. Not here: the text encoder itself (`text_encoder.py`),
taking the weights from a CLIP (`pretrained/clip_projection.py`).
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

LAYER_SETTINGS = ("hidden_size", "intermediate_size", "num_attention_heads", "hidden_act", "layer_norm_eps")


class ClipProjection(nn.Module):
    """CLIP's text projection and the last transformer layers that a folder of Stable Diffusion 2.x leaves out, frozen.

    Source:  CLIP (Radford et al., 2021, §2.4). Stable Diffusion 2.x conditions on the last layer but one of OpenCLIP's
             text encoder, so its folder lacks the last layer, which CLIP's embedding needs.
    Shapes:  weight (d_e, d_c).
    Departs: nothing; no part of it is ever trained.
    """

    weight: Tensor

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """settings: `d_e`, `num_layers` (0 for Stable Diffusion 1.x), and those of LAYER_SETTINGS."""
        super().__init__()
        self.settings = dict(settings)
        config = CLIPTextConfig(**{name: settings[name] for name in LAYER_SETTINGS})
        config._attn_implementation = "sdpa"
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(settings["num_layers"]))
        self.register_buffer("weight", torch.zeros(settings["d_e"], settings["hidden_size"]))
        self.requires_grad_(False)

    @classmethod
    @torch.no_grad()
    def from_clip(cls, clip: CLIPTextModel, weight: Tensor, num_kept: int | None = None) -> Self:
        """Copy the projection of a whole CLIP, and its layers after the first `num_kept`; None keeps all."""
        layers = clip.encoder.layers[num_kept:] if num_kept is not None else nn.ModuleList()
        settings = {name: getattr(clip.config, name) for name in LAYER_SETTINGS}
        projection = cls({"d_e": len(weight), "num_layers": len(layers), **settings})
        projection.layers.load_state_dict(layers.state_dict())
        projection.weight.copy_(weight)
        return projection

    def forward(self, hidden: Tensor) -> Tensor:
        """Run the missing layers; each token attends to itself and the tokens before it.

        Shapes: hidden (b, l, d_c), before the final LayerNorm -> the same shape and dtype.
        """
        output = hidden.to(self.weight.dtype)  # the query stream may have another dtype than the text encoder
        for layer in self.layers:
            output = layer(output, None, is_causal=True)
        return output.to(hidden.dtype)


class TrainedClipProjection(ClipProjection):
    """CLIP's text projection as a weight that is trained, as CLIP itself trains it.

    Source: CLIP (Radford et al., 2021, §2.4).
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """settings: those of `ClipProjection`."""
        super().__init__(settings)
        weight = self.weight
        del self.weight
        self.weight = nn.Parameter(weight)
