"""A Stable Diffusion folder as diffusers writes it, ours beside it on the same weights, and LoRAs for both."""

import torch
from diffusers import StableDiffusionPipeline

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.text_diffusion import text_diffusion_scheduler
from palindiff.pretrained.text_encoders import load_text_encoder
from toys.models import toy_stream
from toys.text_encoders import stock_pipeline, write_clip

PROMPT = "a red apple"


def write_stable_diffusion(root):
    """Write `root/base`, stock with four latent channels, and `root/checkpoint`, the same with a query stream."""
    encoder = load_text_encoder(str(write_clip(root / "clip")))
    torch.manual_seed(0)
    stock = stock_pipeline(encoder)
    for part in (stock.unet, stock.vae):
        part.eval()
    stock.save_pretrained(root / "base")
    stream = toy_stream(stock.unet, d_e=encoder.d_e, pooling=encoder.pooling, projection=encoder.projection)
    PalindiffPipeline(
        **stock.components,
        query_stream=stream,
        query_scheduler=text_diffusion_scheduler(),
        requires_safety_checker=False,
    ).save_pretrained(root / "checkpoint")


def add_adapters(unet, text_encoder=None, seed=0, name="default"):
    """Give a U-Net, and a CLIP text encoder, adapters of random weights that change what they compute."""
    from peft import LoraConfig

    torch.manual_seed(seed)
    sites = {unet: ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1"], text_encoder: ["q_proj", "fc1"]}
    for model in filter(None, sites):
        model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=sites[model]), adapter_name=name)
        for parameter, weight in model.named_parameters():
            if "lora_B" in parameter:
                torch.nn.init.normal_(weight, std=0.3)


def lora_layers(model):
    """The adapter weights of a model, under the names that diffusers writes and reads for every kind of layer."""
    from peft.utils import get_peft_model_state_dict

    return get_peft_model_state_dict(model)


def write_lora(base, folder, seed=0, with_text=True):
    """Make a LoRA for a stock Stable Diffusion folder and write it as diffusers does."""
    stock = StableDiffusionPipeline.from_pretrained(base)
    add_adapters(stock.unet, stock.text_encoder if with_text else None, seed)
    text = lora_layers(stock.text_encoder) if with_text else None
    StableDiffusionPipeline.save_lora_weights(folder, lora_layers(stock.unet), text)
    return folder


def generated(pipeline, **options):
    """Generate with float32 pixels, which show what 8 bits would hide."""
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "np"} | options
    return torch.from_numpy(pipeline([PROMPT], generator=torch.Generator().manual_seed(0), **options).images)
