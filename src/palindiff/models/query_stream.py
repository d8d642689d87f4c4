"""The second stream: a text query that walks the U-Net's encoder half beside the image, and its head.

Here: the query's own weights, both fusions, reading an image. Not here: the image's stream (`unet_encoder.py`),
noise (`text_chain.py`), losses.
"""

import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn

from palindiff.models.clip_projection import ClipProjection
from palindiff.models.image_reading import ImageReading
from palindiff.models.strict_model import StrictModel
from palindiff.models.unet_encoder import (
    Carry,
    attend,
    attention_sites,
    check_unet,
    image_block,
    keys_values,
    unet_encoder,
)

MAX_LOGIT_SCALE = 100.0  # CLIP's clamp


class QueryStreamConfig(BaseModel, frozen=True, extra="forbid"):
    """What a recipe may choose of the second stream; the rest follows from the U-Net and the text encoder."""

    fusion: Literal["one_way", "joint"] = "one_way"  # "joint": the image's tokens see the query too (the paper's)
    text_chain: Literal["diffusion", "none"] = "diffusion"  # "none": no noise, no time, one pass
    gamma: float = Field(0.01, gt=0, le=1)  # the paper's γ: scale of e_0 in the text diffusion
    query_scale: Literal["unit", "sqrt_d"] = "unit"  # length of e_0 before γ: 1, or √d for an image's signal-to-noise
    image_timestep: Literal["zero", "query"] = "zero"  # step told to the clean image; "query": t_e, `joint` only
    query_norms: Literal["own", "shared"] = "own"  # LayerNorms of the query's stream: its own, or the image's
    query_ffn: Literal["random", "copy"] = "random"  # start of the query's FFN: random, or the image's weights
    num_head_layers: int = Field(6, gt=0)
    head_width: int = Field(768, gt=0)
    head_dim: int = Field(64, gt=0)  # channels of one attention head in the query head
    logit_scale: float = Field(1 / 0.07, gt=0, le=MAX_LOGIT_SCALE)  # start of the learned κ


class SiteQuery(nn.Module):
    """The query's own layers at one attention site: into the site's width, a norm and an FFN a block, and back."""

    def __init__(self, d_e: int, ch: int, num_blocks: int, has_own_norms: bool) -> None:
        super().__init__()
        self.into = nn.Linear(d_e, ch)
        norms = [nn.LayerNorm(ch) if has_own_norms else nn.Identity() for _ in range(2 * num_blocks)]
        self.attention_norms, self.ffn_norms = nn.ModuleList(norms[:num_blocks]), nn.ModuleList(norms[num_blocks:])
        self.ffns = nn.ModuleList(FeedForward(ch, activation_fn="geglu") for _ in range(num_blocks))
        self.out = nn.Linear(ch, d_e)


class HeadLayer(nn.Module):
    """One pre-norm transformer block of the query head, over image tokens and query alike."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads=width // head_dim, dim_head=head_dim)
        self.ffn = FeedForward(width, activation_fn="geglu")

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Shapes: tokens (b, m, width) that attend; keys, values (b, heads, n, head_dim) -> (b, m, width)."""
        tokens = tokens + attend(self.attention, self.attention_norm(tokens), keys, values)
        return tokens + self.ffn(self.ffn_norm(tokens))


