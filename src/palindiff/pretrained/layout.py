"""What a folder in diffusers' layout must hold: a Stable Diffusion to start from, or a palindiff checkpoint.

Here: checks of small files before any weight is read, and of loaded parts, where diffusers only warns. Not here:
loading (`stable_diffusion.py`, `inference/pipeline.py`).
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from diffusers import SchedulerMixin, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from palindiff.models.query_stream import QueryStream
from palindiff.models.unet_encoder import attention_sites

INDEX_NAME = "model_index.json"
OUR_PARTS = ("query_stream", "query_scheduler")
BASE_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
WEIGHT_FILES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
PICKLE_ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
WORKS = "Expected Stable Diffusion 1.x or 2.x for text to image."
START = "Start from such a base model"
TASKS = {9: "inpainting", 5: "depth to image", 8: "instruct-pix2pix", 7: "upscaling"}  # by a U-Net's channels in


def check_index(folder: Path, given: Collection[str] = ()) -> None:
    """Refuse a folder whose index names no query stream, unless the missing parts are `given`.

    Raises: FileNotFoundError if there is no index; ValueError if it is damaged or names too little.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"`{folder}` has no {INDEX_NAME}. Expected a checkpoint folder, as `PalindiffPipeline.save_pretrained` or "
            "`palindiff train` writes it. Name the folder that holds `unet` and `query_stream`."
        )
    index = read_json(path, str(folder))
    missing = [name for name in OUR_PARTS if name not in index and name not in given]
    if missing:
        raise ValueError(
            f"`{folder}` holds a {index.get('_class_name')} without `{'` and `'.join(missing)}`. Expected a palindiff "
            "checkpoint: Stable Diffusion alone names no images. Pass the missing parts, or name another folder."
        )


