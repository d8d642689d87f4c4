"""Real classes at toy size for tests: a Stable Diffusion U-Net with three attention sites, and a query stream for it."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from palindiff.models.codec import CodecConfig, build_codec
from palindiff.models.query_stream import QueryStream, QueryStreamConfig

D_E = 12


def toy_unet(use_linear_projection: bool = False, seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=4,
        in_channels=3,
        out_channels=3,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=2,
        cross_attention_dim=10,
        attention_head_dim=2,
        norm_num_groups=4,
        use_linear_projection=use_linear_projection,
    ).eval()


def toy_stream(unet: UNet2DConditionModel, seed: int = 1, **settings) -> QueryStream:
    torch.manual_seed(seed)
    settings = {"num_head_layers": 2, "head_width": 16, "head_dim": 8, "gamma": 1.0} | settings
    return QueryStream.for_unet(unet, D_E, QueryStreamConfig(**settings), pooling="mean").eval()


def toy_vae(seed: int = 2) -> AutoencoderKL:
    torch.manual_seed(seed)
    return build_codec(CodecConfig(widths=(8, 8), latent_channels=3, norm_groups=4, image_size_px=8)).eval()


def toy_inputs(b: int = 2, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shapes: -> z (b, 3, 4, 4), e_t (b, D_E), t_e (b,)."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(b, 3, 4, 4, generator=generator)
    return z, torch.randn(b, D_E, generator=generator), torch.randint(1000, (b,), generator=generator)
