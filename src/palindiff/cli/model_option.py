"""What every verb that runs a model shares: which model, on which device, and how it is loaded."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palindiff.allocator import keep_freed_memory

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

    from palindiff.inference.embedder import Embedder
    from palindiff.inference.pipeline import PalindiffPipeline

DEFAULT_MODEL = "emoji"
ModelOption = Annotated[
    str,
    typer.Option(
        "--model", metavar="NAME|DIR", help="Bundled model, checkpoint or run folder, or Hub name. ./NAME is a folder."
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="Device: auto, cpu, cuda, mps, ...; auto prefers an accelerator.")
]


def open_model(name: str, device: str = "auto", dtype: "torch.dtype | None" = None) -> "PalindiffPipeline":
    """Load a model onto a device, in float32 or another type.

    Raises: FileNotFoundError if there is no such model; ValueError if there is no such device; what loading raises.
    """
    import torch

    device = find_device(device)
    hide_progress_bars()
    from palindiff.inference.bundled import load
    from palindiff.inference.pipeline import PalindiffPipeline
    from palindiff.pretrained.bundled import bundled_models
    from palindiff.pretrained.layout import result_of

    dtype = dtype or torch.float32
    if name in bundled_models():
        pipeline = load(name, dtype)
    else:
        folder = result_of(name, "checkpoint") if Path(name).is_dir() else _download(name, bundled_models())
        pipeline = PalindiffPipeline.from_pretrained(folder, dtype=dtype)
    return pipeline.to(device, silence_dtype_warnings=True)


def open_generator(name: str, device: str = "auto") -> "StableDiffusionPipeline":
    """Load a model that generates: as `open_model`, or a folder of any Stable Diffusion, without its safety checker.

    Raises: as `open_model`; OSError or ValueError if the folder cannot be loaded.
    """
    from palindiff.inference.model_kinds import model_kind
    from palindiff.pretrained.bundled import bundled_models

    if name in bundled_models():
        return open_model(name, device)
    kind, folder = model_kind(name if Path(name).is_dir() else _download(name, bundled_models()))
    if kind in ("clip", "contrastive"):
        raise ValueError(
            f"`{name}` is a contrastive model, which generates nothing. Expected a palindiff checkpoint or a Stable "
            "Diffusion. Use one with --model, or leave the task out."
        )
    if kind == "palindiff":
        return open_model(str(folder), device)
    device = find_device(device)
    hide_progress_bars()
    from diffusers import StableDiffusionPipeline

    pipeline: StableDiffusionPipeline = StableDiffusionPipeline.from_pretrained(
        folder, use_safetensors=True, safety_checker=None, requires_safety_checker=False
    )
    return pipeline.to(device)


def open_embedder(name: str, device: str = "auto") -> "Embedder":
    """Load a model that embeds images and captions: as `open_model`, or any CLIP, in a folder or of a Hub name.

    On a CPU the process then keeps freed memory.

    Raises: as `open_model`; OSError or ValueError if a CLIP cannot be loaded.
    """
    device = find_device(device)
    if device == "cpu":
        keep_freed_memory()
    from palindiff.inference.clip_model import ClipModel
    from palindiff.inference.embedder import PipelineEmbedder

    if (folder := _clip_folder(name)) is None:
        return PipelineEmbedder(open_model(name, device))
    hide_progress_bars()
    return ClipModel.from_pretrained(folder).to(device)


def launched_process() -> tuple[int, int]:
    """Return this process's number among those of a launch, and how many there are, as torchrun sets them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def check_is_alone(verb: str, remedy: str) -> None:
    """Refuse to run as one of several processes of a launch.

    Raises: ValueError.
    """
    _, num_processes = launched_process()
    if num_processes > 1:
        raise ValueError(
            f"`palindiff {verb}` was launched as {num_processes} processes (WORLD_SIZE). Expected one, without "
            f"torchrun or accelerate: it measures and writes as one process. {remedy}"
        )


def hide_progress_bars() -> None:
    """Keep the libraries' progress bars of loading off the terminal."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _clip_folder(name: str) -> Path | None:
    """Find the folder of a CLIP or of a contrastive model, downloaded if it is a Hub name; None for other models."""
    from palindiff.inference.model_kinds import model_kind
    from palindiff.pretrained.bundled import bundled_models
    from palindiff.pretrained.clip_folders import download_clip
    from palindiff.pretrained.model_card import is_hub_name

    if Path(name).is_dir():
        kind, folder = model_kind(name)
        return folder if kind in ("clip", "contrastive") else None
    if name in bundled_models() or not is_hub_name(name):
        return None
    return download_clip(name)  # None for a pipeline, or nothing at all: `open_model` says which


def _download(name: str, bundled: list[str]) -> Path:
    """Find a Hub name's files, downloaded now or earlier."""
    from palindiff.inference.pipeline import PalindiffPipeline
    from palindiff.models.strict_model import without_warnings
    from palindiff.pretrained.model_card import is_hub_name

    asks_hub = is_hub_name(name)
    unknown = FileNotFoundError(
        f"No model `{name}`: it is not a folder{', and the Hub did not give it' if asks_hub else ''}. Expected one of "
        f"the bundled models ({', '.join(bundled) or 'none in this installation'}), a checkpoint folder, or a Hub "
        "name OWNER/MODEL. Check the name with --model."
    )
    if not asks_hub:
        raise unknown
    try:
        with without_warnings():
            return Path(PalindiffPipeline.download(name, use_safetensors=True))
    except (OSError, ValueError) as error:
        raise unknown from error


def find_device(name: str) -> str:
    """Resolve `auto`, and refuse a device that this machine does not have."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kinds = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    if name == "auto":
        place = os.environ.get("LOCAL_RANK")  # each process of a launch has a GPU of its own
        return kinds[-1] if place is None or kinds[-1] == "cpu" else f"{kinds[-1]}:{place}"
    if name.partition(":")[0] not in kinds:
        raise ValueError(
            f"--device is {name}. Expected auto, {' or '.join(kinds)}: torch finds no other device on this machine. "
            "Use --device auto."
        )
    return name