class QueryStream(StrictModel):
    """Φ_θ beside an untouched U-Net: from a noisy text query and an image to the clean query.

    Source: DiffDis Fig. 2 and 3.
    Departs: `one_way` fusion; own LayerNorms for the query; a learned logit scale; `text_chain: none`.
    """

    clip_projection: ClipProjection | None  # frozen; how captions become e_0 is part of the model

    @register_to_config
    def __init__(
        self,
        d_e: int,
        site_widths: list[int],
        site_num_blocks: list[int],
        mid_channels: int,
        fusion: str = "one_way",
        text_chain: str = "diffusion",
        gamma: float = 0.01,
        query_scale: str = "unit",
        image_timestep: str = "zero",
        query_norms: str = "own",
        num_head_layers: int = 6,
        head_width: int = 768,
        head_dim: int = 64,
        logit_scale: float = 1 / 0.07,
        pooling: str = "clip",
        clip_projection_settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        has_own_norms = query_norms == "own"
        sizes = zip(site_widths, site_num_blocks, strict=True)
        self.sites = nn.ModuleList(SiteQuery(d_e, ch, num_blocks, has_own_norms) for ch, num_blocks in sizes)
        if text_chain == "diffusion":
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
        """Build a stream with new weights for a U-Net and a text encoder whose embedding has d_e dimensions.

        `clip_projection` is copied; None where pooling needs none.

        Raises: ValueError if the U-Net's layout is not Stable Diffusion's.
        """
        check_unet(unet)
        transformers = list(attention_sites(unet))
        stream = cls(
            d_e=d_e,
            site_widths=[transformer.inner_dim for transformer in transformers],
            site_num_blocks=[len(transformer.transformer_blocks) for transformer in transformers],
            mid_channels=unet.mid_block.resnets[-1].out_channels,
            pooling=pooling,
            clip_projection_settings=None if clip_projection is None else clip_projection.settings,
            **config.model_dump(exclude={"query_ffn"}),
        )
        if clip_projection is not None:
            stream.clip_projection.load_state_dict(clip_projection.state_dict())
        if config.query_ffn == "copy":
            stream._copy_image_ffns(transformers)
        return stream

    @property
    def site_queries(self) -> list[SiteQuery]:
        """The query's own layers, site by site, in the order of the walk."""
        return cast("list[SiteQuery]", list(self.sites))

    @property
    def head_layers(self) -> list[HeadLayer]:
        """The query head, layer by layer."""
        return cast("list[HeadLayer]", list(self.head))

    @property
    def logit_scale(self) -> Tensor:
        """κ of the alignment loss, () float32, at most MAX_LOGIT_SCALE."""
        return self.log_logit_scale.float().clamp(max=math.log(MAX_LOGIT_SCALE)).exp()

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Bring the weight behind κ back to its bound, where it still has a gradient; training calls it at each use.

        Source: CLIP (Radford et al., 2021, §2.5).
        """
        self.log_logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    @property
    def signal_scale(self) -> float:
        """What multiplies the unit query in the text diffusion: γ, or γ √d."""
        length = math.sqrt(self.config.d_e) if self.config.query_scale == "sqrt_d" else 1.0
        return self.config.gamma * length

    def read_image(self, unet: UNet2DConditionModel, z: Tensor) -> ImageReading:
        """Read an image once: keys and values of every site and head layer, which no query changes.

        Source: ours.
        Shapes: z (b, ch, h, w), clean -> a reading of b images.
        Raises: ValueError in `joint`, where the image's tokens depend on the query.
        """
        if self.config.fusion != "one_way":
            raise ValueError(
                "`read_image` was called on a query stream with `fusion` = 'joint'. Expected 'one_way': in 'joint' "
                "the image's tokens see the query, so no reading serves two queries. Call `predict` instead."
            )

        def visit(site: int, transformer: Transformer2DModel, tokens: Tensor, context: Tensor, carry: Carry):  # type: ignore[no-untyped-def]
            for block in transformer.transformer_blocks:
                normed = block.norm1(tokens)
                keys, values = keys_values(block.attn1, normed)
                tokens = image_block(block, tokens, attend(block.attn1, normed, keys, values), context)
                carry = (*carry, keys, values)
            return tokens, carry

        t_zero = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        mid, carry = unet_encoder(unet, z, t_zero, self._no_text(unet, z), visit)
        tokens = self.image_into_head(mid.flatten(2).transpose(1, 2))  # (b, ch, h, w) -> (b, h*w, head_width)
        head_layers = []
        for layer in self.head_layers:
            keys, values = keys_values(layer.attention, layer.attention_norm(tokens))
            head_layers.append((keys, values))
            if layer is not self.head_layers[-1]:  # nobody reads the image's tokens after the last layer
                tokens = layer(tokens, keys, values)
        sites = tuple(zip(carry[::2], carry[1::2], strict=True))
        return ImageReading(sites, tuple(head_layers), tuple(z.shape[1:]))

    def forward(
        self, unet: UNet2DConditionModel, reading: ImageReading, e_t: Tensor | None, t_e: Tensor | None
    ) -> Tensor:
        """Predict the clean query from a reading: one token through every site and the head.

        Source: DiffDis §3.2, Fig. 3, with `one_way` fusion.
        Shapes: e_t (b, d_e); t_e (b,) int64; both None with `text_chain: none` -> e_0_hat (b, d_e) float32, unit.
        Raises: ValueError if a shape does not fit the reading.
        """
        drive = self._drive(e_t, t_e, len(reading), reading.head_layers[0][0].device)
        h, pairs = torch.zeros_like(drive), iter(reading.site_blocks)
        for site, transformer in zip(self.site_queries, attention_sites(unet), strict=True):
            q = site.into(h + drive)[:, None]  # (b, d_e) -> (b, 1, ch)
            for number, block in enumerate(transformer.transformer_blocks):
                normed, (keys, values) = self._normed(site, block, number, q), next(pairs)
                own_keys, own_values = keys_values(block.attn1, normed)
                q = q + attend(block.attn1, normed, _join(own_keys, keys), _join(own_values, values))
                q = self._ffn(site, block, number, q)
            h = site.out(q[:, 0])  # (b, 1, ch) -> (b, d_e)
        q = self.query_into_head(h)[:, None]
        for layer, (keys, values) in zip(self.head_layers, reading.head_layers, strict=True):
            own_keys, own_values = keys_values(layer.attention, layer.attention_norm(q))
            q = layer(q, _join(own_keys, keys), _join(own_values, values))
        return self._predict(q[:, 0])

    def predict(self, unet: UNet2DConditionModel, z: Tensor, e_t: Tensor | None, t_e: Tensor | None) -> Tensor:
        """Predict the clean query from a clean latent, in the fusion that the weights were made for.

        Shapes: z (b, ch, h, w); e_t (b, d_e); t_e (b,) int64 -> e_0_hat (b, d_e) float32, unit length.
        """
        if self.config.fusion == "one_way":
            return self.forward(unet, self.read_image(unet, z), e_t, t_e)
        return self.joint(unet, z, e_t, t_e)[0]

    def joint(
        self, unet: UNet2DConditionModel, z: Tensor, e_t: Tensor | None, t_e: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Walk the encoder half with query and image attending to each other.

        Source: DiffDis Fig. 3.
        Shapes: z (b, ch, h, w); e_t (b, d_e); t_e (b,) int64 -> e_0_hat (b, d_e), mid features (b, ch, h, w).
        Departs: own LayerNorms for the query (decisions row 13).
        """
        drive = self._drive(e_t, t_e, len(z), z.device)

        def visit(site: int, transformer: Transformer2DModel, tokens: Tensor, context: Tensor, carry: Carry):  # type: ignore[no-untyped-def]
            """Run a site with the query among its tokens."""
            own, (h,) = self.site_queries[site], carry
            q = own.into(h + drive)[:, None]  # (b, d_e) -> (b, 1, ch)
            for number, block in enumerate(transformer.transformer_blocks):
                normed = torch.cat([self._normed(own, block, number, q), block.norm1(tokens)], dim=1)  # (b, 1 + n, ch)
                attended = attend(block.attn1, normed, *keys_values(block.attn1, normed))
                q = self._ffn(own, block, number, q + attended[:, :1])
                tokens = image_block(block, tokens, attended[:, 1:], context)
            return tokens, (own.out(q[:, 0]),)

        t = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        if self.config.image_timestep == "query" and t_e is not None:
            t = t_e
        mid, (h,) = unet_encoder(unet, z, t, self._no_text(unet, z), visit, (torch.zeros_like(drive),))
        image = self.image_into_head(mid.flatten(2).transpose(1, 2))  # (b, ch, h, w) -> (b, h*w, head_width)
        tokens = torch.cat([self.query_into_head(h)[:, None], image], dim=1)
        for layer in self.head_layers:
            tokens = layer(tokens, *keys_values(layer.attention, layer.attention_norm(tokens)))
        return self._predict(tokens[:, 0]), mid

    def _drive(self, e_t: Tensor | None, t_e: Tensor | None, b: int, device: torch.device) -> Tensor:
        """e_t + τ(t_e), the part of every site's input that is the same at all sites; zero without a text diffusion."""
        if self.config.text_chain == "none":
            return torch.zeros(b, self.config.d_e, device=device, dtype=self.dtype)
        if e_t is None or t_e is None or e_t.shape != (b, self.config.d_e) or t_e.shape != (b,):
            found = [None if tensor is None else tuple(tensor.shape) for tensor in (e_t, t_e)]
            raise ValueError(
                f"`e_t` has shape {found[0]} and `t_e` {found[1]} in `QueryStream`. Expected ({b}, {self.config.d_e}) "
                f"and ({b},): one query and one step an image. Repeat the reading or the queries until they fit."
            )
        time = self.time_features(t_e).to(e_t.dtype)
        return e_t + self.time_embedding(time)

    def _no_text(self, unet: UNet2DConditionModel, z: Tensor) -> Tensor:
        """The masked condition: one zero token (decisions row 8)."""
        return z.new_zeros(len(z), 1, unet.config.cross_attention_dim)

    def _normed(self, site: SiteQuery, block: BasicTransformerBlock, number: int, q: Tensor) -> Tensor:
        return site.attention_norms[number](q) if self.config.query_norms == "own" else block.norm1(q)

    def _ffn(self, site: SiteQuery, block: BasicTransformerBlock, number: int, q: Tensor) -> Tensor:
        normed = site.ffn_norms[number](q) if self.config.query_norms == "own" else block.norm3(q)
        return q + site.ffns[number](normed)

    def _predict(self, q: Tensor) -> Tensor:
        return F.normalize(self.predictor(self.head_norm(q)).float(), dim=-1)

    def _copy_image_ffns(self, transformers: list[Transformer2DModel]) -> None:
        for site, transformer in zip(self.site_queries, transformers, strict=True):
            for ffn, block in zip(site.ffns, transformer.transformer_blocks, strict=True):
                ffn.load_state_dict(block.ff.state_dict())


def _join(own: Tensor, image: Tensor) -> Tensor:
    return torch.cat([own, image.to(own.dtype)], dim=2)  # (b, heads, 1, d), (b, heads, n, d) -> (b, heads, 1 + n, d)


def _check_config(config) -> None:  # type: ignore[no-untyped-def]
    """Refuse what cannot work, also where it comes from a file."""
    chosen = {name: config[name] for name in QueryStreamConfig.model_fields if name != "query_ffn"}
    try:
        QueryStreamConfig.model_validate(chosen, strict=True)
    except ValidationError as error:
        told = [f"`{'.'.join(map(str, e['loc']))}` is {e['input']!r} ({e['msg'].lower()})" for e in error.errors()]
        raise ValueError(
            f"In a query stream {', '.join(told)}. Expected settings that `QueryStreamConfig` allows. "
            "Correct them, in the model's config.json if it was loaded."
        ) from error
    if config.image_timestep == "query" and config.fusion != "joint":
        raise ValueError(
            f"`image_timestep` is 'query' with `fusion` = '{config.fusion}' in a query stream. Expected 'zero': a "
            "image that is read once cannot be told the query's step. Set `fusion: joint` or `image_timestep: zero`."
        )
    if config.head_width % config.head_dim:
        raise ValueError(
            f"`head_width` is {config.head_width} and `head_dim` {config.head_dim} in a query stream. Expected a "
            f"multiple of {config.head_dim}. Change one of the two."
        )