def read_json(path: Path, name: str, default: Any = None) -> Any:
    """Read a small file of the model that the caller calls `name`: an object, or what is of the type of `default`.

    Raises: FileNotFoundError if it is missing and has no `default`; ValueError if it holds something else.
    """
    if not path.is_file():
        if default is not None:
            return default
        what = path.name if path.name == INDEX_NAME else f"{path.parent.name}/{path.name}"
        raise FileNotFoundError(
            f"`{name}` has no {what}. Expected a Stable Diffusion folder in diffusers' layout, or a single "
            ".safetensors file. Name one of these."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as broken:
        raise ValueError(f"`{path}` is no JSON ({broken}). Expected an undamaged file. Copy it again.") from broken
    if not isinstance(found, dict if default is None else type(default)):
        raise ValueError(f"`{path}` holds a JSON {type(found).__name__}. Expected an object. Copy it again.")
    return found


def is_palindiff(source: str | Path) -> bool:
    """Return whether a name is the folder of a palindiff checkpoint."""
    path = Path(source) / INDEX_NAME
    return path.is_file() and "query_stream" in read_json(path, str(source))


def check_layout(folder: Path, name: str) -> None:
    """Refuse a folder that is not a Stable Diffusion 1.x or 2.x, from its small files alone.

    Raises: FileNotFoundError if there is no index or a part's folder is missing; ValueError for another kind of model.
    """
    index = read_json(folder / INDEX_NAME, name)
    kind = index.get("_class_name")
    if is_palindiff(folder):
        raise ValueError(
            f"`{name}` is a palindiff checkpoint already. Expected a Stable Diffusion without query stream. Load it "
            "with `PalindiffPipeline.from_pretrained`, or take the stream out with `palindiff export` first."
        )
    if "text_encoder_2" in index or "text_encoder_3" in index or "transformer" in index:
        raise ValueError(
            f"`{name}` is a `{kind}`, which has more than one text encoder or no U-Net. {WORKS} {START}, such as "
            "CompVis/stable-diffusion-v1-1."
        )
    if absent := [part for part in BASE_PARTS if part not in index or not (folder / part).is_dir()]:
        raise FileNotFoundError(
            f"`{name}` is a `{kind}` without `{'` and `'.join(absent)}`. {WORKS} Name a folder that holds "
            f"{', '.join(BASE_PARTS)}."
        )
    check_small_parts(folder, name)
    unet, vae, text = (read_json(folder / part / "config.json", name) for part in ("unet", "vae", "text_encoder"))
    check_configs(unet, vae, text.get("hidden_size"), name)


def check_small_parts(folder: Path, name: str) -> None:
    """Refuse a missing scheduler or tokenizer, which transformers would replace by an empty one.

    Raises: FileNotFoundError; ValueError if a file is damaged.
    """
    read_json(folder / "scheduler" / "scheduler_config.json", name)
    read_json(folder / "tokenizer" / "tokenizer_config.json", name)
    held = {path.name for path in (folder / "tokenizer").iterdir()}
    if not ({"tokenizer.json"} <= held or {"vocab.json", "merges.txt"} <= held):
        raise FileNotFoundError(
            f"`{name}` has no vocabulary in its tokenizer folder. Expected tokenizer.json, or vocab.json with "
            "merges.txt. Copy the folder again."
        )


def check_configs(unet: dict[str, Any], vae: dict[str, Any], text_width: int | None, name: str) -> None:
    """Refuse a U-Net that asks for more than a latent, a step and captions' tokens.

    Raises: ValueError.
    """
    for setting, meaning in (
        ("addition_embed_type", "added embeddings, as Stable Diffusion XL and unCLIP have"),
        ("class_embed_type", "class embeddings, as upscalers and unCLIP have"),
        ("num_class_embeds", "class embeddings, as upscalers have"),
        ("encoder_hid_dim_type", "conditions besides the text"),
        ("time_cond_proj_dim", "a guidance scale among its inputs, as latent consistency models have"),
    ):
        if unet.get(setting) is not None:
            raise ValueError(
                f"The U-Net of `{name}` has {meaning} (`{setting}` = {unet[setting]!r}), for which naming has no "
                f"input. {WORKS} {START}."
            )
    ch, latent_ch = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if ch != latent_ch:
        raise ValueError(
            f"The U-Net of `{name}` takes {ch} channels where the VAE makes {latent_ch}: it is made for "
            f"{TASKS.get(ch, 'another task')}, and naming has latents alone to give it. {WORKS} {START}; inpainting "
            "by masking works with any."
        )
    width = unet.get("cross_attention_dim", 1280)
    if text_width is not None and width != text_width:
        raise ValueError(
            f"The U-Net of `{name}` reads text of width {width}, its text encoder has width {text_width}. Expected "
            "one width. Copy both parts from the same model."
        )


def weights_variant(folder: Path, part: str, variant: str | None) -> str | None:
    """Choose which weights of a part to read: the variant's, else the plain ones, as diffusers does.

    Raises: FileNotFoundError if a shard is missing; ValueError if it has neither as safetensors, or a file is damaged.
    """
    stem, place = WEIGHT_FILES[part], folder / part
    held = sorted(path.name for path in place.iterdir())

    def has(of_variant: str | None) -> bool:
        infix = f".{of_variant}" if of_variant else ""
        return f"{stem}{infix}.safetensors" in held or f"{stem}.safetensors.index{infix}.json" in held

    for chosen in (variant, None):
        if has(chosen):
            _check_files(place, stem, chosen)
            return chosen
    if others := _variants_in(held, stem):
        raise ValueError(
            f"`{place}` holds its weights as variant {', '.join(others)} only. Expected {stem}.safetensors"
            f"{f' or {stem}.{variant}.safetensors' if variant else ''}. Set it: --variant {others[0]}, or "
            f"`variant='{others[0]}'`."
        )
    weights = [name for name in held if name.endswith((*PICKLE_ENDINGS, ".safetensors"))]
    raise ValueError(
        f"`{place}` holds these weights: {', '.join(weights) or 'none'}. Expected {stem}.safetensors: pickles run "
        "code when opened, and are never read. Save the model again with `save_pretrained`."
    )


def _check_files(place: Path, stem: str, variant: str | None) -> None:
    """Open each file's header: Git LFS leaves a pointer in place of a file, a broken download a part of it."""
    infix = f".{variant}" if variant else ""
    whole, index = place / f"{stem}{infix}.safetensors", place / f"{stem}.safetensors.index{infix}.json"
    for name in [whole.name] if whole.is_file() else _shards(index, place):
        try:
            with safe_open(place / name, framework="pt"):
                pass
        except FileNotFoundError as missing:
            raise FileNotFoundError(
                f"`{place}` has no {name}, which its {index.name} names. Expected every part of the weights. Copy the "
                "folder again."
            ) from missing
        except (SafetensorError, OSError) as damage:
            raise ValueError(
                f"`{place / name}` cannot be read as safetensors ({damage}). Expected the weights themselves: a clone "
                "without Git LFS holds pointers in their place, a broken download a part. Get the file again."
            ) from damage


def _shards(index: Path, place: Path) -> list[str]:
    named = read_json(index, str(place)).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ValueError(f"`{index}` names no weights. Expected a `weight_map`. Copy the folder again.")
    return sorted({str(name) for name in named.values()})


def _variants_in(held: list[str], stem: str) -> list[str]:
    whole, index = re.compile(rf"{stem}\.(\w+)\.safetensors"), re.compile(rf"{stem}\.safetensors\.index\.(\w+)\.json")
    return sorted({match[1] for name in held if (match := whole.fullmatch(name) or index.fullmatch(name))})


def check_whole(parts: Mapping[str, object]) -> None:
    """Refuse parts with missing weights, which diffusers leaves empty with a warning.

    Raises: ValueError.
    """
    for part_name, part in parts.items():
        if isinstance(part, nn.Module):
            empty = sorted(name for name, weight in part.state_dict().items() if weight.is_meta)
            if empty:
                more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
                raise ValueError(
                    f"The weights of `{part_name}` lack `{empty[0]}`{more}. "
                    "Expected every weight that its config.json asks for. Copy the folder again."
                )


def check_fit(unet: UNet2DConditionModel, stream: QueryStream) -> None:
    """Refuse a query stream that was made for another U-Net.

    Raises: ValueError.
    """
    sites = list(attention_sites(unet))
    found = {
        "attention sites have widths": [transformer.inner_dim for transformer in sites],
        "attention sites have these numbers of blocks:": [
            len(transformer.transformer_blocks) for transformer in sites
        ],
        "mid block has this number of channels:": unet.mid_block.resnets[-1].out_channels,
    }
    config = stream.config
    made_for = (list(config.site_widths), list(config.site_num_blocks), config.mid_channels)
    for (what, of_unet), of_stream in zip(found.items(), made_for, strict=True):
        if of_unet != of_stream:
            raise ValueError(
                f"The query stream was made for a U-Net whose {what} {of_stream}; this one has {of_unet}. "
                "Expected the U-Net it was trained with. Load both from one folder."
            )


def check_text_width(text_encoder: PreTrainedModel, stream: QueryStream) -> None:
    """Refuse a query stream made for a text encoder of another width.

    Raises: ValueError.
    """
    width, config = text_encoder.config.hidden_size, stream.config
    projection = config.clip_projection_settings
    expected = projection["hidden_size"] if projection else config.d_e
    if width != expected:
        takes = "`clip_projection` takes features" if projection else "queries are embeddings"
        raise ValueError(
            f"The query stream's {takes} of width {expected}; the text encoder's width is {width}. Expected the text "
            "encoder it was trained with. Load both from one folder."
        )


def check_query_scheduler(scheduler: SchedulerMixin) -> None:
    """Refuse a scheduler that would take the predicted query for noise, or clip it.

    Raises: ValueError.
    """
    config = scheduler.config
    prediction_type = config.get("prediction_type")
    if prediction_type != "sample":
        raise ValueError(
            f"The query scheduler has `prediction_type` = {prediction_type!r}. Expected 'sample': the query stream "
            "predicts the clean query. Set it in the scheduler's configuration."
        )
    for name in ("clip_sample", "thresholding"):
        if config.get(name):
            raise ValueError(
                f"The query scheduler has `{name}` = {config[name]}, which clips the query. Expected False. Set it in "
                "the scheduler's configuration."
            )
