"""What a checkpoint folder must hold before and after diffusers has loaded it.

Here: the checks that turn diffusers' warnings about half a pipeline into errors. Not here: loading (`pipeline.py`),
and the query stream's own weights, which look after themselves (`models/whole_model.py`).
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from diffusers import SchedulerMixin, UNet2DConditionModel
from torch import nn
from transformers import PreTrainedModel

from palindiff.models.query_stream import QueryStream
from palindiff.models.unet_encoder import attention_sites

INDEX_NAME = "model_index.json"
OUR_PARTS = ("query_stream", "query_scheduler")


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


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Read a small file of the model that the caller calls `name`.

    Raises: FileNotFoundError if it is not there; ValueError if it is no JSON object.
    """
    if not path.is_file():
        what = path.name if path.name == INDEX_NAME else f"{path.parent.name}/{path.name}"
        raise FileNotFoundError(
            f"`{name}` has no {what}. Expected a Stable Diffusion folder in diffusers' layout, or a single "
            ".safetensors file. Name one of these."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as broken:
        raise ValueError(f"`{path}` is no JSON ({broken}). Expected an undamaged file. Copy it again.") from broken
    if not isinstance(found, dict):
        raise ValueError(f"`{path}` holds a JSON {type(found).__name__}. Expected an object. Copy it again.")
    return found


def check_whole(parts: Mapping[str, object]) -> None:
    """Refuse parts that diffusers loaded with weights missing, which it leaves empty, with a warning.

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
    """Refuse a query stream made for another U-Net.

    Raises: ValueError.
    """
    sites = list(attention_sites(unet))
    found = {
        "attention sites have widths": [transformer.inner_dim for transformer in sites],
        "attention sites have so many blocks each:": [len(transformer.transformer_blocks) for transformer in sites],
        "mid block ends in so many channels:": unet.mid_block.resnets[-1].out_channels,
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
    has_projection = config.projection_width is not None
    expected = config.projection_width if has_projection else config.d_e
    if width != expected:
        takes = "`text_projection` takes features" if has_projection else "queries are embeddings"
        raise ValueError(
            f"The query stream's {takes} of width {expected}; the text encoder's width is {width}. Expected the text "
            "tower it was trained with. Load both from one folder."
        )


def check_query_scheduler(scheduler: SchedulerMixin) -> None:
    """Refuse a text diffusion that would read the predicted query as noise, or clip it.

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
