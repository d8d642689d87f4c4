"""Text encoders of real classes at toy size, in folders as their libraries write them, and stock Stable Diffusion."""

import json

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import BertConfig, BertModel, BertTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer

LENGTH, POSITIONS, WIDTH, QUERY_WIDTH = 12, 16, 32, 24
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_text_encoders(root):
    return {
        "clip": write_clip(root / "clip"),
        "clip_2": write_clip(root / "clip_2", end_id=2, pad_token="!"),
        "sentence": write_sentence_encoder(root / "sentence"),
    }


def write_clip_tokenizer(folder, pad_token):
    """Letters, and merges that make "a red apple" three tokens; the end token has the highest id, as in CLIP."""
    tokens, merges = ["!", *LETTERS, *(letter + "</w>" for letter in LETTERS)], []
    for word in ("red", "apple"):
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts[:2] = [parts[0] + parts[1]]
            tokens.append(parts[0])
    ids = {token: i for i, token in enumerate([*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n")
    CLIPTokenizer.from_pretrained(folder, pad_token=pad_token, model_max_length=LENGTH).save_pretrained(folder)
    return ids


def write_clip(folder, end_id=None, pad_token="<|endoftext|>", **text_settings):
    """A whole CLIP; `end_id` 2 is what Stable Diffusion 2.x and older CLIP files say, with "!" for padding."""
    folder.mkdir()
    ids = write_clip_tokenizer(folder, pad_token)
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": len(ids), "max_position_embeddings": POSITIONS, "projection_dim": 7,
            "bos_token_id": ids["<|startoftext|>"], "eos_token_id": end_id or ids["<|endoftext|>"],
            **text_settings}  # fmt: skip
    vision = {**sizes, "image_size": 16, "patch_size": 8, "projection_dim": QUERY_WIDTH}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=QUERY_WIDTH)).eval()
    clip.save_pretrained(folder)
    return folder


def write_sentence_encoder(folder, **pooling):
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LENGTH}))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + letter for letter in LETTERS), "red"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig(vocab_size=len(words), hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
                        num_attention_heads=4, max_position_embeddings=POSITIONS)  # fmt: skip
    BertModel(config).eval().save_pretrained(folder)
    return folder


def encode(encoder, captions):
    with torch.no_grad():
        return encoder.encode(captions)


def stock_pipeline(encoder):
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=encoder.d_c,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=4),
        text_encoder=encoder.model,
        tokenizer=encoder.tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stock_c(pipeline, captions):
    with torch.no_grad():
        return pipeline.encode_prompt(captions, "cpu", 1, True)
