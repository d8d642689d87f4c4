"""The second stream: a text query that passes through the U-Net's down and mid blocks as an extra token; its head.

Here: its configuration and weights, and the choice of a fusion: how image and query attend to each other. Not here:
the fusions (`one_way.py`, `joint.py`), the image's stream (`unet_encoder.py`), noise (`text_diffusion.py`), losses.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn

from palindiff.models import head, joint, one_way
from palindiff.models.clip_projection import ClipProjection
from palindiff.models.image_reading import ImageReading
from palindiff.models.logit_scale import MAX_LOGIT_SCALE, bounded
from palindiff.models.query_layers import HeadLayer, QueryLayers, SiteQuery
from palindiff.models.strict_model import StrictModel
from palindiff.models.text_diffusion import DenoisingStep, Predict, denoise, guided, input_scale
from palindiff.models.unet_encoder import attention_sites, check_unet, site_sizes

FUSIONS = {"one_way": one_way, "joint": joint, "head": head}


class QueryStreamConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Settings of the query stream that a recipe may choose; the others follow from U-Net and text encoder."""

    fusion: Literal["one_way", "joint", "head"] = "one_way"
    """A key of FUSIONS: "joint", the image attends to the query too; "head", they meet in the query head alone"""
    text_chain: Literal["diffusion", "none"] = "diffusion"  # "none": regression, without noise or time, in one pass
    gamma: float = Field(0.01, gt=0, le=1)  # the paper's γ: scale of e_0 in the text diffusion
    query_scale: Literal["unit", "sqrt_d"] = "unit"  # length of e_0 before γ: 1, or √d for an image's signal-to-noise
    query_input: Literal["raw", "normalised"] = "raw"  # "normalised": the network gets c_in e_t, as long at every step
    image_timestep: Literal["zero", "query"] = "zero"  # U-Net's step for the clean image; "query": t_e, `joint` only
    query_norms: Literal["own", "shared"] = "own"  # LayerNorms of the query's stream: its own, or the image's
    query_ffn: Literal["random", "copy"] = "random"  # initial FFN of the query: random, or a copy of the image's
    num_head_layers: int = Field(6, gt=0)
    head_width: int = Field(768, gt=0)
    head_dim: int = Field(64, gt=0)  # channels of one attention head in the query head
    logit_scale: float = Field(1 / 0.07, gt=0, le=MAX_LOGIT_SCALE)  # initial value of the learned κ


DEFAULTS = QueryStreamConfig()


