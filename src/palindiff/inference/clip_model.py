"""A contrastive model: a transformers CLIP, or what `palindiff train` writes with the contrastive objective.

Here: images and captions in, embeddings out, with the names and checks of a pipeline. Not here: the folder
(`pretrained/clip_folders.py`), training (`training/train_contrastive.py`), the adapter that gives a pipeline CLIP's
interface (`clip_adapter.py`).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from palindiff.data.images import Fit, ImageInput, read_pixels
from palindiff.inference import arguments
from palindiff.inference.arguments import ManyImages
from palindiff.inference.defaults import CAPTIONS_AT_ONCE, IMAGES_AT_ONCE
from palindiff.inference.labels import LABEL_TEMPLATES, embed_labels
from palindiff.models.logit_scale import bounded
from palindiff.pretrained.clip_folders import ClipParts, load_clip, save_clip


class ClipModel:
    """Two encoders in one space; an `Embedder`, without options.

    Images are decoded and fitted as for a pipeline, not by transformers' image processor: squares are resized by
    Lanczos, where CLIP's processor resizes by bicubic interpolation. An image of the model's own size is encoded as
    transformers encodes it.

    Source: CLIP (Radford et al., 2021, §2.3).
    """

    def __init__(self, parts: ClipParts) -> None:
        """parts: are shared, not copied, so a model in training can be evaluated."""
        self.parts, self.image_encoder, self.text_encoder = parts, parts.image_encoder, parts.text_encoder
        self.networks: Mapping[str, nn.Module] = {"image encoder": self.image_encoder}

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load the folder of a CLIP or of a contrastive result, in float32, from safetensors alone.

        Raises: FileNotFoundError, OSError or ValueError as `load_clip`.
        """
        return cls(load_clip(Path(folder)))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder that `from_pretrained` loads, and `CLIPModel` too if the text encoder is CLIP's.

        Raises: ValueError as `save_clip`.
        """
        save_clip(self.parts, Path(folder))

    @property
    def image_size_px(self) -> int:
        """Side of the squares that images are fitted to."""
        return self.image_encoder.image_size_px

    @property
    def device(self) -> torch.device:
        """Device of the image encoder, and of its results."""
        return self.image_encoder.mean.device

    @property
    def logit_scale(self) -> Tensor:
        """κ, the factor of a cosine in probabilities, () float32."""
        return bounded(self.parts.log_logit_scale.detach()).exp()

    @property
    def fingerprint(self) -> str:
        """Hash of both encoders. Reads every weight, so keep the result."""
        parts = [self.image_encoder.fingerprint, self.text_encoder.fingerprint]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def to(self, device: str | torch.device) -> Self:
        """Move both encoders to a device."""
        self.image_encoder.to(device)
        self.text_encoder.to(device)
        return self

    @torch.no_grad()
    def encode_image(
        self,
        images: ManyImages | ImageInput,
        batch_size: int = IMAGES_AT_ONCE,
        fit: Fit = "crop",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Tensor:
        """Embed images; they are read one at a time, and `progress(what, done, total)` is called after every batch.

        Shapes: b images -> (b, d) float32, unit length.
        Raises: ValueError or TypeError if there are no images or an option cannot work; ImageFileError if an image
                cannot be read.
        """
        arguments.check_options(None, batch_size=batch_size, fit=fit)
        given, found, done = arguments.as_images(images), [], 0
        for x in self._batches(given, batch_size, fit):
            found += self.embed_pixels(x, [{}])
            done += len(x)
            if progress is not None:
                progress("images", done, len(given))
        return torch.cat(found)

    @torch.no_grad()
    def embed_pixels(self, x: Tensor, options: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """Embed images once, and return the embedding for each of the options, all of which must be empty.

        Shapes: x (b, 3, H, W) float in [-1, 1] -> for each of `options`: (b, d) float32, unit length.
        Raises: ValueError if an option is given.
        """
        if given := sorted({name for each in options for name in each}):
            raise ValueError(
                f"`{given[0]}` is given to a contrastive model. Expected no option: an image is encoded in one pass. "
                "Remove it, or use a palindiff checkpoint."
            )
        v: Tensor = self.image_encoder(x.to(self.device))
        return [v] * len(options)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Embed captions.

        Shapes: b captions -> (b, d) float32, unit length.
        Raises: TypeError or ValueError if there are no captions, or they are one string.
        """
        ids, mask = self.text_encoder.tokenize(captions)
        parts = zip(ids.split(CAPTIONS_AT_ONCE), mask.split(CAPTIONS_AT_ONCE), strict=True)
        return torch.cat([self.text_encoder(of_part, is_real).e for of_part, is_real in parts])

    def encode_labels(self, labels: Sequence[str], templates: Sequence[str] = LABEL_TEMPLATES) -> Tensor:
        """Embed each label as the mean over prompt templates, normalised to unit length.

        Shapes: k labels, p templates with `{}` -> (k, d) float32.
        Raises: ValueError as `check_labels`.
        """
        return embed_labels(self.encode_text, labels, templates)

    def probabilities(self, e_0_hat: Tensor, e: Tensor) -> Tensor:
        """Shapes: e_0_hat (b, d) of images, e (k, d) of labels -> (b, k) float32, softmax of κ times the cosine."""
        return (self.logit_scale * e_0_hat @ e.T).softmax(dim=-1)

    def _batches(self, images: ManyImages, batch_size: int, fit: Fit) -> Iterator[Tensor]:
        """Decode and fit images, a batch at a time: (b, 3, H, W) float in [-1, 1]."""
        squares = (self._read_pixels(image, fit) for image in images)
        while part := list(islice(squares, batch_size)):
            yield torch.stack(part)

    def _read_pixels(self, image: ImageInput, fit: Fit) -> Tensor:
        arguments.check_image(image)
        return read_pixels(image, self.image_size_px, fit)
