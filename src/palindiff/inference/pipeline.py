"""The pipeline: Stable Diffusion that also does zero-shot classification and image-text retrieval.

Here: images and captions in, embeddings, scores and rankings out. Not here: generation, which is diffusers' unchanged
`__call__`, saving (`pretrained/saving.py`), and the networks (`models/`).
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES
from torch import Tensor

from palindiff.data.images import Fit, ImageInput, read_pixels
from palindiff.inference import arguments
from palindiff.inference.adapters import without_adapters
from palindiff.inference.arguments import Images, ManyImages
from palindiff.inference.best_of import BestImage, best_of
from palindiff.inference.clip_adapter import ClipAdapter
from palindiff.inference.defaults import CAPTIONS_AT_ONCE, IMAGES_AT_ONCE, NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.labels import LABEL_TEMPLATES, embed_labels
from palindiff.inference.offloading import bring
from palindiff.models.image_reading import ImageReading
from palindiff.models.query_stream import QueryStream, QueryStreamConfig
from palindiff.models.text_diffusion import DenoisingStep, first_noise
from palindiff.models.text_encoder import TextEncoder
from palindiff.models.unet_encoder import square_side
from palindiff.models.vae import posterior_mean
from palindiff.pretrained.layout import check_fit, check_index, check_query_scheduler, check_text_width, check_whole
from palindiff.pretrained.model_card import read_card
from palindiff.pretrained.saving import HubMixin
from palindiff.pretrained.stable_diffusion import stable_diffusion_parts, start_card
from palindiff.pretrained.text_encoders import load_text_model
from palindiff.pretrained.vocabulary import read_vocabulary

# So that an index says ["palindiff", "QueryStream"], whatever module the class lives in, and diffusers finds it there.
LOADABLE_CLASSES["palindiff"] = {"QueryStream": ["save_pretrained", "from_pretrained"]}
ALL_IMPORTABLE_CLASSES.update(LOADABLE_CLASSES["palindiff"])


class PalindiffPipeline(HubMixin):
    """A Stable Diffusion pipeline whose U-Net also names images, by means of a query stream.

    `pipeline(prompt)` generates exactly as `StableDiffusionPipeline` does. It saves a Stable Diffusion folder with two
    more sub-folders, `query_stream/` and `query_scheduler/`.

    Naming works with `enable_model_cpu_offload()`: it moves the components it uses to the device; U-Net and query
    stream stay there until generation or `maybe_free_model_hooks()`. It refuses `enable_sequential_cpu_offload()`.

    Source: DiffDis (arXiv 2308.09306), Algorithms 2 and 3.
    """

    def __init__(  # type: ignore[no-untyped-def]  # any text encoder, any scheduler; diffusers reads this signature
        self,
        vae: AutoencoderKL,
        text_encoder,
        tokenizer,
        unet: UNet2DConditionModel,
        scheduler,
        query_stream: QueryStream,
        query_scheduler: SchedulerMixin,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker: bool = False,
    ) -> None:
        if unet is not None and vae is not None and unet.config.sample_size is None:  # as diffusers allows it
            side = square_side(vae.config.sample_size) // 2 ** (len(vae.config.block_out_channels) - 1)
            unet.register_to_config(sample_size=side)
        super().__init__(
            vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder,
            requires_safety_checker,
        )  # fmt: skip
        if query_stream is not None and unet is not None:
            check_fit(unet, query_stream)
        if query_stream is not None and text_encoder is not None:
            check_text_width(text_encoder, query_stream)
        if query_scheduler is not None:
            check_query_scheduler(query_scheduler)
        self.register_modules(query_stream=query_stream, query_scheduler=query_scheduler)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load a checkpoint folder, or a Hub name, with the options of `StableDiffusionPipeline.from_pretrained`.

        Loads safetensors only, whatever `use_safetensors` says: no pickle is opened.

        Raises: FileNotFoundError, OSError or ValueError if a component or one of its weights is missing or does not
                fit.
        """
        source = pretrained_model_name_or_path
        folder = Path(source) if Path(source).is_dir() else Path(cls.download(str(source), **options))
        check_index(folder, options)
        options["use_safetensors"] = True
        if not options.keys() & {"text_encoder", "variant", "device_map", "quantization_config"}:
            dtype = options.get("dtype", options.get("torch_dtype"))
            dtype = dtype.get("text_encoder", dtype.get("default")) if isinstance(dtype, dict) else dtype
            text_model: Any = load_text_model(folder / "text_encoder")
            options["text_encoder"] = text_model.to(dtype or torch.float32)
        pipeline = super().from_pretrained(folder, **options)
        if "device_map" not in options:
            check_whole(pipeline.components)
        pipeline.register_to_config(_name_or_path=str(source))
        pipeline.model_card, pipeline.vocabulary = read_card(folder), read_vocabulary(folder)
        return pipeline

    @classmethod
    def from_stable_diffusion(
        cls,
        source: str | Path,
        text: str | Path,
        query_stream: QueryStreamConfig = QueryStreamConfig(),  # noqa: B008  # frozen
        **options: Any,
    ) -> Self:
        """Build a pipeline from Stable Diffusion 1.x or 2.x (folder, Hub name or .safetensors file) and its CLIP.

        Generation does not change; the query stream has new weights and must be trained. Options: `query_scheduler`,
        `seed`, `variant`, `config` (for a single file) and those of `StableDiffusionPipeline.from_pretrained`.

        Raises: FileNotFoundError or ValueError as `stable_diffusion_parts`.
        """
        pipeline = cls(**stable_diffusion_parts(source, text, query_stream, **options))
        pipeline.model_card = start_card(source, text)
        return pipeline

    @property
    def caption_encoder(self) -> TextEncoder:
        """The text encoder with its tokenizer, its pooling and the projection that the query stream keeps."""
        stream = self.query_stream
        return TextEncoder(self.text_encoder, self.tokenizer, stream.config.pooling, stream.clip_projection)

    def as_clip(self, **options: Any) -> ClipAdapter:
        """Wrap the pipeline for code written for CLIP; the options are those of `ClipAdapter`."""
        return ClipAdapter(self, **options)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Embed captions as the text encoder was trained to; the queries of images are compared with these.

        Shapes: b captions -> e (b, d_e) float32, unit length.
        Raises: TypeError or ValueError if there are no captions, or they are one string.
        """
        return self.encode_tokens(*self.caption_encoder.tokenize(captions))

    @torch.no_grad()
    @without_adapters
    def encode_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embed captions that are tokenized and checked already.

        Shapes: ids (b, l) int64; mask (b, l) bool, True for real tokens -> e (b, d_e) float32, unit length.
        """
        encoder = self.caption_encoder
        bring(self, "text_encoder", *(["query_stream"] if encoder.has_missing_layers else []))
        parts = zip(ids.split(CAPTIONS_AT_ONCE), mask.split(CAPTIONS_AT_ONCE), strict=True)
        return torch.cat([encoder(of_part, is_real).e for of_part, is_real in parts])

    @torch.no_grad()
    def encode_image(
        self,
        images: Images,
        num_inference_steps: int = NAMING_STEPS,
        guidance_scale: float = NAMING_GUIDANCE_SCALE,
        seed: int = 0,
        batch_size: int = IMAGES_AT_ONCE,
        fit: Fit = "crop",
        progress: Callable[[str, int, int], None] | None = None,
        num_samples: int = 1,
    ) -> Tensor:
        """Denoise each image's text query to an embedding in the space of `encode_text`.

        Every image starts from the same noise, drawn from `seed`, so an answer does not depend on the batch. Images
        are read one at a time: memory does not grow with their number. `progress(what, done, total)` is called after
        every batch. With `num_samples`, an answer is the mean of the unit answers of the seeds `seed`, `seed + 1`, …,
        normalised (decisions row 19).

        Source: DiffDis Algorithm 3; guidance_scale = 1 + w (1 turns guidance off).
        Shapes: b images, their latents z (b, ch, h, w), or their reading -> e_0_hat (b, d_e) float32, unit length.
        Raises: ValueError or TypeError if there are no images or an option cannot work; ImageFileError if an image
                cannot be read.
        """
        self.check_options(num_inference_steps, guidance_scale, seed, batch_size, fit, num_samples)
        given, found, done = arguments.as_images(images, self.unet), [], 0
        for part in self._batches(given, batch_size, fit):
            reading, answers = part if num_samples == 1 else self.read_image(part), []
            for each in range(seed, seed + num_samples):
                *_, last = self.denoise_query(reading, num_inference_steps, guidance_scale, each)
                answers.append(last.e_0_hat)
            found.append(answers[0] if num_samples == 1 else F.normalize(torch.stack(answers).mean(dim=0), dim=-1))
            done += len(part)
            if progress is not None:
                progress("images", done, len(given))
        return torch.cat(found)

    @torch.no_grad()
    @without_adapters
    def denoise_query(
        self,
        images: Images,
        num_inference_steps: int = NAMING_STEPS,
        guidance_scale: float = NAMING_GUIDANCE_SCALE,
        seed: int = 0,
        fit: Fit = "crop",
    ) -> Iterator[DenoisingStep]:
        """Yield every denoising step of `encode_image` for one batch; the last one's `e_0_hat` is the answer.

        Guidance steers away from latents of zeros, as many and as large as the images' (decisions row 11).

        Shapes: b images, their latents z (b, ch, h, w), or their reading.
        Raises: as `encode_image`.
        """
        self.check_options(num_inference_steps, guidance_scale, seed, fit=fit)
        given = self._encoded(images, fit)
        device = bring(self, "unet", "query_stream")
        reading = uncond_reading = self._read(given, device)
        if guidance_scale != 1:
            uncond_reading = self._read(torch.zeros(1, *reading.latent_shape), device).repeat(len(reading))
        e_T = first_noise([seed], self.query_stream.config.d_e).repeat(len(reading), 1).to(device)
        yield from self.query_stream.denoise(
            self.unet, reading, uncond_reading, self.query_scheduler, e_T, num_inference_steps, guidance_scale
        )

    @torch.no_grad()
    @without_adapters
    def read_image(self, images: Images, fit: Fit = "crop") -> ImageReading:
        """Read images or latents once; `encode_image` accepts the reading any number of times.

        With `fusion: joint` a reading holds the latents and saves only the VAE.

        Raises: as `encode_latents`.
        """
        return self._read(self._encoded(images, fit), bring(self, "unet", "query_stream"))

    @torch.no_grad()
    def encode_latents(self, images: ManyImages | ImageInput, fit: Fit = "crop") -> Tensor:
        """Decode, fit and encode images: the posterior's mean times the VAE's factor (decisions row 16).

        Shapes: b images -> z (b, ch, h, w).
        Raises: ValueError or TypeError if there are no images, one is not an image, or `fit` is unknown;
                ImageFileError if an image cannot be read.
        """
        self.check_options(fit=fit)
        squares = [self._read_pixels(image, fit) for image in arguments.as_images(images, self.unet)]
        return self.encode_pixels(torch.stack(squares))  # b x (3, H, W) -> (b, 3, H, W)

    def check_options(self, *options: Any, **named: Any) -> None:
        """Refuse options of `encode_image` that cannot work, given in its order or by name.

        Raises: TypeError, ValueError.
        """
        num_train_timesteps = self.query_scheduler.config.num_train_timesteps
        arguments.check_options(
            num_train_timesteps if self.query_stream.has_text_diffusion else None, *options, **named
        )

    def best_of(
        self, prompts: Sequence[str], num_candidates: int, seeds: Sequence[int], **options: Any
    ) -> Iterator[BestImage]:
        """Generate candidates of each prompt and yield the best `BestImage`; as `palindiff.inference.best_of`."""
        return best_of(self, prompts, num_candidates, seeds, **options)

    @property
    def image_size_px(self) -> int:
        """Side of the squares that images are fitted to.

        Raises: ValueError if the U-Net was made for latents that are not square.
        """
        return square_side(self.unet.config.sample_size) * int(self.vae_scale_factor)

    def _batches(
        self, images: ManyImages | Tensor | ImageReading, batch_size: int, fit: Fit
    ) -> Iterator[Tensor | ImageReading]:
        """Split latents or a reading, or decode and encode images, a batch at a time."""
        if isinstance(images, Tensor | ImageReading):
            for start in range(0, len(images), batch_size):
                yield images[start : start + batch_size]
            return
        squares = (self._read_pixels(image, fit) for image in images)
        while part := list(islice(squares, batch_size)):
            yield self.encode_pixels(torch.stack(part))

    def _encoded(self, images: Images, fit: Fit) -> Tensor | ImageReading:
        """Encode images; return latents and readings unchanged."""
        given = arguments.as_images(images, self.unet)
        return given if isinstance(given, Tensor | ImageReading) else self.encode_latents(given, fit)

    def _read(self, given: Tensor | ImageReading, device: torch.device) -> ImageReading:
        if isinstance(given, ImageReading):
            return given.to(device)
        return self.query_stream.read_image(self.unet, given.to(device, self.unet.dtype))

    def _read_pixels(self, image: ImageInput, fit: Fit) -> Tensor:
        """Shapes: one image -> x (3, H, W) float in [-1, 1]."""
        arguments.check_image(image)
        return read_pixels(image, self.image_size_px, fit)

    @torch.no_grad()
    def encode_pixels(self, x: Tensor) -> Tensor:
        """Shapes: x (b, 3, H, W) float in [-1, 1] -> z (b, ch, h, w), as `encode_latents` returns."""
        device = bring(self, "vae")
        return posterior_mean(self.vae, x.to(device, self.vae.dtype))

    @torch.no_grad()
    def encode_labels(self, labels: Sequence[str], templates: Sequence[str] = LABEL_TEMPLATES) -> Tensor:
        """Embed each label as the mean over prompt templates, normalised to unit length.

        Source: prompt ensembling of CLIP, as DiffDis evaluates.
        Shapes: k labels, p templates with `{}` -> (k, d_e) float32.
        Raises: ValueError as `check_labels`.
        """
        return embed_labels(self.encode_text, labels, templates)

    def classify(
        self, images: Images, labels: Sequence[str], templates: Sequence[str] = LABEL_TEMPLATES, **naming_options: Any
    ) -> Tensor:
        """Zero-shot classification: the probability of each label for each image; options as in `encode_image`.

        A model is calibrated for the labels that it was validated on (`calibration.json` of its run); among other
        labels its probabilities may be too high or too low.

        Shapes: b images, k labels -> (b, k) float32, rows sum to 1: softmax of κ times the cosine, over a temperature.
        Raises: ValueError as `encode_labels`; what `encode_image` raises.
        """
        e = self.encode_labels(labels, templates)
        return self.probabilities(self.encode_image(images, **naming_options), e)

    def probabilities(self, e_0_hat: Tensor, e: Tensor) -> Tensor:
        """Shapes: e_0_hat (b, d_e) of images, e (k, d_e) of labels -> (b, k) float32, as `classify`."""
        return (self.query_stream.confidence_scale.detach() * e_0_hat @ e.T).softmax(dim=-1)

    def rank(self, images: Images, captions: Sequence[str], **naming_options: Any) -> Tensor:
        """Image-text retrieval: score every caption for every image; options as in `encode_image`.

        Shapes: b images, m captions -> (b, m) float32, cosine in [-1, 1].
        Raises: what `encode_image` and `encode_text` raise.
        """
        return self.encode_image(images, **naming_options) @ self.encode_text(captions).T