class QueryStream(StrictModel):
    """Φ_θ: predicts the clean text query from a noisy one and an image, with the layers of an unmodified U-Net.

    Source: DiffDis Fig. 2 and 3.
    Departs: fusions `one_way` and `head`; own LayerNorms for the query; a learned logit scale; `text_chain: none`.
    """

    settings_since = frozenset({"query_input"})
    clip_projection: ClipProjection | None  # frozen; how captions become e_0 is part of the model

    @register_to_config
    def __init__(
        self,
        d_e: int,
        site_widths: list[int],
        site_num_blocks: list[int],
        mid_channels: int,
        fusion: str = DEFAULTS.fusion,
        text_chain: str = DEFAULTS.text_chain,
        gamma: float = DEFAULTS.gamma,
        query_scale: str = DEFAULTS.query_scale,
        query_input: str = DEFAULTS.query_input,
        image_timestep: str = DEFAULTS.image_timestep,
        query_norms: str = DEFAULTS.query_norms,
        num_head_layers: int = DEFAULTS.num_head_layers,
        head_width: int = DEFAULTS.head_width,
        head_dim: int = DEFAULTS.head_dim,
        logit_scale: float = DEFAULTS.logit_scale,
        pooling: str = "clip",
        clip_projection_settings: dict[str, Any] | None = None,
        temperature: float = 1.0,  # of classification's probabilities, fitted when training ends
    ) -> None:
        super().__init__()
        _check_config(self.config)
        has_own_norms = query_norms == "own"
        sizes = zip(site_widths, site_num_blocks, strict=True) if FUSIONS[fusion].HAS_SITES else ()
        self.sites = nn.ModuleList(SiteQuery(d_e, ch, num_blocks, has_own_norms) for ch, num_blocks in sizes)
        if self.has_text_diffusion:
            self.time_features = Timesteps(d_e, flip_sin_to_cos=True, downscale_freq_shift=0)
            self.time_embedding = TimestepEmbedding(d_e, d_e)
        self.image_into_head = nn.Linear(mid_channels, head_width)
        self.query_into_head = nn.Linear(d_e, head_width)
        self.head = nn.ModuleList(HeadLayer(head_width, head_dim) for _ in range(num_head_layers))
        self.head_norm = nn.LayerNorm(head_width)
        self.predictor = nn.Linear(head_width, d_e)
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale)))
        self.clip_projection = ClipProjection(clip_projection_settings) if clip_projection_settings else None

    @classmethod
    def for_unet(
        cls,
        unet: UNet2DConditionModel,
        d_e: int,
        config: QueryStreamConfig,
        pooling: str,
        clip_projection: ClipProjection | None = None,
    ) -> "QueryStream":
        """Build a stream with new weights for a U-Net and a text encoder whose embeddings have d_e dimensions.

        `clip_projection` is copied; None where pooling needs none.

        Raises: ValueError if the U-Net's layout is not Stable Diffusion's.
        """
        check_unet(unet.config)
        stream = cls(
            d_e=d_e,
            pooling=pooling,
            clip_projection_settings=None if clip_projection is None else clip_projection.settings,
            **site_sizes(unet),
            **config.model_dump(exclude={"query_ffn"}),
        )
        if clip_projection is not None:
            stream.clip_projection.load_state_dict(clip_projection.state_dict())
        if config.query_ffn == "copy" and stream.layers.sites:
            for site, transformer in zip(stream.layers.sites, attention_sites(unet), strict=True):
                site.copy_image_ffns(transformer)
        return stream

    @property
    def layers(self) -> QueryLayers:
        """The layers that a fusion runs: of every attention site, in the order of the U-Net, and of the head."""
        sites, head = cast("list[SiteQuery]", list(self.sites)), cast("list[HeadLayer]", list(self.head))
        return QueryLayers(sites, self.image_into_head, self.query_into_head, head)

    @property
    def logit_scale(self) -> Tensor:
        """κ of the alignment loss, () float32, at most MAX_LOGIT_SCALE."""
        return bounded(self.log_logit_scale).exp()

    @property
    def confidence_scale(self) -> Tensor:
        """Factor of a cosine in the probabilities of classification: κ over the fitted temperature, () float32."""
        return self.logit_scale / self.config.temperature

    @property
    def has_text_diffusion(self) -> bool:
        """Whether the query is denoised in steps; otherwise one pass without noise or time predicts it."""
        return bool(self.config.text_chain == "diffusion")

    @property
    def signal_scale(self) -> float:
        """Factor of the unit query in the text diffusion: γ, or γ √d."""
        length = math.sqrt(self.config.d_e) if self.config.query_scale == "sqrt_d" else 1.0
        return self.config.gamma * length

    def read_image(self, unet: UNet2DConditionModel, z: Tensor) -> ImageReading:
        """Compute once what every query needs of an image.

        Source: ours.
        Shapes: z (b, ch, h, w), clean -> a reading of b images.
        """
        tensors = FUSIONS[self.config.fusion].read_image(self.layers, unet, z)
        return ImageReading(tensors, tuple(z.shape[1:]))

    def network_input(self, scheduler: SchedulerMixin, e_t: Tensor, t_e: Tensor) -> Tensor:
        """What `forward` takes for a noisy query: itself, or c_in times it with `query_input: normalised`.

        Source: c_in of EDM (`input_scale`).
        Shapes: e_t (b, d_e) as `noisy_query` returns it; t_e (b,) -> (b, d_e).
        """
        if self.config.query_input == "raw":
            return e_t
        return e_t * input_scale(scheduler, t_e, self.signal_scale, self.config.d_e)

    def forward(
        self, unet: UNet2DConditionModel, reading: ImageReading, e_t: Tensor | None, t_e: Tensor | None
    ) -> Tensor:
        """Predict the clean query of each image.

        Source: DiffDis §3.2, Fig. 3.
        Shapes: e_t (b, d_e), what `network_input` makes of a noisy query; t_e (b,) int64; both None with
                `text_chain: none` -> e_0_hat (b, d_e) float32, unit.
        Raises: ValueError if a shape does not fit the reading.
        """
        drive = self._drive(e_t, t_e, len(reading), reading.tensors[0].device)
        t_image = t_e if self.config.image_timestep == "query" else None
        q = FUSIONS[self.config.fusion].predict(self.layers, unet, reading.tensors, drive, t_image)
        return F.normalize(self.predictor(self.head_norm(q)).float(), dim=-1)

    def denoise(
        self,
        unet: UNet2DConditionModel,
        reading: ImageReading,
        uncond_reading: ImageReading,
        scheduler: SchedulerMixin,
        e_T: Tensor,
        num_steps: int,
        guidance_scale: float,
    ) -> Iterator[DenoisingStep]:
        """Yield the steps of the text diffusion, or the one step of a regression (`text_chain: none`), at t_e = 0.

        Source: DiffDis Algorithm 3.
        Shapes: reading, uncond_reading of b images, the second of zero latents, read for guidance; e_T (b, d_e).
        """

        def predict_from(reading: ImageReading) -> Predict:
            return lambda e_t, t_e: self(unet, reading, e_t, t_e)

        predict = guided(predict_from(reading), predict_from(uncond_reading), guidance_scale)
        if self.has_text_diffusion:

            def predict_noisy(e_t: Tensor, t_e: Tensor) -> Tensor:
                return predict(self.network_input(scheduler, e_t, t_e).to(self.dtype), t_e)

            yield from denoise(predict_noisy, scheduler, e_T, num_steps, self.signal_scale)
        else:
            e_0_hat = predict(None, None)
            yield DenoisingStep(0, torch.zeros_like(e_0_hat), F.normalize(e_0_hat, dim=-1))

    def _drive(self, e_t: Tensor | None, t_e: Tensor | None, b: int, device: torch.device) -> Tensor:
        """e_t + τ(t_e), the part of the input that all sites share; zero without text diffusion."""
        if not self.has_text_diffusion:
            return torch.zeros(b, self.config.d_e, device=device, dtype=self.dtype)
        if e_t is None or t_e is None or e_t.shape != (b, self.config.d_e) or t_e.shape != (b,):
            found = [None if tensor is None else tuple(tensor.shape) for tensor in (e_t, t_e)]
            raise ValueError(
                f"`e_t` has shape {found[0]} and `t_e` {found[1]} in `QueryStream`. Expected ({b}, {self.config.d_e}) "
                f"and ({b},): one query and one step an image. Repeat the reading or the queries until they fit."
            )
        time = self.time_features(t_e).to(e_t.dtype)
        return e_t + self.time_embedding(time)


