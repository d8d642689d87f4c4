"""A toy Stable Diffusion folder as one .safetensors file in the layout of the original (latent-diffusion) code.

The names follow from how the original code builds its networks: one list of input blocks, a middle block, one list of
output blocks. `inference/test_stable_diffusion_files.py` proves them: diffusers' own converter gives the folder back.
"""

import re

import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file

from toys.stable_diffusion import NUM_LAYERS_2, SD_SCHEDULE, write_clip_of

LAYERS = 3  # entries of the input list for each level: two layers and what changes the size
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "label_emb.0.0", "class_embedding.linear_2": "label_emb.0.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def write_single_file(folder, path, half=False, text="guess", with_ema=False):
    """Write the file of a diffusers folder with one text encoder.

    `text` is "clip" (1.x: transformers' names), "open_clip" (2.x: OpenCLIP's, with the last layer that the folder
    leaves out), "flat" (1.x without `text_model.`, as some merges have it) or None (none at all). Beside the parts
    stand the tables of the noise schedule, as the original code saves them; `with_ema` adds the averaged U-Net, zero
    here, as the larger ones of the published files do.
    """
    unet = unet_weights(folder)
    weights = {**unet, **vae_weights(folder), **schedule_tables()}
    if with_ema:
        weights |= {"model_ema." + "".join(name.split(".")[1:]): weight * 0 for name, weight in unet.items()}
    if text == "guess":
        last = f"encoder.layers.{NUM_LAYERS_2 - 2}.layer_norm1.weight"
        text = "open_clip" if last in tower_of(of(folder, "text_encoder")) else "clip"
    return save_weights(weights | (text_weights(folder, text) if text else {}), path, half)


def save_weights(weights, path, half=False):
    if half:
        weights = {name: each.half() if each.is_floating_point() else each for name, each in weights.items()}
    save_file({name: each.contiguous() for name, each in weights.items()}, path, metadata={"format": "pt"})
    return path


def write_ckpt(single_file, path):
    """Write the pickle that the original code writes, of the same tensors."""
    torch.save({"state_dict": load_file(single_file), "global_step": 1}, path)
    return path


def unet_weights(folder):
    weights = of(folder, "unet")
    return {f"model.diffusion_model.{ldm_unet_name(name, weights)}": weight for name, weight in weights.items()}


def vae_weights(folder):
    weights = {}
    for name, weight in of(folder, "vae").items():
        is_linear = "mid_block.attentions" in name and weight.dim() == 2  # a 1 x 1 convolution in the original
        weights[f"first_stage_model.{ldm_vae_name(name)}"] = weight[:, :, None, None] if is_linear else weight
    return weights


def text_weights(folder, text):
    if text == "open_clip":
        clip = load_file(write_clip_of(folder.parent, 2) / "model.safetensors")
        return {f"cond_stage_model.model.{name}": weight for name, weight in open_clip_weights(clip).items()}
    before = "cond_stage_model.transformer." + ("" if text == "flat" else "text_model.")
    encoder = tower_of(of(folder, "text_encoder"))
    positions = torch.arange(len(encoder["embeddings.position_embedding.weight"]))[None]
    return {before + name: weight for name, weight in {**encoder, "embeddings.position_ids": positions}.items()}


def open_clip_weights(clip):
    """OpenCLIP's names for a text encoder with its projection, with query, key and value in one matrix."""
    encoder = tower_of(clip)
    weights = {
        "positional_embedding": encoder["embeddings.position_embedding.weight"],
        "token_embedding.weight": encoder["embeddings.token_embedding.weight"],
        "ln_final.weight": encoder["final_layer_norm.weight"],
        "ln_final.bias": encoder["final_layer_norm.bias"],
        "text_projection": clip["text_projection.weight"].T,  # (d_e, d_c) -> (d_c, d_e)
        "logit_scale": clip.get("logit_scale", torch.tensor(2.6592)),
    }
    for i in range(1 + max(int(name.split(".")[2]) for name in encoder if name.startswith("encoder.layers."))):
        layer, block = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            three = [encoder[f"{layer}.self_attn.{each}_proj.{kind}"] for each in "qkv"]
            weights[f"{block}.attn.in_proj_{kind}"] = torch.cat(three)
            for name, old in OPEN_CLIP_LAYER.items():
                weights[f"{block}.{old}.{kind}"] = encoder[f"{layer}.{name}.{kind}"]
    return weights


def tower_of(weights):
    """The text encoder's weights under today's names, out of a CLIP's or its own."""
    beside = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")
    return {name.removeprefix("text_model."): each for name, each in weights.items() if not name.startswith(beside)}


def schedule_tables():
    scheduler = DDIMScheduler(**SD_SCHEDULE)
    alphas = scheduler.alphas_cumprod
    return {"betas": scheduler.betas, "alphas_cumprod": alphas, "sqrt_alphas_cumprod": alphas.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - alphas).sqrt()}  # fmt: skip


def ldm_unet_name(name, names):
    """Say where the original code keeps a tensor of the U-Net that has tensors of all these names."""
    for new, old in UNET_ENDS.items():
        if name.startswith(f"{new}."):
            return name.replace(new, old, 1)
    block, level, kind, layer, rest = _parts_of(name)
    if block == "mid_block":
        return f"middle_block.{_old_layer(kind, rest, [2 * layer, 1])}"
    if kind == "downsamplers":
        return f"input_blocks.{LAYERS * (level + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        place = 1 + any(other.startswith(f"up_blocks.{level}.attentions.") for other in names)  # it stands last
        return f"output_blocks.{LAYERS * level + 2}.{place}.{rest}"
    first = 1 + LAYERS * level + layer if block == "down_blocks" else LAYERS * level + layer
    return f"{'input' if block == 'down_blocks' else 'output'}_blocks.{first}.{_old_layer(kind, rest, [0, 1])}"


def ldm_vae_name(name):
    """Say where the original code keeps a tensor of the VAE, which counts the decoder's levels from the finest."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{3 - int(found[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{3 - int(found[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{1 + int(found[1])}", name)
    for new, old in VAE_ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{new}.", f"mid.attn_1.{old}.")
    return name


def _parts_of(name):
    """Take "down_blocks.1.resnets.0.conv1.weight" apart; the mid block has no level."""
    found = re.match(r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\.(\w+)\.(\d+)\.(.*)", name)
    return found[1], int(found[2] or 0), found[3], int(found[4]), found[5]


def _old_layer(kind, rest, places):
    if kind == "attentions":
        return f"{places[1]}.{rest}"
    part, last = rest.split(".")
    return f"{places[0]}.{RESNET[part]}.{last}"


def of(folder, part):
    """All weights of a part."""
    weights = {}
    for path in sorted((folder / part).glob("*.safetensors")):
        weights |= load_file(path)
    return weights
