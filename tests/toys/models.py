"""Real classes at toy size for tests: a Stable Diffusion U-Net with three attention sites, and its query stream."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image

from palindiff.models.query_stream import QueryStream, QueryStreamConfig
from palindiff.models.text_diffusion import text_diffusion_scheduler
from palindiff.models.vae import VaeConfig, build_vae

D_E = 12


def toy_unet(
    use_linear_projection: bool = False, seed: int = 0, d_c: int = 10, widths: tuple[int, ...] = (8, 16)
) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=4,
        in_channels=3,
        out_channels=3,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=widths,
        layers_per_block=2,
        cross_attention_dim=d_c,
        attention_head_dim=2,
        norm_num_groups=4,
        use_linear_projection=use_linear_projection,
    ).eval()


def toy_stream(
    unet: UNet2DConditionModel, seed: int = 1, d_e: int = D_E, pooling: str = "mean", projection=None, **settings
) -> QueryStream:
    torch.manual_seed(seed)
    settings = {"num_head_layers": 2, "head_width": 16, "head_dim": 8, "gamma": 1.0} | settings
    return QueryStream.for_unet(unet, d_e, QueryStreamConfig(**settings), pooling, projection).eval()


def toy_vae(seed: int = 2) -> AutoencoderKL:
    torch.manual_seed(seed)
    return build_vae(VaeConfig(widths=(8, 8), latent_channels=3, norm_groups=4, image_size_px=8)).eval()


def toy_inputs(b: int = 2, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shapes: -> z (b, 3, 4, 4), e_t (b, D_E), t_e (b,)."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(b, 3, 4, 4, generator=generator)
    return z, torch.randn(b, D_E, generator=generator), torch.randint(1000, (b,), generator=generator)


def toy_pipeline(folder: Path, encoder: str = "sentence", **settings):
    """A whole pipeline for 8 px images; `folder` holds what `write_text_encoders` writes."""
    from palindiff.inference.pipeline import PalindiffPipeline
    from palindiff.pretrained.text_encoders import load_text_encoder

    text = load_text_encoder(str(folder / encoder))
    unet = toy_unet(d_c=text.d_c)
    stream = toy_stream(unet, d_e=text.d_e, pooling=text.pooling, projection=text.projection, **settings)
    scheduler = DDIMScheduler.from_config(
        text_diffusion_scheduler().config, prediction_type="v_prediction", steps_offset=1
    )
    return PalindiffPipeline(
        toy_vae(), text.model, text.tokenizer, unet, scheduler, stream, text_diffusion_scheduler()
    )


def toy_checkpoint(root: Path) -> Path:
    """Write the folder of a whole pipeline below `root`."""
    from toys.text_encoders import write_text_encoders

    write_text_encoders(root)
    toy_pipeline(root).save_pretrained(root / "checkpoint")
    return root / "checkpoint"


def toy_images(number: int = 3, size_px: int = 8, seed: int = 4) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (number, size_px, size_px, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(each.numpy()) for each in pixels]
