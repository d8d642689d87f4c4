"""The pipeline: stock Stable Diffusion for generation, and beside it naming and finding.

Here: images and captions in, embeddings, scores and rankings out. Not here: generation, which is diffusers' `__call__`
untouched, saving (`sharing.py`), and the networks (`models/`).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES
from torch import Tensor

from palindiff.data.images import Fit, read_pixels
from palindiff.inference.adapters import without_adapters
from palindiff.inference.arguments import (
    ImageInput,
    as_many,
    as_readable,
    check_batch_size,
    check_fit_name,
    check_guidance,
    check_steps,
    square_side,
)
from palindiff.inference.clip_adapter import ClipAdapter
from palindiff.inference.defaults import CAPTIONS_AT_ONCE, IMAGES_AT_ONCE, NAMING_GUIDANCE_SCALE, NAMING_STEPS
from palindiff.inference.labels import LABEL_TEMPLATES, check_labels, fill_templates
from palindiff.models.image_reading import ImageReading
from palindiff.models.query_stream import QueryStream, QueryStreamConfig
from palindiff.models.text_diffusion import DenoisingStep, first_noise, walk
from palindiff.models.text_encoder import TextEncoder
from palindiff.pretrained.layout import (
    check_fit,
    check_index,
    check_query_scheduler,
    check_text_width,
    check_whole,
)
from palindiff.pretrained.model_card import read_card
from palindiff.pretrained.saving import HubMixin
from palindiff.pretrained.stable_diffusion import stable_diffusion_parts, start_card
from palindiff.pretrained.text_encoders import load_text_model

# So that an index says ["palindiff", "QueryStream"], whatever module the class lives in, and diffusers finds it there.
LOADABLE_CLASSES["palindiff"] = {"QueryStream": ["save_pretrained", "from_pretrained"]}
ALL_IMPORTABLE_CLASSES.update(LOADABLE_CLASSES["palindiff"])


class PalindiffPipeline(HubMixin):
    """A Stable Diffusion pipeline whose U-Net also names images, through a query stream.

    `pipeline(prompt)` generates exactly as `StableDiffusionPipeline` does. The folder it saves is a Stable Diffusion
    folder with two more sub-folders, `query_stream/` and `query_scheduler/`.

    Naming works under `enable_model_cpu_offload()`: the parts it uses are brought to the device, where U-Net and query
    stream stay until generation or `maybe_free_model_hooks()`. Under `enable_sequential_cpu_offload()` it is refused.

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

        Whole or not at all, and from safetensors alone, whatever `use_safetensors` says: no pickle is opened.

        Raises: FileNotFoundError, OSError or ValueError if a part or one of its weights is missing or does not fit.
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
        pipeline.model_card = read_card(folder)
        return pipeline

    @classmethod
    def from_stable_diffusion(
        cls,
        source: str | Path,
        text: str | Path,
        query_stream: QueryStreamConfig = QueryStreamConfig(),  # noqa: B008  # frozen
        **options: Any,
    ) -> Self:
        """Start from a Stable Diffusion 1.x or 2.x (folder, Hub name or .safetensors file) and its CLIP.

        Generation stays that model's; the query stream is new, and names nothing before it is trained. Options: `seed`,
        `variant`, `config` (what a single file needs) and those of `StableDiffusionPipeline.from_pretrained`.

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
        """Show what code written for CLIP expects; the options are those of `ClipAdapter`."""
        return ClipAdapter(self, **options)

    @torch.no_grad()
    @without_adapters
    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Embed captions as the text encoder was trained to: what images' queries are compared with.

        Shapes: b captions -> e (b, d_e) float32, unit length.
        Raises: TypeError or ValueError if there are no captions, or they are one string.
        """
        encoder = self.caption_encoder
        self._bring("text_encoder", *(["query_stream"] if encoder.has_missing_layers else []))
        starts = range(0, max(len(captions), 1), CAPTIONS_AT_ONCE)
        parts = [encoder.encode(captions[start : start + CAPTIONS_AT_ONCE]).e for start in starts]
        return torch.cat(parts)

    @torch.no_grad()
    def encode_image(
        self,
        images: Sequence[ImageInput] | Tensor | ImageReading,
        num_inference_steps: int = NAMING_STEPS,
        guidance_scale: float = NAMING_GUIDANCE_SCALE,
        seed: int = 0,
        batch_size: int = IMAGES_AT_ONCE,
        fit: Fit = "crop",
        tell: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Walk each image's text query from noise to an embedding in the space of `encode_text`.

        Every image starts from the same noise, drawn from `seed`, so no batch changes an answer. `tell` hears how
        many are done.

        Source: DiffDis Algorithm 3; guidance_scale = 1 + w (1 turns guidance off).
        Shapes: b images, their latents z (b, ch, h, w), or their reading -> e_0_hat (b, d_e) float32, unit length.
        Raises: ValueError or TypeError if there are no images or an option cannot be; ImageFileError if an image
                cannot be read.
        """
        check_batch_size(batch_size)
        images, found = as_many(images, self.unet), []
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            *_, last = self.denoise_query(part, num_inference_steps, guidance_scale, seed, fit)
            found.append(last.e_0_hat)
            if tell is not None:
                tell(start + len(part))
        return torch.cat(found)

    @torch.no_grad()
    @without_adapters
    def denoise_query(
        self,
        images: Sequence[ImageInput] | Tensor | ImageReading,
        num_inference_steps: int = NAMING_STEPS,
        guidance_scale: float = NAMING_GUIDANCE_SCALE,
        seed: int = 0,
        fit: Fit = "crop",
    ) -> Iterator[DenoisingStep]:
        """Yield every step of the walk that `encode_image` takes; the last one's `e_0_hat` is the answer.

        Shapes: b images, their latents z (b, ch, h, w), or their reading.
        Raises: ValueError or TypeError if there are no images or an option cannot be; ImageFileError if an image
                cannot be read.
        """
        stream, unet = self.query_stream, self.unet
        is_one_way, has_chain = stream.config.fusion == "one_way", stream.config.text_chain == "diffusion"
        check_guidance(guidance_scale, seed)
        if has_chain:
            check_steps(num_inference_steps, self.query_scheduler.config.num_train_timesteps)
        images = as_many(images, self.unet)
        if not isinstance(images, Tensor | ImageReading):
            images = self.encode_latents(images, fit)
        device = self._bring("unet", "query_stream")
        if isinstance(images, Tensor):
            z = images.to(device, unet.dtype)
            images = stream.read_image(unet, z) if is_one_way else z
        images, b = images.to(device), len(images)
        no_image = self._no_image(images) if guidance_scale != 1 else images  # unguided walks don't look at it
        if not has_chain:
            yield self._single_pass(images, no_image, guidance_scale)
            return

        def predict_from(seen: Tensor | ImageReading, e_t: Tensor, t_e: Tensor) -> Tensor:
            e_t = e_t.to(stream.dtype)
            return stream(unet, seen, e_t, t_e) if is_one_way else stream.predict(unet, seen, e_t, t_e)

        yield from walk(
            lambda e_t, t_e: predict_from(images, e_t, t_e),
            lambda e_t, t_e: predict_from(no_image, e_t, t_e),
            self.query_scheduler,
            first_noise([seed] * b, stream.config.d_e).to(device),
            num_inference_steps,
            guidance_scale,
            stream.signal_scale,
        )

    @torch.no_grad()
    @without_adapters
    def read_image(self, images: Sequence[ImageInput], fit: Fit = "crop") -> ImageReading:
        """Read images once; the reading serves `encode_image` any number of times (`one_way` only)."""
        z = self.encode_latents(images, fit)
        self._bring("unet", "query_stream")
        return self.query_stream.read_image(self.unet, z)

    @torch.no_grad()
    def encode_latents(self, images: Sequence[ImageInput], fit: Fit = "crop") -> Tensor:
        """Decode, fit and encode images: the posterior's mean times the VAE's factor (decisions row 16).

        Shapes: b images -> z (b, ch, h, w).
        Raises: ValueError or TypeError if there are no images, or what is given are none, or for a `fit` that there
                is not; ImageFileError if an image cannot be read.
        """
        check_fit_name(fit)
        size_px = square_side(self.unet.config.sample_size) * self.vae_scale_factor
        squares = [read_pixels(image, size_px, fit) for image in as_readable(images, self.unet)]
        return self.encode_pixels(torch.stack(squares))  # b x (3, H, W) -> (b, 3, H, W)

    @torch.no_grad()
    def encode_pixels(self, x: Tensor) -> Tensor:
        """Shapes: x (b, 3, H, W) float in [-1, 1] -> z (b, ch, h, w), as `encode_latents`."""
        device = self._bring("vae")
        encoded = self.vae.encode(x.to(device, self.vae.dtype))  # of an AutoencoderTiny no distribution
        z = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return z * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_labels(self, labels: Sequence[str], templates: Sequence[str] = LABEL_TEMPLATES) -> Tensor:
        """Embed each label as the mean over prompt templates, brought to unit length again.

        Source: prompt ensembling of CLIP, as DiffDis evaluates.
        Shapes: k labels, p templates with `{}` -> (k, d_e) float32.
        Raises: ValueError if labels are none, blank, repeated or no strings, or a template has no `{}`.
        """
        check_labels(labels, templates)
        e = self.encode_text(fill_templates(labels, templates)).unflatten(
            0, (len(labels), len(templates))
        )  # (k*p, d) -> (k, p, d)
        return F.normalize(e.mean(dim=1), dim=-1)

    def classify(
        self,
        images: Sequence[ImageInput],
        labels: Sequence[str],
        templates: Sequence[str] = LABEL_TEMPLATES,
        **naming_options: Any,
    ) -> Tensor:
        """How probable each label is for each image, among these labels.

        Shapes: b images, k labels -> (b, k) float32, rows sum to 1: softmax of κ times the cosine.
        Raises: ValueError as `encode_labels`; ImageFileError if an image cannot be read.
        """
        e = self.encode_labels(labels, templates)
        e_0_hat = self.encode_image(images, **naming_options)
        return (self.query_stream.logit_scale.detach() * e_0_hat @ e.T).softmax(dim=-1)

    def rank(self, images: Sequence[ImageInput], captions: Sequence[str], **naming_options: Any) -> Tensor:
        """Score every caption for every image.

        Shapes: b images, m captions -> (b, m) float32, cosine in [-1, 1].
        """
        return self.encode_image(images, **naming_options) @ self.encode_text(captions).T

    def _single_pass(
        self, images: Tensor | ImageReading, no_image: Tensor | ImageReading, guidance_scale: float
    ) -> DenoisingStep:
        """One pass without noise or time, for `text_chain: none`."""
        stream, unet = self.query_stream, self.unet

        def predict(seen: Tensor | ImageReading) -> Tensor:
            if isinstance(seen, ImageReading):
                return stream(unet, seen, None, None)
            return stream.predict(unet, seen, None, None)

        e_0_hat = predict(images)
        if guidance_scale != 1:
            e_0_hat = guidance_scale * e_0_hat + (1 - guidance_scale) * predict(no_image)
        return DenoisingStep(0, torch.zeros_like(e_0_hat), F.normalize(e_0_hat, dim=-1))

    def _no_image(self, images: Tensor | ImageReading) -> Tensor | ImageReading:
        """The zero latents that guidance walks away from, or their reading, of the images' own size (row 11)."""
        if isinstance(images, Tensor):
            return torch.zeros_like(images)
        zero = torch.zeros(1, *images.latent_shape, device=self._execution_device, dtype=self.unet.dtype)
        return self.query_stream.read_image(self.unet, zero).repeat(len(images))

    def _bring(self, *names: str) -> torch.device:
        """Bring offloaded parts to the device where they run, which by itself only `forward` does, and tell it.

        Raises: ValueError if they are offloaded weight by weight.
        """
        for name in names:
            part = getattr(self, name)
            if any(weight.is_meta for weight in part.parameters()):
                raise ValueError(
                    f"The weights of `{name}` are on the device `meta`, as `enable_sequential_cpu_offload()` leaves "
                    "them. Expected whole parts, for naming. Call `enable_model_cpu_offload()` instead."
                )
            if hasattr(part, "_hf_hook"):
                part._hf_hook.pre_forward(part)
        return self._execution_device
