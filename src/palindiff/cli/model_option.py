"""What every verb that runs a model shares: which model, on which device, and how it is opened."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from palindiff.inference.pipeline import PalindiffPipeline

DEFAULT_MODEL = "emoji"
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME|DIR",
        help="Bundled model, checkpoint folder (./NAME where a bundled model is called so too), or Hub name.",
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="cpu, cuda, mps, ...; auto takes an accelerator where there is one.")
]


def open_model(name: str, device: str = "auto", dtype: "torch.dtype | None" = None) -> "PalindiffPipeline":
    """Load a model onto a device, in float32 or another type.

    Raises: FileNotFoundError if there is no such model; ValueError if there is no such device; what loading raises.
    """
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    place = _find_device(device)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    from palindiff.inference.bundled import load
    from palindiff.inference.pipeline import PalindiffPipeline
    from palindiff.pretrained.bundled import bundled_models

    dtype = dtype or torch.float32
    if name in bundled_models():
        pipeline = load(name, dtype)
    else:
        folder = Path(name) if Path(name).is_dir() else _download(name, bundled_models())
        pipeline = PalindiffPipeline.from_pretrained(folder, dtype=dtype)
    return pipeline.to(place, silence_dtype_warnings=True)


def _download(name: str, bundled: list[str]) -> Path:
    """Find a Hub name's files, downloaded now or earlier."""
    from diffusers.utils import logging as diffusers_logging

    from palindiff.inference.pipeline import PalindiffPipeline

    ships = f"one of the bundled models ({', '.join(bundled) or 'none in this installation'})"
    unknown = FileNotFoundError(
        f"No model `{name}`: it is no folder{', and the Hub did not give it' if _is_hub_name(name) else ''}. "
        f"Expected {ships}, a checkpoint folder, or a Hub name OWNER/MODEL. Check the name with --model."
    )
    if not _is_hub_name(name):
        raise unknown
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.CRITICAL)
    try:
        return Path(PalindiffPipeline.download(name, use_safetensors=True))
    except (OSError, ValueError) as error:
        raise unknown from error
    finally:
        diffusers_logging.set_verbosity(verbosity)


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def _find_device(name: str) -> str:
    """Resolve `auto`, and refuse a device that this machine does not have."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return found.type if found is not None else "cpu"
    kind = name.partition(":")[0]
    if kind not in {"cpu", *([found.type] if found is not None else [])}:
        raise ValueError(
            f"--device is {name}. Expected auto, cpu{f' or {found.type}' if found is not None else ''}: that is what "
            "torch finds on this machine. Leave --device out to take the best."
        )
    return name
