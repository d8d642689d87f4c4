"""UniDiff: CLIP and Stable Diffusion trained at once on the same images and captions. Batch in, named losses out.

Here: the three losses and what they share. Not here: the forms of the third (`consistency.py`), the networks, LoRA
(`models/lora.py`), the optimizer.

UniDiff's paper (arXiv 2306.00813) is public as an abstract only, and without code: this is a reconstruction.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin, UNet2DConditionModel
from pydantic import BaseModel, Field
from torch import Tensor, nn

from palindiff.models.unet_encoder import square_side
from palindiff.objectives.alignment import global_batch
from palindiff.objectives.consistency import projected_consistency, relational_consistency
from palindiff.objectives.contrastive import ContrastiveObjective
from palindiff.objectives.generation import drop_captions, generation_target, posterior_draw
from palindiff.objectives.gradient_cache import in_chunks


class UniDiffConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The weights of the three losses, and what consistency compares."""

    name: Literal["unidiff"] = "unidiff"  # chooses the trainer
    contrastive_weight: float = Field(1.0, ge=0)  # of CLIP's loss, ITC; 0 turns it off
    generation_weight: float = Field(1.0, ge=0)  # λ_IS of Stable Diffusion's loss; 0 turns it off
    consistency_weight: float = Field(0.1, ge=0)  # λ_RSC; 0 turns it off
    consistency: Literal["projected", "relational"] = "projected"
    feature_layer: str = "mid_block"  # module of the U-Net whose output, pooled over places, is its feature
    noise_weighting: Literal["signal", "none"] = "signal"
    """What consistency weighs an image by: "signal" is ᾱ_t, the share of the image in its noisy latent"""
    temperature: float = Field(0.1, gt=0)  # τ of "relational"
    text_drop_rate: float = Field(0.1, ge=0, le=1)  # share of captions replaced by the empty one; 0 turns it off


