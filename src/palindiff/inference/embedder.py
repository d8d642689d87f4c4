"""What evaluation needs of a model that embeds images and captions, and a pipeline of ours as such a model.

Here: the interface, and everything that decides an embedding. Not here: storing embeddings (`embeddings.py`).
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.fingerprint import fingerprint


class Embedder(Protocol):
    """Images and captions in one space; all embeddings have unit length."""

    @property
    def image_size_px(self) -> int:
        """Side of the squares that images are fitted to."""

    @property
    def device(self) -> torch.device:
        """Device of its results."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything in the model that decides an embedding. Reads every weight, so keep the result."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """By name, a module of each network that is called once whenever the network is."""

    def embed_pixels(self, x: Tensor, options: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """Read images once, and embed them with each of several options.

        Shapes: x (b, 3, H, W) float in [-1, 1] -> for each of `options`: (b, d) float32.
        """

    @property
    def encode_image(self) -> Callable[..., Tensor]:
        """Shapes: b images, options -> (b, d) float32. batch_size and progress are options of every model."""

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Shapes: m captions -> (m, d) float32."""

    def encode_labels(self, labels: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Shapes: k labels, templates with `{}` -> (k, d) float32, the mean over templates."""

    def probabilities(self, e_0_hat: Tensor, e: Tensor) -> Tensor:
        """Shapes: (b, d) of images, (k, d) of labels -> (b, k) float32, rows of sum 1."""


class PipelineEmbedder:
    """A pipeline as an `Embedder`; its options are those of `PalindiffPipeline.encode_image`."""

    def __init__(self, pipeline: PalindiffPipeline) -> None:
        self.pipeline, self.image_size_px = pipeline, pipeline.image_size_px
        self.encode_text, self.encode_labels = pipeline.encode_text, pipeline.encode_labels
        self.encode_image, self.probabilities = pipeline.encode_image, pipeline.probabilities
        self.networks = {
            "VAE": pipeline.vae.encoder, "U-Net": pipeline.unet.conv_in, "query stream": pipeline.query_stream
        }  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Device of the pipeline."""
        return self.pipeline.device

    @cached_property
    def fingerprint(self) -> str:
        """Hash of VAE, U-Net, query stream, text encoder and the scheduler of the text diffusion."""
        parts = [fingerprint(part) for part in (self.pipeline.vae, self.pipeline.unet, self.pipeline.query_stream)]
        settings = json.dumps(dict(self.pipeline.query_scheduler.config), sort_keys=True, default=str)
        parts += [self.pipeline.caption_encoder.fingerprint, str(self.pipeline.unet.dtype), settings]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @torch.no_grad()
    def embed_pixels(self, x: Tensor, options: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """Read images once and denoise their queries with each of several options.

        Shapes: x (b, 3, H, W) float in [-1, 1] -> for each of `options`: e_0_hat (b, d_e) float32, unit length.
        Raises: as `PalindiffPipeline.encode_image`.
        """
        reading = self.pipeline.read_image(self.pipeline.encode_pixels(x))
        return [self.pipeline.encode_image(reading, batch_size=len(x), **each) for each in options]
