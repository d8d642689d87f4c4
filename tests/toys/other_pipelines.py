"""What looks like Stable Diffusion and is none that a query stream fits: folders and files to be refused.

Each is written by the pipeline class it belongs to, at toy size.
"""

import shutil

import torch
from diffusers import (
    DDPMScheduler,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLPipeline,
    StableUnCLIPImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
)

from toys.single_file import of, open_clip_weights, save_weights, text_weights, unet_weights, vae_weights
from toys.stable_diffusion import text_encoder_of, toy_scheduler, toy_unet, toy_vae, with_drawn_norms, write_clip_of
from toys.text_encoders import QUERY_WIDTH, WIDTH, write_clip

NOT_SAFE = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
NUM_LAYERS_XL, WIDTH_XL = 11, 40  # of the second encoder: single files are known by its tenth layer, of 32


def write_inpainting(root):
    return _save(StableDiffusionInpaintPipeline, root / "inpainting", **_parts(root, in_channels=9), **NOT_SAFE)


def write_pix2pix(root):
    return _save(StableDiffusionInstructPix2PixPipeline, root / "pix2pix", **_parts(root, in_channels=8), **NOT_SAFE)


def write_depth(root):
    torch.manual_seed(3)
    estimator = DPTForDepthEstimation(DPTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8,
        backbone_out_indices=[0, 1, 0, 1], neck_hidden_sizes=[4, 4, 4, 4], fusion_hidden_size=4, is_hybrid=False,
    ))  # fmt: skip
    others = {"depth_estimator": estimator, "feature_extractor": DPTImageProcessor()}
    parts = _parts(root, version=2, in_channels=5)
    return _save(StableDiffusionDepth2ImgPipeline, root / "depth", **parts, **others)


def write_upscaler(root):
    unet = {"in_channels": 7, "num_class_embeds": 1000, "only_cross_attention": (True, True, True, False)}
    others = {"low_res_scheduler": DDPMScheduler(), "max_noise_level": 350}
    parts = _parts(root, version=2, **unet) | {"vae": toy_vae(scaling_factor=0.08333)}
    return _save(StableDiffusionUpscalePipeline, root / "upscaler", **parts, **others)


def write_unclip(root):
    unet = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * QUERY_WIDTH}
    others = {
        "feature_extractor": CLIPImageProcessor(),
        "image_encoder": CLIPVisionModelWithProjection.from_pretrained(write_clip_of(root, 2)),
        "image_normalizer": StableUnCLIPImageNormalizer(QUERY_WIDTH),
        "image_noising_scheduler": DDPMScheduler(),
    }
    return _save(StableUnCLIPImg2ImgPipeline, root / "unclip", **_parts(root, version=2, **unet), **others)


def write_sdxl(root):
    """Two text encoders, three levels, and a U-Net that is told the image's size."""
    clip, second = write_clip_of(root, 1), root / "clip_xl"
    write_clip(
        second,
        end_id=2,
        hidden_act="gelu",
        num_hidden_layers=NUM_LAYERS_XL,
        hidden_size=WIDTH_XL,
        projection_dim=QUERY_WIDTH,
    )
    with_drawn_norms(CLIPModel.from_pretrained(second), seed=3).save_pretrained(second)
    torch.manual_seed(4)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(4, 8, 16), norm_num_groups=2, attention_head_dim=(1, 2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 3), cross_attention_dim=WIDTH + WIDTH_XL, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=QUERY_WIDTH + 6 * 8,
    )  # fmt: skip
    return _save(
        StableDiffusionXLPipeline, root / "sdxl", vae=toy_vae(scaling_factor=0.13025),
        unet=with_drawn_norms(unet, 4), scheduler=toy_scheduler("EulerDiscreteScheduler"),
        text_encoder=text_encoder_of(clip), tokenizer=CLIPTokenizer.from_pretrained(clip),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(second),
        tokenizer_2=CLIPTokenizer.from_pretrained(second, pad_token="!"), add_watermarker=False,
    )  # fmt: skip


def write_sdxl_file(folder, path):
    """The single file of an SDXL folder: both text encoders stand below `conditioner`."""
    first = {
        name.replace("cond_stage_model", "conditioner.embedders.0"): weight
        for name, weight in text_weights(folder, "clip").items()
    }
    second = {
        f"conditioner.embedders.1.model.{name}": weight
        for name, weight in open_clip_weights(of(folder, "text_encoder_2")).items()
    }
    return save_weights({**unet_weights(folder), **vae_weights(folder), **first, **second}, path)


def write_other_clip(root):
    """A CLIP of another width: ViT-B/32 to a Stable Diffusion made with ViT-L/14."""
    return write_clip(root / "clip_other", end_id=2, hidden_size=WIDTH // 2, intermediate_size=24)


def write_changed_clip(clip, target, name="text_model.encoder.layers.1.mlp.fc1.weight"):
    """A CLIP whose text encoder differs in one number of one tensor: someone has trained it on."""
    shutil.copytree(clip, target)
    weights = load_file(target / "model.safetensors")
    weights[name].view(-1)[0] += 0.5
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def _parts(root, version=1, **unet):
    clip = write_clip_of(root, version)
    kind = {"attention_head_dim": 2} if version == 1 else {"attention_head_dim": (1, 2, 4, 4),
                                                           "use_linear_projection": True}  # fmt: skip
    layers = {} if version == 1 else {"num_hidden_layers": 23}
    return {
        "vae": toy_vae(), "unet": toy_unet(**kind, **unet), "scheduler": toy_scheduler("DDIMScheduler"),
        "text_encoder": text_encoder_of(clip, **layers), "tokenizer": CLIPTokenizer.from_pretrained(clip),
    }  # fmt: skip


def _save(pipeline_class, folder, **parts):
    pipeline_class(**parts).save_pretrained(folder)
    return folder


OTHER_PIPELINES = {"inpainting": write_inpainting, "pix2pix": write_pix2pix, "depth": write_depth,
                   "upscaler": write_upscaler, "unclip": write_unclip, "sdxl": write_sdxl}  # fmt: skip
