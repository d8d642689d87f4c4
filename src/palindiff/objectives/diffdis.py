"""DiffDis: generation and alignment on the same batch. Batch in, named losses out.

Here: Algorithm 1. Not here: the networks, the schedulers, the optimizer.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin, UNet2DConditionModel
from pydantic import BaseModel, Field
from torch import Tensor, nn

from palindiff.models.logit_scale import clamp_log_logit_scale_
from palindiff.models.query_stream import QueryStream
from palindiff.models.text_diffusion import draw_steps, noisy_query
from palindiff.models.text_encoder import TextEncoder
from palindiff.models.unet_encoder import cross_attention_without_text, square_side, unet_encoder_parameters
from palindiff.objectives.alignment import global_alignment_loss
from palindiff.objectives.generation import drop_captions, generation_target, posterior_draw
from palindiff.objectives.gradient_cache import in_chunks

Task = Literal["both", "generation", "alignment"]


class DiffDisConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The tasks, their weight, and the drop rates that classifier-free guidance needs."""

    name: Literal["diffdis"] = "diffdis"  # chooses the trainer
    task: Task = "both"  # "generation" or "alignment" trains one task alone, the paper's Table 4
    alignment_weight: float = Field(1.0, gt=0)  # λ of eq. 9; `task: generation` trains without the alignment loss
    text_drop_rate: float = Field(0.1, ge=0, le=1)  # share of captions replaced by the empty one; 0 turns it off
    image_drop_rate: float = Field(0.1, ge=0, le=1)  # share of latents zeroed for alignment; 0 turns it off
    t_e_power: float = Field(1.0, ge=1)  # k of t_e = T (1 - u^k): 1 draws all steps alike, more draws noisier ones
    query_caption: Literal["target", "any"] = "target"
    """Which caption of the image is noised: the one that the loss asks for, or any of them, drawn independently"""