class UniDiffObjective(nn.Module):
    """Contrastive, generation and consistency losses of a CLIP and a U-Net, which share the text encoder."""

    empty_ids: Tensor
    empty_mask: Tensor

    def __init__(
        self,
        contrastive: ContrastiveObjective,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        config: UniDiffConfig,
    ) -> None:
        """contrastive: with its text encoder, whose token-wise features are the U-Net's condition.

        Raises: ValueError if the U-Net has no module `feature_layer`.
        """
        super().__init__()
        assert contrastive.text_encoder is not None, "captions are the U-Net's condition too"
        self.contrastive, self.unet, self.scheduler, self.config = contrastive, unet, scheduler, config
        self.grad_cache_size = contrastive.grad_cache_size
        self.text_encoder = contrastive.text_encoder
        for name, tokens in zip(("empty_ids", "empty_mask"), self.text_encoder.tokenize([""]), strict=True):
            self.register_buffer(name, tokens, persistent=False)
        num_channels = feature_channels(unet, config.feature_layer)
        self.projection: nn.Linear | None = None
        if config.consistency_weight and config.consistency == "projected":
            self.projection = nn.Linear(num_channels, self.text_encoder.d_e)
        self._freeze_what_no_loss_uses()

    @property
    def runs_unet(self) -> bool:
        """Whether a loss needs the U-Net."""
        return self.config.generation_weight > 0 or self.config.consistency_weight > 0

    def draw(self, b: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a batch's random numbers: noise, steps and drops of the image diffusion, and the posterior's noise."""
        side = square_side(self.unet.config.sample_size)
        size = (b, self.unet.config.in_channels, side, side)
        return {
            "eps_posterior": torch.randn(size, generator=generator),
            "eps_z": torch.randn(size, generator=generator),
            "t_z": torch.randint(self.scheduler.config.num_train_timesteps, (b,), generator=generator),
            "text_uniform": torch.rand(b, generator=generator),
        }

    def forward(self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All three losses and their weighted sum; those of weight 0 are not trained.

        The generation loss is reported whenever the U-Net runs.

        Source: UniDiff, abstract: L = ITC + λ_IS IS + λ_RSC RSC.
        Shapes: batch: x (b, 3, H, W) uint8; z_mean, z_std (b, ch, h, w), scaled by the VAE's factor; ids (b, l) int64
                and mask (b, l) bool; caption_id (b,) int64. draws: as `draw` gives. -> () float32 each.
        """
        config = self.config
        c, e = in_chunks(self._encode_captions, [batch["ids"], batch["mask"]], self.grad_cache_size)
        v = d = None
        weighted: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        if config.contrastive_weight or config.consistency_weight:
            (v,) = in_chunks(self.contrastive.embed_images, [batch["x"]], self.grad_cache_size)
        if v is not None and config.contrastive_weight:
            losses["contrastive"] = self.contrastive.match(v, e, batch["caption_id"])
            weighted["contrastive"] = config.contrastive_weight * losses["contrastive"]
        if self.runs_unet:
            predicted, target, d = self._denoise(batch, c, draws)
            losses["generation"] = F.mse_loss(predicted.float(), target)
            if config.generation_weight:
                weighted["generation"] = config.generation_weight * losses["generation"]
        if v is not None and d is not None and config.consistency_weight:
            losses["consistency"] = self._consistency(v, d, draws["t_z"])
            weighted["consistency"] = config.consistency_weight * losses["consistency"]
        total = torch.stack(list(weighted.values())).sum()
        return {"loss": total} | {name: loss.detach() for name, loss in losses.items()}

    def parameter_groups(self, learning_rate: float, new_learning_rate: float) -> list[dict[str, Any]]:
        """One rate for all weights that start from a trained model, another for the projection of the consistency.

        Those of the contrastive part have weight decay as there.
        """
        groups = self.contrastive.parameter_groups(learning_rate, learning_rate)
        of_unet = [weight for weight in self.unet.parameters() if weight.requires_grad]
        groups.append({"params": of_unet, "lr": learning_rate})
        if self.projection is not None:
            groups.append({"params": list(self.projection.parameters()), "lr": new_learning_rate})
        return [group for group in groups if group["params"]]

    def _encode_captions(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        encoded = self.text_encoder(ids, mask)
        return encoded.c, encoded.e

    def _denoise(
        self, batch: Mapping[str, Tensor], c: Tensor, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the noise of a batch's noisy latents.

        Shapes: c (b, l, d_c) -> prediction and target (b, ch, h, w), the U-Net's features d (b, k).
        """
        z_0 = posterior_draw(batch["z_mean"], batch["z_std"], draws["eps_posterior"])
        c_empty, _ = self._encode_captions(self.empty_ids, self.empty_mask)
        c = drop_captions(c, c_empty, draws, self.config.text_drop_rate)
        z_t = self.scheduler.add_noise(z_0, draws["eps_z"], draws["t_z"])
        predicted, d = in_chunks(self._run_unet, [z_t, draws["t_z"], c], self.grad_cache_size)
        return predicted, generation_target(self.scheduler, z_0, draws["eps_z"], draws["t_z"]), d

    def _run_unet(self, z_t: Tensor, t_z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []

        def keep(module: nn.Module, inputs: object, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        hook = self.unet.get_submodule(self.config.feature_layer).register_forward_hook(keep)
        try:
            predicted = self.unet(z_t, t_z, c).sample
        finally:
            hook.remove()
        return predicted, found[0].float().mean(dim=(2, 3))  # (b, k, h, w) -> (b, k)

    def _consistency(self, v: Tensor, d: Tensor, t_z: Tensor) -> Tensor:
        """Shapes: v (b, d_e); d (b, k); t_z (b,) -> () float32."""
        weight = torch.ones_like(t_z, dtype=torch.float32)
        if self.config.noise_weighting == "signal":
            weight = self.scheduler.alphas_cumprod.to(t_z.device)[t_z].float()
        with torch.autocast(v.device.type, enabled=False):
            if self.projection is not None:
                return projected_consistency(v, self.projection(d.float()), weight)
            v, d, weight = (global_batch(each) for each in (v, d, weight))
            return relational_consistency(v, d, weight, self.config.temperature)

    def _freeze_what_no_loss_uses(self) -> None:
        """Keep weight decay and EMA from changing weights that get no gradient.

        Generation alone trains the U-Net alone, as fine-tuning of Stable Diffusion does.
        """
        if not self.runs_unet:
            self.unet.requires_grad_(False)
        elif not self.config.generation_weight:
            for block in blocks_after(self.unet, self.config.feature_layer):
                block.requires_grad_(False)
        if not self.config.contrastive_weight:
            self.contrastive.log_logit_scale.requires_grad_(False)
            if not self.config.consistency_weight:
                self.contrastive.image_encoder.requires_grad_(False)
                self.text_encoder.requires_grad_(False)
            if self.contrastive.text_projection is not None:
                self.contrastive.text_projection.requires_grad_(False)


def blocks_after(unet: UNet2DConditionModel, layer: str) -> list[nn.Module]:
    """The parts of the U-Net that run after a block, as `feature_channels` takes it."""
    names = list(_block_channels(unet))
    parts = [
        *(unet.get_submodule(name) for name in names[names.index(layer) + 1 :]),
        unet.conv_norm_out,
        unet.conv_out,
    ]
    return [part for part in parts if part is not None]


def feature_channels(unet: UNet2DConditionModel, layer: str) -> int:
    """Return the number of channels of a block of the U-Net: `mid_block`, `down_blocks.N`, `up_blocks.N`.

    Raises: ValueError if it has no such block.
    """
    found = _block_channels(unet)
    if layer not in found:
        raise ValueError(
            f"`objective.feature_layer` is '{layer}', and the U-Net has no such block. Expected one of "
            f"{', '.join(found)}. Use one of these."
        )
    return found[layer]


def _block_channels(unet: UNet2DConditionModel) -> dict[str, int]:
    """The channels of each block's output, in the order in which the blocks run."""
    widths = list(unet.config.block_out_channels)
    found = {f"down_blocks.{number}": width for number, width in enumerate(widths)} | {"mid_block": widths[-1]}
    return found | {f"up_blocks.{number}": width for number, width in enumerate(reversed(widths))}
