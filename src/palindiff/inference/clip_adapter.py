"""A pipeline as code written for CLIP wants it: two encoders, a logit scale, a preprocess and a tokenizer.

Here: open_clip's names for what a pipeline does, and one sentence for each input that its preprocess or tokenizer
never makes. Not here: the encoders (`pipeline.py`, `models/captions.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from palindiff.data.images import Fit, read_pixels
from palindiff.inference.arguments import check_batch_size, check_fit_name, check_guidance, check_steps, square_side
from palindiff.inference.defaults import CAPTIONS_AT_ONCE, IMAGES_AT_ONCE, NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.models.query_stream import MAX_LOGIT_SCALE
from palindiff.models.text_encoder import num_positions, tokenize_captions

if TYPE_CHECKING:
    from palindiff.inference.pipeline import PalindiffPipeline

ROUNDING = 1e-3  # how far a pixel in [-1, 1] may lie outside after arithmetic in fp16


@dataclass(frozen=True)
class CaptionTokenizer:
    """Captions to token ids, padded or cut to the text encoder's length. Pickled, it takes no tower along."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, captions: str | Sequence[str]) -> Tensor:
        """Shapes: one caption or b of them -> ids (b, l) int64 on the CPU.

        Raises: TypeError, ValueError if the captions are no captions.
        """
        captions = [captions] if isinstance(captions, str) else captions
        return torch.tensor(tokenize_captions(captions, self.tokenizer)[0])


