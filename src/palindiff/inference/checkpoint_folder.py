"""What a checkpoint folder must hold before and after diffusers has loaded it.

Here: the checks that turn diffusers' warnings about half a pipeline into errors. Not here: loading (`pipeline.py`),
and the query stream's own weights, which look after themselves (`models/whole_model.py`).
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from diffusers import UNet2DConditionModel
from torch import nn

from palindiff.models.encoder_half import attention_sites
from palindiff.models.query_stream import QueryStream

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
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"`{path}` is no JSON ({error}). Expected an undamaged index. Copy the folder again."
        ) from error
    missing = [name for name in OUR_PARTS if name not in index and name not in given]
    if missing:
        raise ValueError(
            f"`{folder}` holds a {index.get('_class_name')} without `{'` and `'.join(missing)}`. Expected a palindiff "
            "checkpoint: Stable Diffusion alone names no pictures. Train one from it, or pass the missing parts."
        )


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
    widths = [transformer.inner_dim for transformer in attention_sites(unet)]
    if widths != list(stream.config.site_widths):
        raise ValueError(
            f"The query stream was made for attention sites of widths {list(stream.config.site_widths)}; those of the "
            f"U-Net's encoder half are {widths}. Expected the U-Net it was trained with. Load both from one folder."
        )
