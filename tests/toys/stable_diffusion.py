"""Stable Diffusion 1.x and 2.x at toy size, in the folders that diffusers writes, and the CLIP each encoder came from.

What makes the layouts what they are is kept (four levels, two layers each, eight pixels a latent, numbers of heads
against widths of heads, 23 of 24 text layers); only widths are small. Every norm and bias is drawn, not 1 or 0: a
tensor that lands in the wrong place then shows. Older files and other variants: `toy_hub_folders`.
"""

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel, schedulers
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from toys.text_encoders import WIDTH, write_clip

IMAGE_PX = 64  # eight latents a side, as four levels of the U-Net need
UNET_WIDTHS = (4, 8, 16, 16)  # 320, 640, 1280, 1280: the last level widens nothing
VAE_WIDTHS = (2, 4, 8, 8)  # 128, 256, 512, 512
NUM_LAYERS_2 = 24  # of OpenCLIP ViT-H/14; Stable Diffusion 2.x keeps all but the last
FEW_LAYERS = {
    "block_out_channels": (4, 8), "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # of a U-Net in which a test counts, which takes as long as there are layers  # fmt: skip
SD_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def write_clip_of(root, version=1):
    """Write `root/clip_1` or `root/clip_2`, unless it is there: the whole CLIP, with its projection.

    1 is like openai/clip-vit-large-patch14, 2 like laion/CLIP-ViT-H-14. Both say 2 for the end token, whose id is
    another, and both pad with the end token; the text part's own `projection_dim` is stale.
    """
    folder = root / f"clip_{version}"
    if not folder.is_dir():
        layers = {"num_hidden_layers": NUM_LAYERS_2, "intermediate_size": 32, "hidden_act": "gelu"}
        write_clip(folder, end_id=2, **(layers if version == 2 else {}))
        with_drawn_norms(CLIPModel.from_pretrained(folder), seed=version).save_pretrained(folder)
    return folder


def write_sd1(root, name="sd1", scheduler="PNDMScheduler", with_safety_checker=False, unet=(), **saving):
    """Write `root/name` like Stable Diffusion 1.x: convolutions around attention, as many heads at every width.

    `unet` overrides fields of the U-Net; `saving` goes to `save_pretrained` (`variant`, `max_shard_size`, ...).
    """
    settings = {"attention_head_dim": 2, **dict(unet)}  # the number of heads: 8 at real size
    clip, folder = write_clip_of(root, 1), root / name
    pipeline = StableDiffusionPipeline(
        vae=toy_vae(), unet=toy_unet(**settings), scheduler=toy_scheduler(scheduler),
        text_encoder=text_encoder_of(clip), tokenizer=CLIPTokenizer.from_pretrained(clip),
        requires_safety_checker=with_safety_checker,
        **(toy_safety() if with_safety_checker else {"safety_checker": None, "feature_extractor": None}),
    )  # fmt: skip
    return save(pipeline, folder, **saving)


def write_sd2(root, prediction_type="v_prediction", name="sd2", scheduler="DDIMScheduler", unet=(), **saving):
    """Write `root/name` like Stable Diffusion 2.x: linear layers around attention, heads of one width at every level.

    The text encoder is all but the last layer of its CLIP, and its tokenizer pads with "!", which its CLIP's does not.
    """
    settings = {"attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True, **dict(unet)}
    settings = {"upcast_attention": prediction_type == "v_prediction", **settings}
    clip, folder = write_clip_of(root, 2), root / name
    pipeline = StableDiffusionPipeline(
        vae=toy_vae(), unet=toy_unet(**settings),
        scheduler=toy_scheduler(scheduler, prediction_type=prediction_type),
        text_encoder=text_encoder_of(clip, num_hidden_layers=NUM_LAYERS_2 - 1),
        tokenizer=CLIPTokenizer.from_pretrained(clip, pad_token="!"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return save(pipeline, folder, **saving)


def save(pipeline, folder, **saving):
    pipeline.save_pretrained(folder, **saving)
    return folder


def text_encoder_of(clip, **config):
    """The first layers of a CLIP folder's text encoder as a model of its own, which transformers saves unprefixed."""
    whole = CLIPModel.from_pretrained(clip)
    encoder = CLIPTextModel(type(whole.config.text_config).from_dict({**whole.config.text_config.to_dict(), **config}))
    kept = whole.text_model.state_dict()
    encoder.load_state_dict({name: kept[name] for name in encoder.state_dict()})
    return encoder.eval()


def toy_unet(seed=0, **settings):
    torch.manual_seed(seed)
    settings = {"cross_attention_dim": WIDTH, "in_channels": 4, "sample_size": IMAGE_PX // 8,
                "block_out_channels": UNET_WIDTHS, "layers_per_block": 2, **settings}  # fmt: skip
    return with_drawn_norms(UNet2DConditionModel(norm_num_groups=2, **settings), seed)


def toy_vae(seed=1, **settings):
    torch.manual_seed(seed)
    settings = {"latent_channels": 4, "scaling_factor": 0.18215, "sample_size": IMAGE_PX, **settings}
    vae = AutoencoderKL(
        block_out_channels=VAE_WIDTHS, norm_num_groups=2, layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **settings,
    )  # fmt: skip
    return with_drawn_norms(vae, seed)


def toy_scheduler(name="PNDMScheduler", **settings) -> SchedulerMixin:
    """A scheduler with Stable Diffusion's settings, those that its class knows."""
    settings = {**SD_SCHEDULE, "steps_offset": 1, "skip_prk_steps": True, "clip_sample": False,
                "set_alpha_to_one": False, "prediction_type": "epsilon", **settings}  # fmt: skip
    return getattr(schedulers, name).from_config(settings)


def toy_safety():
    torch.manual_seed(2)
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    size = {"height": 16, "width": 16}
    extractor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    return {"safety_checker": with_drawn_norms(checker, 2), "feature_extractor": extractor}


def with_drawn_norms(model, seed):
    """Draw every scale and bias near its first value, so that no two tensors of a model are equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()
