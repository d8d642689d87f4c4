"""What evaluation needs of a model that embeds images and captions: a pipeline of ours, or another's two encoders."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn


class Embedder(Protocol):
    """Images and captions in one space; all embeddings have unit length."""

    @property
    def image_size_px(self) -> int:
        """Side of the squares that images are fitted to."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything in the model that decides an embedding."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """By name, a module of each network that is called once whenever the network is."""

    def embed_pixels(self, x: Tensor, options: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """Read images once, and embed them with each of several options.

        Shapes: x (b, 3, H, W) float in [-1, 1] -> for each of `options`: (b, d) float32.
        """

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Shapes: m captions -> (m, d) float32."""

    def encode_labels(self, labels: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Shapes: k labels, templates with `{}` -> (k, d) float32, the mean over templates."""
