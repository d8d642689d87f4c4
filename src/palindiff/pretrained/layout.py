"""What a folder in diffusers' layout must hold: a Stable Diffusion to start from, or a palindiff checkpoint.

Here: checks of small files before any weight is read, of the files of weights, and of loaded parts, where diffusers
only warns. Not here: loading (`stable_diffusion.py`, `inference/pipeline.py`).
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
from palindiff.models.strict_model import check_weights, no_safetensors
from palindiff.models.unet_encoder import WORKS, check_unet, site_sizes

INDEX_NAME = "model_index.json"
OUR_PARTS = ("query_stream", "query_scheduler")
BASE_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
TASKS = {9: "inpainting", 5: "depth to image", 8: "instruct-pix2pix", 7: "upscaling"}  # by a U-Net's channels in
WHOLE_FOLDER = (
    "a Stable Diffusion folder in diffusers' layout, which needs no weights as `config`, or a single .safetensors "
    "file. Name one of these."
)


def check_index(folder: Path, given: Collection[str] = ()) -> None:
    """Refuse a folder whose index lists no query stream, unless the missing parts are `given`.

    Raises: FileNotFoundError if there is no index; ValueError if it is damaged or names too little.
    """
    checkpoint = (
        "a checkpoint folder, as `PalindiffPipeline.save_pretrained` or `palindiff train` writes it. Name the folder "
        "that holds `unet` and `query_stream`."
    )
    index = read_json(folder, INDEX_NAME, expected=checkpoint)
    missing = [name for name in OUR_PARTS if name not in index and name not in given]
    if missing:
        raise ValueError(
            f"`{folder}` holds a {index.get('_class_name')} without `{'` and `'.join(missing)}`. Expected a palindiff "
            "checkpoint: Stable Diffusion alone cannot classify or rank images. Pass the missing parts, or use "
            "another folder."
        )


def read_json(
    folder: Path, file: str, name: str | None = None, default: Any = None, expected: str = WHOLE_FOLDER
) -> Any:
    """Read a small file of a folder that the caller calls `name`: an object, or what is of the type of `default`.

    Raises: FileNotFoundError, with what was `expected` and what to do, if it is missing and has no `default`;
            ValueError if it holds something else.
    """
    path = folder / file
    if not path.is_file():
        if default is not None:
            return default
        raise FileNotFoundError(f"`{name or folder}` has no {file}. Expected {expected}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as broken:
        raise ValueError(
            f"`{path}` is not valid JSON ({broken}). Expected an undamaged file. Copy it again."
        ) from broken
    if not isinstance(found, dict if default is None else type(default)):
        raise ValueError(f"`{path}` holds a JSON {type(found).__name__}. Expected an object. Copy it again.")
    return found


def result_of(source: str | Path, result: str, file: str = INDEX_NAME) -> str | Path:
    """Return the folder of what a run wrote, `source/result`, where `source` is the folder of a run; else `source`."""
    folder = Path(source)
    is_run = (folder / result / file).is_file() and not (folder / file).is_file()
    return folder / result if is_run else source


def is_palindiff(source: str | Path) -> bool:
    """Return whether a name is the folder of a palindiff checkpoint."""
    return "query_stream" in read_json(Path(source), INDEX_NAME, default={})


def check_layout(folder: Path, name: str) -> None:
    """Refuse a folder that is not a Stable Diffusion 1.x or 2.x, from its small files alone.

    A missing scheduler or tokenizer is refused here, because transformers would replace it by an empty one.

    Raises: FileNotFoundError if there is no index or a part's folder is missing; ValueError for another kind of model.
    """
    index = read_json(folder, INDEX_NAME, name)
    kind = index.get("_class_name")
    if "query_stream" in index:
        raise ValueError(
            f"`{name}` is a palindiff checkpoint already. Expected a Stable Diffusion without query stream. Load it "
            "with `PalindiffPipeline.from_pretrained`, or take the stream out with `palindiff export` first."
        )
    if "text_encoder_2" in index or "text_encoder_3" in index or "transformer" in index:
        raise ValueError(
            f"`{name}` is a `{kind}`, which has more than one text encoder or no U-Net. {WORKS}, such as "
            "CompVis/stable-diffusion-v1-1."
        )
    if absent := [part for part in BASE_PARTS if part not in index or not (folder / part).is_dir()]:
        raise FileNotFoundError(
            f"`{name}` is a `{kind}` without `{'` and `'.join(absent)}`. {WORKS}. Name a folder that holds "
            f"{', '.join(BASE_PARTS)}."
        )
    read_json(folder, "scheduler/scheduler_config.json", name)
    read_json(folder, "tokenizer/tokenizer_config.json", name)
    held = {path.name for path in (folder / "tokenizer").iterdir()}
    if not ({"tokenizer.json"} <= held or {"vocab.json", "merges.txt"} <= held):
        raise FileNotFoundError(
            f"`{name}` has no vocabulary in its tokenizer folder. Expected tokenizer.json, or vocab.json with "
            "merges.txt. Copy the folder again."
        )
    unet, vae, text = (read_json(folder, f"{part}/config.json", name) for part in ("unet", "vae", "text_encoder"))
    check_configs(unet, vae, text.get("hidden_size"), name)


def check_configs(unet: dict[str, Any], vae: dict[str, Any], text_width: int | None, name: str) -> None:
    """Refuse a U-Net that asks for more than a latent, a step and captions' tokens.

    Raises: ValueError.
    """
    check_unet(unet, f"The U-Net of `{name}`")
    ch, latent_ch = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if ch != latent_ch:
        raise ValueError(
            f"The U-Net of `{name}` takes {ch} channels where the VAE makes {latent_ch}: it is made for "
            f"{TASKS.get(ch, 'another task')}, and naming has latents alone to give it. {WORKS}; inpainting "
            "by masking works with any."
        )
    width = unet.get("cross_attention_dim", 1280)
    if text_width is not None and width != text_width:
        raise ValueError(
            f"The U-Net of `{name}` reads text of width {width}, its text encoder has width {text_width}. Expected "
            "one width. Copy both parts from the same model."
        )


def weights_variant(folder: Path, stem: str, variant: str | None = None) -> str | None:
    """Choose which weights of a part to read: the variant's, else the plain ones, as diffusers does.

    `stem` is how their names begin: "model" for a text encoder, "diffusion_pytorch_model" for parts of diffusers.

    Raises: FileNotFoundError if a shard is missing; ValueError if it has neither as safetensors, or a file is damaged.
    """
    for chosen in (variant, None):
        infix = f".{chosen}" if chosen else ""
        whole, index = f"{stem}{infix}.safetensors", f"{stem}.safetensors.index{infix}.json"
        if (folder / whole).is_file():
            _check_files(folder, [whole])
            return chosen
        if (folder / index).is_file():
            shards = read_json(folder, index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise ValueError(f"`{folder / index}` names no weights. Expected a `weight_map`. Copy the file again.")
            _check_files(folder, sorted({str(name) for name in shards.values()}), index)
            return chosen
    of_variants = re.compile(rf"{stem}(?:\.safetensors\.index)?\.(\w+)\.(?:safetensors|json)")
    if others := sorted({found[1] for path in folder.iterdir() if (found := of_variants.fullmatch(path.name))}):
        raise ValueError(
            f"`{folder}` holds its weights as variant {', '.join(others)} only. Expected {stem}.safetensors"
            f"{f' or {stem}.{variant}.safetensors' if variant else ''}. Set it for a Stable Diffusion (--variant "
            f"{others[0]}, or `variant='{others[0]}'`); save another model again without variant."
        )
    raise ValueError(no_safetensors(folder, f"{stem}.safetensors"))


def _check_files(folder: Path, names: list[str], index: str = "") -> None:
    """Open each file's header: Git LFS leaves a pointer in place of a file, a broken download a part of it."""
    for name in names:
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except FileNotFoundError as missing:
            raise FileNotFoundError(
                f"`{folder}` has no {name}, which its {index} names. Expected every part of the weights. Copy the "
                "folder again."
            ) from missing
        except (SafetensorError, OSError) as damage:
            raise ValueError(
                f"`{folder / name}` cannot be read as safetensors ({damage}). Expected the weights themselves: a "
                "clone without Git LFS holds pointers in their place, a broken download a part. Get the file again."
            ) from damage