def _check_config(config) -> None:  # type: ignore[no-untyped-def]
    """Refuse settings that cannot work, from a file or a caller.

    Raises: ValueError.
    """
    chosen = {name: config[name] for name in QueryStreamConfig.model_fields if name != "query_ffn"}
    try:
        QueryStreamConfig.model_validate(chosen, strict=True)
    except ValidationError as error:
        found = [f"`{'.'.join(map(str, e['loc']))}` is {e['input']!r} ({e['msg'].lower()})" for e in error.errors()]
        raise ValueError(
            f"In a query stream {', '.join(found)}. Expected settings that `QueryStreamConfig` allows. "
            "Fix them, in the model's config.json if it was loaded."
        ) from error
    if config.image_timestep == "query" and FUSIONS[config.fusion].READS_ONCE:
        raise ValueError(
            f"`image_timestep` is 'query' with `fusion` = '{config.fusion}' in a query stream. Expected 'zero': an "
            "image that is read once cannot depend on the query's step. Set `fusion: joint` or `image_timestep: zero`."
        )
    if not 0 < config.temperature < math.inf:
        raise ValueError(
            f"`temperature` is {config.temperature!r} in a query stream. Expected a number above 0. Fix the config."
        )
    if config.head_width % config.head_dim:
        raise ValueError(
            f"`head_width` is {config.head_width} and `head_dim` {config.head_dim} in a query stream. Expected a "
            f"multiple of {config.head_dim}. Change one of the two."
        )