class ClipAdapter(nn.Module):
    """What CLIP_benchmark and open_clip expect of a model, made of a pipeline's own parts.

    The answers are those of `PalindiffPipeline.encode_image` and `encode_text`: on the CPU bit for bit where as many
    are embedded at a time, else up to sums in another order. They have unit length whatever `normalize` says, and
    never a gradient: the walk to them is not made for training. The parts are shared with the pipeline, and so is what
    `to`, `half` or `eval` does to them; make a new face after putting another part into the pipeline.

    Source: open_clip's `CLIP` for the names; DiffDis Algorithm 3 for what `encode_image` does.
    """

    def __init__(
        self,
        pipeline: "PalindiffPipeline",
        num_inference_steps: int = NAMING_STEPS,
        guidance_scale: float = NAMING_GUIDANCE_SCALE,  # 1 + w; 1 turns guidance off
        seed: int = 0,
        batch_size: int = IMAGES_AT_ONCE,  # images walked at a time
        fit: Fit = "crop",
    ) -> None:
        super().__init__()
        check_guidance(guidance_scale, seed)
        check_batch_size(batch_size)
        check_fit_name(fit)
        if pipeline.query_stream.config.text_chain == "diffusion":
            check_steps(num_inference_steps, pipeline.query_scheduler.config.num_train_timesteps)
        self.pipeline, self.batch_size = pipeline, batch_size
        self.num_inference_steps, self.guidance_scale, self.seed = num_inference_steps, guidance_scale, seed
        self.vae, self.text_encoder = pipeline.vae, pipeline.text_encoder
        self.unet, self.query_stream = pipeline.unet, pipeline.query_stream
        self.training = any(part.training for part in self.children())
        self.image_size_px = square_side(self.unet.config.sample_size) * pipeline.vae_scale_factor
        self.preprocess = partial(read_pixels, size_px=self.image_size_px, fit=fit)
        self.tokenizer = CaptionTokenizer(pipeline.tokenizer)
        pipeline.caption_encoder.check()
        _check_padding(pipeline.tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the encoders run and their answers lie, which under offloading is not where the parts rest."""
        return self.pipeline._execution_device

    @property
    def logit_scale(self) -> Tensor:
        """Log of κ, () float32, as open_clip keeps it: `logit_scale.exp()` is what multiplies a cosine."""
        return self.query_stream.log_logit_scale.detach().float().clamp(max=math.log(MAX_LOGIT_SCALE))

    @torch.no_grad()
    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Embed images as `preprocess` gives them.

        Shapes: image (b, 3, H, W) float in [-1, 1] -> e_0_hat (b, d_e) float32, unit length.
        Raises: TypeError, ValueError if `image` is not what `preprocess` makes of images.
        """
        _check_image(image, self.image_size_px)
        return torch.cat([self._walk(part) for part in image.split(self.batch_size)])

    @torch.no_grad()
    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Embed captions as `tokenizer` gives them.

        Shapes: text (b, l) int64 -> e (b, d_e) float32, unit length.
        Raises: TypeError, ValueError if `text` is not what `tokenizer` makes of captions.
        """
        _check_text(text, num_positions(self.text_encoder), self.text_encoder.config.vocab_size)
        encoder = self.pipeline.caption_encoder
        mask = real_tokens(text.long(), encoder.tokenizer)
        encoder.check_tokens(text.tolist(), mask.tolist())
        self.pipeline._bring("text_encoder", *(["query_stream"] if encoder.has_missing_layers else []))
        parts = zip(text.long().split(CAPTIONS_AT_ONCE), mask.split(CAPTIONS_AT_ONCE), strict=True)
        return torch.cat([encoder(ids, of_ids).e for ids, of_ids in parts])

    def forward(
        self, image: Tensor | None = None, text: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Embed what is given: open_clip's triple of image features, text features and κ."""
        image_features = None if image is None else self.encode_image(image, normalize=True)
        text_features = None if text is None else self.encode_text(text, normalize=True)
        return image_features, text_features, self.logit_scale.exp()

    def _walk(self, x: Tensor) -> Tensor:
        """Shapes: x (b, 3, H, W) -> e_0_hat (b, d_e)."""
        z = self.pipeline.encode_pixels(x)
        return self.pipeline.encode_image(z, self.num_inference_steps, self.guidance_scale, self.seed, len(z))


def real_tokens(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Progress real tokens from the padding behind them by the ids alone: CLIP's interface has no mask.

    Shapes: ids (b, l) int64 -> (b, l) bool, True up to the last token that is no padding; and for the first padding,
            where a tokenizer pads with its end token.
    """
    is_real = (ids != tokenizer.pad_token_id).flip(1).cumsum(1).flip(1) > 0  # is there a real one from here on?
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        is_real[:, 1:] |= is_real[:, :-1].clone()
    return is_real


def _check_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    ids, mask = tokenize_captions(["", "a"], tokenizer)
    if not torch.equal(real_tokens(torch.tensor(ids), tokenizer), torch.tensor(mask, dtype=torch.bool)):
        raise ValueError(
            f"The tokenizer pads on the {tokenizer.padding_side} with `{tokenizer.pad_token}`, which cannot be told "
            "from its ids alone. Expected padding on the right, by a token of its own or by the end token: code "
            "written for CLIP hands on ids without a mask. Use the tokenizer saved beside the tower."
        )


def _check_image(image: Tensor, size_px: int) -> None:
    if not isinstance(image, Tensor) or not image.is_floating_point():
        found = image.dtype if isinstance(image, Tensor) else f"a `{type(image).__name__}`"
        raise TypeError(
            f"`image` is {found} in `encode_image`. Expected a floating-point tensor, as `preprocess` makes it of a "
            "image. Stack what it returns."
        )
    if image.shape[1:] != (3, size_px, size_px) or not len(image):
        raise ValueError(
            f"`image` has shape {tuple(image.shape)} in `encode_image`. Expected (b, 3, {size_px}, {size_px}), as "
            "`preprocess` fits images. For a single one pass `image[None]`."
        )
    low, high = (float(value) for value in image.aminmax())
    if not (low >= -1 - ROUNDING and high <= 1 + ROUNDING):  # NaN compares to nothing
        raise ValueError(
            f"`image` runs from {low:g} to {high:g} in `encode_image`. Expected pixels in [-1, 1], not 0 to 255, nor "
            "what another CLIP's preprocess makes. Use this model's own `preprocess`."
        )


def _check_text(text: Tensor, max_length: int, vocab_size: int) -> None:
    if not isinstance(text, Tensor) or text.dtype not in (torch.int64, torch.int32):
        found = text.dtype if isinstance(text, Tensor) else f"a `{type(text).__name__}`"
        raise TypeError(
            f"`text` is {found} in `encode_text`. Expected int64 token ids, as `tokenizer` makes them of captions. "
            "Pass `tokenizer(captions)`."
        )
    if text.ndim != 2 or not text.numel() or text.shape[1] > max_length:
        raise ValueError(
            f"`text` has shape {tuple(text.shape)} in `encode_text`. Expected (b, l), a row of ids for each caption, "
            f"with l at most {max_length}, the text encoder's positions. Pass `tokenizer(captions)`, which cuts them."
        )
    low, high = (int(value) for value in text.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"`text` holds ids from {low} to {high} in `encode_text`. Expected 0 to {vocab_size - 1}, the vocabulary "
            "of the text encoder. Use this model's own `tokenizer`."
        )
