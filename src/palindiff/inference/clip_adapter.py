"""An adapter for code written for CLIP: two encoders, a logit scale, a preprocess and a tokenizer.

Here: open_clip's names for the methods of a pipeline, and checks of pixels and token ids. Not here: the encoders and
checks of their options (`pipeline.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from palindiff.data.images import Fit, read_pixels
from palindiff.inference.defaults import IMAGES_AT_ONCE
from palindiff.models.logit_scale import bounded
from palindiff.models.text_encoder import num_positions, tokenize_captions

ROUNDING = 1e-3  # how far fp16 arithmetic may move a pixel out of [-1, 1]


@dataclass(frozen=True)
class CaptionTokenizer:
    """Captions to token ids, padded or cut to the text encoder's length. A pickle of it holds no text encoder."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, captions: str | Sequence[str]) -> Tensor:
        """Shapes: one caption or b of them -> ids (b, l) int64 on the CPU.

        Raises: TypeError or ValueError if the captions are not strings.
        """
        captions = [captions] if isinstance(captions, str) else captions
        return torch.tensor(tokenize_captions(captions, self.tokenizer)[0])


class ClipAdapter(nn.Module):
    """The interface that CLIP_benchmark and open_clip expect of a model, on top of a pipeline.

    Embeddings equal those of `PalindiffPipeline.encode_image` and `encode_text`, up to rounding if the batch differs.
    They have unit length whatever `normalize` says, and no gradient. The components are shared with the pipeline:
    `to`, `half` or `eval` change them for both. Create a new adapter after replacing a component of the pipeline.

    Source: open_clip's `CLIP` for the names; DiffDis Algorithm 3 for what `encode_image` does.
    """

    def __init__(
        self,
        pipeline: Any,  # a PalindiffPipeline, which imports this module
        fit: Fit = "crop",
        batch_size: int = IMAGES_AT_ONCE,
        **options: Any,
    ) -> None:
        """All options are those of `PalindiffPipeline.encode_image`: also num_inference_steps, guidance_scale, seed.

        Raises: TypeError or ValueError if an option cannot work, or the tokenizer's padding cannot be recognised.
        """
        super().__init__()
        pipeline.check_options(fit=fit, batch_size=batch_size, **options)
        self.pipeline, self.batch_size, self.options = pipeline, batch_size, options
        self.vae, self.text_encoder = pipeline.vae, pipeline.text_encoder
        self.unet, self.query_stream = pipeline.unet, pipeline.query_stream
        self.training = any(part.training for part in self.children())
        self.image_size_px = pipeline.image_size_px
        self.preprocess = partial(read_pixels, size_px=self.image_size_px, fit=fit)
        self.tokenizer = CaptionTokenizer(pipeline.tokenizer)
        pipeline.caption_encoder.check()
        _check_padding(pipeline.tokenizer)

    @property
    def device(self) -> torch.device:
        """Device of the encoders' computations and results; offloaded components are stored on another."""
        return self.pipeline._execution_device

    @property
    def logit_scale(self) -> Tensor:
        """Log of κ, () float32, as in open_clip: `logit_scale.exp()` is the factor of a cosine."""
        return bounded(self.query_stream.log_logit_scale.detach())

    @torch.no_grad()
    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Embed images that `preprocess` has prepared.

        Shapes: image (b, 3, H, W) float in [-1, 1] -> e_0_hat (b, d_e) float32, unit length.
        Raises: TypeError or ValueError if `image` does not look like output of `preprocess`.
        """
        _check_image(image, self.image_size_px)
        latents = (self.pipeline.encode_pixels(x) for x in image.split(self.batch_size))
        return torch.cat([self.pipeline.encode_image(z, batch_size=len(z), **self.options) for z in latents])

    @torch.no_grad()
    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Embed captions that `tokenizer` has encoded.

        Shapes: text (b, l) int64 -> e (b, d_e) float32, unit length.
        Raises: TypeError or ValueError if `text` cannot be output of `tokenizer`.
        """
        _check_text(text, num_positions(self.text_encoder), self.text_encoder.config.vocab_size)
        encoder = self.pipeline.caption_encoder
        mask = real_tokens(text.long(), encoder.tokenizer)
        encoder.check_tokens(text.tolist(), mask.tolist())
        e: Tensor = self.pipeline.encode_tokens(text.long(), mask)
        return e

    def forward(
        self, image: Tensor | None = None, text: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Return open_clip's triple: image features, text features (None for a missing input) and κ."""
        image_features = None if image is None else self.encode_image(image, normalize=True)
        text_features = None if text is None else self.encode_text(text, normalize=True)
        return image_features, text_features, self.logit_scale.exp()


def real_tokens(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Distinguish tokens from the padding after them by the ids alone: CLIP's interface has no mask.

    Shapes: ids (b, l) int64 -> (b, l) bool, True up to the last token that is not padding; if the tokenizer pads with
            its end token, also at the first padding, which is the end token.
    """
    is_real = (ids != tokenizer.pad_token_id).flip(1).cumsum(1).flip(1) > 0  # is there one at this place or later?
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        is_real[:, 1:] |= is_real[:, :-1].clone()
    return is_real


def _check_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    ids, mask = tokenize_captions(["", "a"], tokenizer)
    if not torch.equal(real_tokens(torch.tensor(ids), tokenizer), torch.tensor(mask, dtype=torch.bool)):
        raise ValueError(
            f"The tokenizer pads on the {tokenizer.padding_side} with `{tokenizer.pad_token}`, which cannot be "
            "recognised by its ids. Expected padding on the right with a token of its own or the end token: code "
            "written for CLIP passes ids without a mask. Use the tokenizer saved with the text encoder."
        )


def _check_image(image: Tensor, size_px: int) -> None:
    if not isinstance(image, Tensor) or not image.is_floating_point():
        found = image.dtype if isinstance(image, Tensor) else f"a `{type(image).__name__}`"
        raise TypeError(
            f"`image` is {found} in `encode_image`. Expected a floating-point tensor, as `preprocess` returns it for "
            "an image. Pass a stack of these."
        )
    if image.shape[1:] != (3, size_px, size_px) or not len(image):
        raise ValueError(
            f"`image` has shape {tuple(image.shape)} in `encode_image`. Expected (b, 3, {size_px}, {size_px}), as "
            "`preprocess` fits images. For a single image pass `image[None]`."
        )
    low, high = (float(value) for value in image.aminmax())
    if not (low >= -1 - ROUNDING and high <= 1 + ROUNDING):  # NaN compares to nothing
        raise ValueError(
            f"`image` ranges from {low:g} to {high:g} in `encode_image`. Expected pixels in [-1, 1], not 0 to 255 "
            "nor another CLIP's normalisation. Use this model's own `preprocess`."
        )


def _check_text(text: Tensor, max_length: int, vocab_size: int) -> None:
    if not isinstance(text, Tensor) or text.dtype not in (torch.int64, torch.int32):
        found = text.dtype if isinstance(text, Tensor) else f"a `{type(text).__name__}`"
        raise TypeError(f"`text` is {found} in `encode_text`. Expected int64 token ids. Pass `tokenizer(captions)`.")
    if text.ndim != 2 or not text.numel() or text.shape[1] > max_length:
        raise ValueError(
            f"`text` has shape {tuple(text.shape)} in `encode_text`. Expected (b, l), one row of ids per caption, "
            f"with l at most {max_length}, the text encoder's positions. Pass `tokenizer(captions)`, which cuts them."
        )
    low, high = (int(value) for value in text.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"`text` has ids from {low} to {high} in `encode_text`. Expected 0 to {vocab_size - 1}, the vocabulary "
            "of the text encoder. Use this model's own `tokenizer`."
        )
