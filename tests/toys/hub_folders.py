"""A toy Stable Diffusion folder turned into what is found in the wild: older names, other files, fewer fields.

Each function that takes one folder rewrites it in place and returns it, so they add up. What diffusers itself can
write (fp16 variants, shards) is written by it: see also `saving` in `toy_stable_diffusion.write_sd1`.
"""

import json
import re
import shutil

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from toys.stable_diffusion import save, toy_scheduler

OLD_VERSION = (
    "0.10.2"  # of diffusers: the oldest whose U-Nets today's diffusers believes to be smaller than 64 latents
)
OLD_UNET = {
    "act_fn", "attention_head_dim", "block_out_channels", "center_input_sample", "cross_attention_dim",
    "down_block_types", "downsample_padding", "dual_cross_attention", "flip_sin_to_cos", "freq_shift", "in_channels",
    "layers_per_block", "mid_block_scale_factor", "norm_eps", "norm_num_groups", "out_channels", "sample_size",
    "up_block_types", "use_linear_projection", "upcast_attention",
}  # fmt: skip
OLD_VAE = {
    "act_fn", "block_out_channels", "down_block_types", "in_channels", "latent_channels", "layers_per_block",
    "norm_num_groups", "out_channels", "sample_size", "up_block_types",
}  # fmt: skip
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # of the VAE


def as_old_hub(folder):
    """All that is old about the folders of 2022 on the Hub that still holds safetensors of today's names."""
    for rewrite in OLD_WAYS:
        rewrite(folder)
    return folder


def with_old_index(folder, extractor="CLIPFeatureExtractor"):
    """Write an index without `image_encoder`, and a feature extractor of the name that transformers 5 dropped."""
    index = read_json(folder / "model_index.json")
    index["_diffusers_version"] = OLD_VERSION
    del index["image_encoder"]
    if index["requires_safety_checker"]:
        del index["requires_safety_checker"]  # unknown then; it counts as true
    index["feature_extractor"] = ["transformers", extractor]
    write_json(folder / "model_index.json", index)
    size = 16
    write_json(folder / "feature_extractor" / "preprocessor_config.json", {
        "crop_size": size, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": extractor, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": size,
    })  # fmt: skip
    return folder


def with_old_configs(folder, text_dtype="float32"):
    """Leave only the fields of 2022: the VAE's scaling factor is then the class's default.

    `text_dtype` is what the text encoder's config claims; some published folders say "float16" beside full weights.
    """
    for part, known in (("unet", OLD_UNET), ("vae", OLD_VAE)):
        config = read_json(folder / part / "config.json")
        kept = {name: value for name, value in config.items() if name in known}
        write_json(
            folder / part / "config.json",
            {"_class_name": config["_class_name"], "_diffusers_version": OLD_VERSION, **kept},
        )
    text = read_json(folder / "text_encoder" / "config.json")
    text |= {"bos_token_id": 0, "eos_token_id": 2, "dropout": 0.0, "torch_dtype": text_dtype,
             "transformers_version": "4.22.0.dev0"}  # fmt: skip
    text.pop("dtype", None)
    write_json(folder / "text_encoder" / "config.json", text)
    return folder


def with_old_text_keys(folder, part="text_encoder"):
    """Name a text encoder's weights as transformers did before 5.6, with the positions it used to save."""

    def rename(weights):
        prefix = "" if any(name.startswith("text_model.") for name in weights) else "text_model."
        weights = {prefix + name: weight for name, weight in weights.items()}
        positions = len(weights["text_model.embeddings.position_embedding.weight"])
        return {**weights, "text_model.embeddings.position_ids": torch.arange(positions)[None]}

    return _rewrite(folder / part, rename)


def with_old_vae_keys(folder):
    """Name the VAE's attention weights as diffusers did before 0.17."""

    def rename(weights):
        return {_old_attention_name(name): weight for name, weight in weights.items()}

    return _rewrite(folder / "vae", rename)


def with_old_safety_keys(folder):
    """Name the safety checker's weights as every Stable Diffusion 1.x folder does: one model within another."""

    def rename(weights):
        return {re.sub(r"^vision_model\.(?!vision_model)", "vision_model.vision_model.", name): weight
                for name, weight in weights.items()}  # fmt: skip

    return _rewrite(folder / "safety_checker", rename)


def with_old_tokenizer(folder):
    """Write vocab.json, merges.txt and two files of settings, which differ in 2.x; the special tokens' is right."""
    place = folder / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(place)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pad_token, length = tokenizer.pad_token, tokenizer.model_max_length
    shutil.rmtree(place)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in rules["merges"]]
    write_json(place / "vocab.json", rules["vocab"])
    (place / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    tokens = {
        f"{role}_token": {"content": content, "lstrip": False, "normalized": True, "rstrip": False,
                          "single_word": False}
        for role, content in (("bos", "<|startoftext|>"), ("eos", "<|endoftext|>"), ("unk", "<|endoftext|>"))
    }  # fmt: skip
    typed = {name: {"__type": "AddedToken", **token} for name, token in tokens.items()}
    write_json(place / "special_tokens_map.json", {**tokens, "pad_token": pad_token})
    write_json(place / "tokenizer_config.json", {
        "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": length,
        "pad_token": "<|endoftext|>", "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer", **typed,
    })  # fmt: skip
    return folder


def with_scheduler(folder, name, **settings):
    """Put another scheduler into the folder; `settings` may be old ones that diffusers corrects when it loads."""
    index = read_json(folder / "model_index.json")
    write_json(folder / "model_index.json", {**index, "scheduler": ["diffusers", name]})
    shutil.rmtree(folder / "scheduler")
    toy_scheduler(name, **settings).save_pretrained(folder / "scheduler")
    return folder


def write_half_of(folder, target, **saving):
    """Write the half precision of a folder as a variant: alone, or beside the full one if `target` is the folder."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float16)
    return save(pipeline, target, variant="fp16", **saving)


def as_pickles(folder):
    """Only pickled weights, under the names that diffusers and transformers gave them."""
    for path in folder.rglob("*.safetensors"):
        name = "pytorch_model.bin" if path.name.startswith("model") else f"{path.stem}.bin"
        torch.save(load_file(path), path.with_name(name))
        path.unlink()
    return folder


def with_hole(folder, part="unet", name="conv_in.bias"):
    """Leave one tensor out."""
    return _rewrite(folder / part, lambda weights: {key: each for key, each in weights.items() if key != name})


def as_lfs_pointers(folder):
    """What `git clone` leaves in the place of large files where Git LFS is not installed."""
    for path in folder.rglob("*.safetensors"):
        path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 3438167540\n")
    return folder


def write_configs_of(folder, target):
    """The folder without its weights: what diffusers asks the Hub for when it reads a single file."""
    return shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))


OLD_WAYS = (with_old_index, with_old_configs, with_old_text_keys, with_old_vae_keys, with_old_safety_keys,
            with_old_tokenizer)  # fmt: skip


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _old_attention_name(name):
    for new, old in OLD_ATTENTION.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name


def _rewrite(place, rename):
    """Rename the weights of every file of a model."""
    for path in place.glob("*.safetensors"):
        save_file(rename(load_file(path)), path, metadata={"format": "pt"})
    return place.parent
