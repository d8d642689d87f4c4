"""The last layers of a CLIP text encoder that Stable Diffusion 2.x leaves out of its folder, kept for the text query.

Here: running them behind a tower's last hidden states. Not here: the tower, its final LayerNorm and its projection.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

TAIL_SETTINGS = ("hidden_size", "intermediate_size", "num_attention_heads", "hidden_act", "layer_norm_eps")


class ClipTail(nn.Module):
    """CLIP's own transformer layers, frozen.

    Source: Stable Diffusion 2.x conditions on the last layer but one of OpenCLIP's tower, so its folder holds no last
            layer; CLIP's embedding needs it.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """settings: `num_layers`, and those of TAIL_SETTINGS as a `CLIPTextConfig` names them."""
        super().__init__()
        config = CLIPTextConfig(**{name: settings[name] for name in TAIL_SETTINGS})
        config._attn_implementation = "sdpa"
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(settings["num_layers"]))
        self.requires_grad_(False)

    @classmethod
    def of(cls, whole: CLIPTextModel, num_kept: int) -> "ClipTail":
        """Take the layers of a whole tower that follow its first num_kept."""
        layers = whole.encoder.layers[num_kept:]
        tail = cls({"num_layers": len(layers), **whole.config.to_dict()})
        tail.layers.load_state_dict(layers.state_dict())
        return tail

    @property
    def settings(self) -> dict[str, Any]:
        """What another tail of this shape is built from, for a config.json."""
        config: CLIPTextConfig = self.layers[0].self_attn.config  # type: ignore[union-attr,assignment]
        return {"num_layers": len(self.layers), **{name: getattr(config, name) for name in TAIL_SETTINGS}}

    def forward(self, hidden: Tensor) -> Tensor:
        """Run the layers, each token seeing those before it.

        Shapes: hidden (b, l, d_c), before the tower's final LayerNorm -> the same.
        """
        for layer in self.layers:
            hidden = layer(hidden, None, is_causal=True)
        return hidden