def check_whole(parts: Mapping[str, object]) -> None:
    """Refuse parts with missing weights, which diffusers leaves empty with a warning.

    Raises: ValueError.
    """
    for part_name, part in parts.items():
        if isinstance(part, nn.Module):
            empty = [name for name, weight in part.state_dict().items() if weight.is_meta]
            check_weights(f"The part `{part_name}`", empty)


def check_fit(unet: UNet2DConditionModel, stream: QueryStream) -> None:
    """Refuse a query stream that was made for another U-Net.

    Raises: ValueError.
    """
    for name, of_unet in site_sizes(unet).items():
        if of_unet != stream.config[name]:
            raise ValueError(
                f"The query stream was made for a U-Net with `{name}` = {stream.config[name]}; this one has "
                f"{of_unet}. Expected the U-Net it was trained with. Load both from one folder."
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
    for name, supported, reason in (
        ("prediction_type", ("sample",), "the query stream predicts the clean query"),
        ("clip_sample", (False, None), "a query must not be clipped"),
        ("thresholding", (False, None), "a query must not be clipped"),
    ):
        if (found := scheduler.config.get(name)) not in supported:
            raise ValueError(
                f"The query scheduler has `{name}` = {found!r}. Expected {supported[0]!r}: {reason}. Set it in the "
                "scheduler's configuration."
            )
