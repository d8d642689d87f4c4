"""A training set of cached latents and text features, and the cache of text features.

Here: text features, and reading both row by row from memory maps. Not here: computing latents (`latent_cache.py`).
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from palindiff.models.text_encoder import TextEncoder, warn_of_cuts
from palindiff.seeds import hash_63_bits
from palindiff.training.features.memmap import StackedArrays, write_arrays
from palindiff.training.features.views import Flip, draw_views

FORMAT = 2  # of the cached files; part of every key
ENCODE_BATCH = 64
Progress = Callable[[str, int, int], None]  # what is being computed, how many are done, of how many


@dataclass(frozen=True)
class ImageFeatures:
    """Latents of n images and their crops, plain and flipped: the posterior's mean and standard deviation.

    All are multiplied by the VAE's scaling factor. Row numbers leave out unreadable images.
    """

    moments: np.ndarray | StackedArrays
    """(n, 1 + crops, 1 or 2 orientations, 2 moments, ch, h, w) float16; the whole image first"""
    unreadable: Mapping[int, str] = field(default_factory=dict)  # rows of `moments` without an image, and why

    @cached_property
    def usable(self) -> np.ndarray:
        """Rows of `moments` with an image, in order: (n,) int64."""
        return np.delete(np.arange(len(self.moments)), sorted(self.unreadable))

    def read(self, rows: Tensor, is_flipped: Tensor, crop: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read whole images, or crops by number, where 0 is the whole image.

        Shapes: rows (b,) int64, is_flipped (b,) bool, crop (b,) int64 -> z_mean, z_std (b, ch, h, w) float16.
        """
        crop = torch.zeros_like(rows) if crop is None else crop
        kept = self.usable[rows.numpy()]
        moments = torch.from_numpy(self.moments[kept, crop.numpy(), is_flipped.long().numpy()])
        return moments[:, 0], moments[:, 1]