class DiffDisObjective(nn.Module):
    """Both losses of U-Net and query stream on the same batch (Algorithm 1)."""

    c_empty: Tensor | None
    empty_ids: Tensor
    empty_mask: Tensor

    def __init__(
        self,
        unet: UNet2DConditionModel,
        query_stream: QueryStream,
        scheduler: SchedulerMixin,
        query_scheduler: SchedulerMixin,
        c_empty: Tensor | None,
        config: DiffDisConfig,
        caption_encoder: TextEncoder | None = None,
        grad_cache_size: int = 0,
    ) -> None:
        """c_empty (1, l, d_c) is the empty caption's condition, which a dropped caption is replaced by.

        With a `caption_encoder` it is None, and batches bring captions' tokens instead of their features.

        grad_cache_size: rows whose activations are in memory at once; 0: those of all.
        """
        super().__init__()
        self.grad_cache_size = grad_cache_size
        self.caption_encoder = caption_encoder
        self.unet, self.query_stream, self.config = unet, query_stream, config
        self.scheduler, self.query_scheduler = scheduler, query_scheduler
        self.register_buffer("c_empty", c_empty, persistent=False)
        if caption_encoder is not None:
            for name, tokens in zip(("empty_ids", "empty_mask"), caption_encoder.tokenize([""]), strict=True):
                self.register_buffer(name, tokens, persistent=False)
        self._freeze_what_the_task_leaves_out()

    def draw(self, b: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a batch's random numbers: noise and steps of both diffusions, the posterior's noise, and the drops."""
        config, num_query_steps = self.unet.config, self.query_scheduler.config.num_train_timesteps
        side = square_side(config.sample_size)
        size = (b, config.in_channels, side, side)
        return {
            "eps_posterior": torch.randn(size, generator=generator),
            "eps_z": torch.randn(size, generator=generator),
            "t_z": torch.randint(self.scheduler.config.num_train_timesteps, (b,), generator=generator),
            "eps_e": torch.randn(b, self.query_stream.config.d_e, generator=generator),
            "t_e": draw_steps(b, num_query_steps, self.config.t_e_power, generator),
            "text_uniform": torch.rand(b, generator=generator),
            "image_uniform": torch.rand(b, generator=generator),
        }

    def forward(self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Both losses and their sum.

        Source: DiffDis eq. 9, Algorithm 1.
        Shapes: batch: z_mean, z_std (b, ch, h, w), scaled by the VAE's factor; z_named_mean, z_named_std, the same of
                the view of the image that alignment uses, if it is another; c (b, l, d_c) and e_0 (b, d_e) unit, or
                ids (b, l) int64 and mask (b, l) bool, which the text encoder encodes; caption_id (b,) int64;
                e_query (b, d_e) unit, of the captions that are noised, with `query_caption: any`.
                draws: as `draw` gives, this process's rows. -> () float32 each.
        """
        z_0 = z_named = posterior_draw(batch["z_mean"], batch["z_std"], draws["eps_posterior"])
        if "z_named_mean" in batch:
            z_named = posterior_draw(batch["z_named_mean"], batch["z_named_std"], draws["eps_posterior"])
        c, e_0, c_empty = self.texts(batch)
        losses: dict[str, Tensor] = {}
        if self.config.task != "alignment":
            losses["generation"] = self.generation_loss(z_0, c, c_empty, draws)
        if self.config.task != "generation":
            e_query = batch["e_query"] if self.config.query_caption == "any" else None
            losses["alignment"] = self.alignment(z_named, e_0, batch["caption_id"], draws, e_query)
        weights = {"alignment": self.config.alignment_weight} if self.config.task == "both" else {}
        total = torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
        return {"loss": total} | {name: loss.detach() for name, loss in losses.items()}

    def generation_loss(self, z_0: Tensor, c: Tensor, c_empty: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
        """L_IG = E‖ε_z − Φ_u(z_t, t_z, c)‖², or the scheduler's prediction type; the query stream does not run.

        Source:  DiffDis eq. 4.
        Shapes:  z_0 (b, ch, h, w); c (b, l, d_c); c_empty (1, l, d_c) -> () float32, mean over all numbers.
        Departs: a dropped caption becomes the empty caption, as Stable Diffusion has it (decisions row 10).
        """
        c = drop_captions(c, c_empty, draws, self.config.text_drop_rate)
        z_t = self.scheduler.add_noise(z_0, draws["eps_z"], draws["t_z"])
        (predicted,) = in_chunks(
            lambda *rows: (self.unet(*rows).sample,), [z_t, draws["t_z"], c], self.grad_cache_size
        )
        return F.mse_loss(predicted.float(), generation_target(self.scheduler, z_0, draws["eps_z"], draws["t_z"]))

    def alignment(
        self, z_0: Tensor, e_0: Tensor, caption_id: Tensor, draws: Mapping[str, Tensor], e_query: Tensor | None = None
    ) -> Tensor:
        """L_ITA at the sampled step of the text diffusion, over the global batch; image clean, text condition masked.

        With `e_query`, the query is noised from one caption of the image and compared with another, both drawn
        uniformly and independently. In expectation every caption of an image is a positive of a query made from any of
        them, so even a query with little noise shows what the image is about, not which caption is asked for.

        Source:  DiffDis eq. 5 to 8.
        Shapes:  z_0 (b, ch, h, w); e_0 (b, d_e) of the captions in the loss; e_query (b, d_e) of those that are
                 noised, None for the same; caption_id (b,) int64 of e_0 -> () float32.
        Departs: the paper has one caption an image; `e_query` is ours.
        """
        is_dropped = draws["image_uniform"] < self.config.image_drop_rate
        z = torch.where(is_dropped[:, None, None, None], torch.zeros_like(z_0), z_0)
        e_t = t_e = None
        if self.query_stream.has_text_diffusion:
            t_e, stream, scheduler = draws["t_e"], self.query_stream, self.query_scheduler
            clean = e_0 if e_query is None else e_query
            e_t = stream.network_input(
                scheduler, noisy_query(scheduler, clean, draws["eps_e"], t_e, stream.signal_scale), t_e
            )
        noisy = [] if e_t is None or t_e is None else [e_t, t_e]
        (e_0_hat,) = in_chunks(self._predict, [z, *noisy], self.grad_cache_size)
        if self.training:
            clamp_log_logit_scale_(self.query_stream.log_logit_scale)
        return global_alignment_loss(e_0_hat, e_0, self.query_stream.logit_scale, caption_id)

    def _predict(self, z: Tensor, e_t: Tensor | None = None, t_e: Tensor | None = None) -> tuple[Tensor]:
        """Shapes: z (b, ch, h, w); e_t (b, d_e); t_e (b,) -> e_0_hat (b, d_e)."""
        return (self.query_stream(self.unet, self.query_stream.read_image(self.unet, z), e_t, t_e),)

    def parameter_groups(self, learning_rate: float, new_learning_rate: float) -> list[dict[str, object]]:
        """The paper's two learning rates: one of the U-Net and text encoder, one of the new query stream."""
        rates = {self.unet: learning_rate, self.query_stream: new_learning_rate, self.caption_encoder: learning_rate}
        trained = {part: [w for w in part.parameters() if w.requires_grad] for part in rates if part is not None}
        return [{"params": weights, "lr": rates[part]} for part, weights in trained.items() if weights]

    def texts(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Take a batch's c and e_0 and the empty caption's c as they come, or encode them now.

        All are encoded in one forward, or the empty caption by itself beside the chunks of a gradient cache.

        Shapes: batch as `forward` takes it -> c (b, l, d_c); e_0 (b, d_e); c_empty (1, l, d_c).
        """
        if self.caption_encoder is None:
            assert self.c_empty is not None, "captions come as features where there is no encoder"
            return batch["c"], batch["e_0"], self.c_empty
        if self.grad_cache_size:
            c, e = in_chunks(self._encode_captions, [batch["ids"], batch["mask"]], self.grad_cache_size)
            return c, e, self._encode_captions(self.empty_ids, self.empty_mask)[0]
        ids, mask = torch.cat([batch["ids"], self.empty_ids]), torch.cat([batch["mask"], self.empty_mask])
        c, e = self._encode_captions(ids, mask)
        return c[:-1], e[:-1], c[-1:]  # the empty caption comes last

    def _encode_captions(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        assert self.caption_encoder is not None, "captions come as features where there is no encoder"
        encoded = self.caption_encoder(ids, mask)
        return encoded.c, encoded.e

    def _freeze_what_the_task_leaves_out(self) -> None:
        """A single task trains only the weights it uses, so that weight decay and EMA do not change the others.

        Alignment uses the encoder half; with the text masked, cross-attention contributes only its output bias.
        """
        if self.config.task == "generation":
            self.query_stream.requires_grad_(False)
        if self.config.task == "alignment":
            trained = [weight for weight in unet_encoder_parameters(self.unet) if weight.requires_grad]
            self.unet.requires_grad_(False)
            for weight in trained:
                weight.requires_grad_(True)
            for weight in cross_attention_without_text(self.unet):
                weight.requires_grad_(False)