@dataclass(frozen=True)
class CaptionFeatures:
    """Text features of m different captions."""

    c: np.ndarray  # (m, l, d_c) float16
    e: np.ndarray  # (m, d_e) float32, unit length
    row: dict[str, int]  # caption -> its row

    def read(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Shapes: rows (b,) -> c (b, l, d_c) float16; e_0 (b, d_e) float32."""
        return {"c": torch.from_numpy(self.c[rows]), "e_0": torch.from_numpy(self.e[rows])}


class LiveCaptions:
    """m different captions that the text encoder encodes at each step; only the strings are stored."""

    def __init__(self, captions: Sequence[str], encoder: TextEncoder) -> None:
        self.captions, self.encoder = list(dict.fromkeys(captions)), encoder
        self.row = {caption: row for row, caption in enumerate(self.captions)}  # caption -> its row
        warn_of_cuts(self.captions, encoder.tokenizer)

    def read(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Shapes: rows (b,) -> ids (b, l) int64; mask (b, l) bool."""
        ids, mask = self.encoder.tokenize([self.captions[row] for row in rows], warn_of_cuts=False)
        return {"ids": ids, "mask": mask}


@dataclass(frozen=True)
class CaptionEmbeddings:
    """Text queries of m different captions, without token-wise features."""

    e: np.ndarray  # (m, d_e) float32, unit length
    row: dict[str, int]  # caption -> its row

    def read(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Shapes: rows (b,) -> e_0 (b, d_e) float32."""
        return {"e_0": torch.from_numpy(self.e[rows])}


Texts = CaptionFeatures | CaptionEmbeddings | LiveCaptions


class CaptionsOfRows:
    """The captions of each row of a training set, one of which is read."""

    def __init__(self, captions: Sequence[Sequence[str]], texts: Texts, with_second: bool = False) -> None:
        """with_second: read another draw of each row's captions too, from cached features."""
        self.texts, self.with_second = texts, with_second
        self._num_captions = torch.tensor([len(of_one) for of_one in captions])
        self._first = self._num_captions.cumsum(0) - self._num_captions
        self._text_row = torch.tensor([texts.row[caption] for of_one in captions for caption in of_one])
        self._id = torch.tensor([hash_63_bits(caption) for caption in texts.row])[self._text_row]

    def __len__(self) -> int:
        return len(self._num_captions)

    def read(self, rows: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        """Read one caption of each row, chosen by the uniform number.

        Shapes: rows (b,) int64; uniform (b,) -> what `texts` reads, and caption_id (b,) int64; e_query (b, d_e)
                float32 of the second caption.
        """
        place = uniform * self._num_captions[rows]
        chosen = self._first[rows] + place.long()
        batch = {**self.texts.read(self._text_row[chosen].numpy()), "caption_id": self._id[chosen]}
        if self.with_second:
            second = self._first[rows] + (place % 1 * self._num_captions[rows]).long()
            batch["e_query"] = self.texts.read(self._text_row[second].numpy())["e_0"]
        return batch


class FeatureSet:
    """A training set of cached features: images, the captions of each, read by row number."""

    def __init__(
        self,
        captions: Sequence[Sequence[str]],
        images: ImageFeatures,
        texts: CaptionFeatures | LiveCaptions,
        flip: Flip = "both",
        with_second_caption: bool = False,
    ) -> None:
        """with_second_caption: read another draw of each image's captions too, from cached features."""
        assert isinstance(texts, CaptionFeatures) or not with_second_caption, "as the recipe has checked"
        self.images, self.texts, self.flip = images, texts, flip
        self.captions = CaptionsOfRows(captions, texts, with_second_caption)

    def __len__(self) -> int:
        return len(self.captions)

    def read(self, rows: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        """Read rows; of the two uniform numbers the first chooses the image's views, the second its caption.

        Below 0.5 the first number flips; its place within its half chooses the crop that naming sees. The second's
        place within its caption's share draws the second caption, if there is to be one, independently.

        Shapes: rows (b,) int64; uniform (b, 2) -> z_mean, z_std (b, ch, h, w) float16, and z_named_mean, z_named_std
                where naming sees another view; c (b, l, d_c) float16 and e_0 (b, d_e) float32, or for live captions
                ids (b, l) int64 and mask (b, l) bool; caption_id (b,) int64; e_query (b, d_e) float32 of the
                second caption.
        """
        is_low = uniform[:, 0] < 0.5
        z_mean, z_std = self.images.read(rows, is_low & (self.flip == "both"))
        batch = {"z_mean": z_mean, "z_std": z_std, **self.captions.read(rows, uniform[:, 1])}
        num_views = self.images.moments.shape[1]
        if num_views > 1 or self.flip == "naming":
            crop, is_flipped = draw_views(uniform[:, 0], num_views, self.flip)
            batch["z_named_mean"], batch["z_named_std"] = self.images.read(rows, is_flipped, crop)
        return batch


def caption_features(
    captions: Sequence[str], text_encoder: TextEncoder, cache_dir: Path, progress: Progress
) -> CaptionFeatures:
    """Encode every different caption, or map the features that an earlier call cached."""
    different = list(dict.fromkeys(captions))
    digest = hashlib.sha256(json.dumps(different).encode()).hexdigest()
    path = cache_dir / f"captions-{key_of('captions', digest, text_encoder.fingerprint)}"
    if not path.exists():
        warn_of_cuts(different, text_encoder.tokenizer)
        starts = range(0, len(different), ENCODE_BATCH)
        batches = (encode_texts(different[start : start + ENCODE_BATCH], text_encoder) for start in starts)
        write_arrays(path, len(different), batches, lambda done: progress("encoding captions", done, len(different)))
    c, e = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("c", "e"))
    return CaptionFeatures(c, e, {caption: row for row, caption in enumerate(different)})


@torch.no_grad()
def encode_texts(captions: Sequence[str], text_encoder: TextEncoder) -> dict[str, np.ndarray]:
    """Shapes: b captions -> c (b, l, d_c) float16, e (b, d_e) float32."""
    encoded = text_encoder.encode(captions, warn_of_cuts=False)
    return {"c": encoded.c.half().cpu().numpy(), "e": encoded.e.float().cpu().numpy()}


def default_cache_dir() -> Path:
    """Where features are cached: $PALINDIFF_CACHE, or `palindiff` in the user's cache folder."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PALINDIFF_CACHE") or Path(user_cache) / "palindiff")


def key_of(*fingerprints: object) -> str:
    """Name a cached folder by a hash of everything that its content depends on."""
    return hashlib.sha256(json.dumps([FORMAT, *fingerprints]).encode()).hexdigest()[:24]
