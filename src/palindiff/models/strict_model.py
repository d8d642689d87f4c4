"""A diffusers model that is loaded completely or not at all.

diffusers only warns where weights are missing or left over or settings are unknown, and falls back to pickles.
Here: a `from_pretrained` that raises an error of one sentence in each case, and its checks, which other loaders use
too. Not here: any network.
"""

import difflib
import inspect
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.utils import logging as diffusers_logging
from torch import nn

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
PICKLE_ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


class StrictModel(ModelMixin, ConfigMixin):
    """A model whose `from_pretrained` a pipeline can call too, when it loads its parts."""

    config_name = "config.json"
    settings_since: ClassVar[frozenset[str]] = frozenset()
    """Settings added since the first checkpoints; one without them was made as their defaults say"""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load config and weights from a folder or the Hub, from safetensors alone.

        Raises: FileNotFoundError if config or safetensors are missing or damaged; ValueError if a setting is missing,
                unknown or invalid, or if weights are missing, left over, or of another shape than the config says.
        """
        wants_info = options.pop("output_loading_info", False)
        source = Path(pretrained_model_name_or_path, options.get("subfolder") or "")  # what messages call it
        strict = {"use_safetensors": True, "use_flashpack": False}  # no pickle, whatever a pipeline passes on
        reporting = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # raised below, in one sentence
        with without_warnings():
            try:
                model, info = super().from_pretrained(pretrained_model_name_or_path, **options | strict | reporting)
            except OSError as error:
                raise FileNotFoundError(_unreadable(source, error)) from error
            except TypeError as error:
                raise ValueError(
                    f"The config.json of `{source}` builds no {cls.__name__} ({error}). Expected what "
                    "`save_pretrained` writes. Save the model again."
                ) from error
        _check_settings(cls, model, source)
        other_shapes = [
            f"has `{name}` of shape {tuple(shape)} where {tuple(expected)} belongs"
            for name, shape, expected in info["mismatched_keys"]
        ]
        check_weights(f"`{source}`", info["missing_keys"], info["unexpected_keys"], other_shapes)
        return (model, info) if wants_info else model  # type: ignore[return-value]  # a pair where it is asked for


def _check_settings(model_class: type[StrictModel], model: StrictModel, source: Path) -> None:
    known = set(inspect.signature(model_class).parameters)
    for name in sorted(set(model.config) - known):
        if not name.startswith("_"):
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"The config.json of `{source}` has a setting `{name}` that {model_class.__name__} does not know"
                f"{f'; the nearest is `{near[0]}`' if near else ''}. Expected settings of this version of palindiff. "
                "Update palindiff, or save the model again."
            )
    if missing := sorted(set(model.config.get("_use_default_values", [])) - model_class.settings_since):
        raise ValueError(
            f"The config.json of `{source}` lacks the setting{'s' if len(missing) > 1 else ''} "
            f"`{'`, `'.join(missing)}`. Expected every setting of {model_class.__name__}, as `save_pretrained` writes "
            "them. Copy config and weights from the same checkpoint."
        )


def check_weights(
    subject: str, missing: Collection[str], unexpected: Collection[str] = (), other: Collection[str] = ()
) -> None:
    """Refuse weights of a part that are missing or that it has no place for; `other` says what else does not fit.

    Raises: ValueError; `subject` is what it calls the part.
    """
    found = [
        *(f"lacks `{name}`" for name in sorted(missing)),
        *(f"has `{name}`, which the model does not use" for name in sorted(unexpected)),
        *other,
    ]
    if found:
        more = f", and {len(found) - 1} more weights do not fit" if len(found) > 1 else ""
        raise ValueError(
            f"{subject} {found[0]}{more}. Expected exactly the weights that its config asks for. "
            "Copy both from the same checkpoint, or save it again."
        )


GET_ANOTHER = "Get an undamaged copy, or load it in float32."


def check_finite(parts: Mapping[str, object], remedy: str) -> None:
    """Refuse weights that are not finite; in half precision, numbers above 65,504 are not.

    Raises: ValueError.
    """
    for part_name, part in parts.items():
        for name, weight in part.state_dict().items() if isinstance(part, nn.Module) else ():
            if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
                count = int((~torch.isfinite(weight)).sum())
                raise ValueError(
                    f"`{name}` of the part `{part_name}` holds {count:,} numbers that are infinite or NaN, of "
                    f"{weight.numel():,} in {weight.dtype}. Expected finite weights. {remedy}"
                )


def no_safetensors(folder: Path, expected: str) -> str:
    """Say which weights a folder holds instead of the expected ones."""
    held = sorted(path.name for path in folder.iterdir() if path.suffix in (*PICKLE_ENDINGS, ".safetensors"))
    return (
        f"`{folder}` holds these weights: {', '.join(held) or 'none'}. Expected {expected}: pickles run code when "
        "opened and are never read. Save the model again with `save_pretrained`."
    )


def _unreadable(folder: Path, error: OSError) -> str:
    if not folder.is_dir():
        return f"`{folder}` is not a folder, and neither the Hub nor its cache on this machine has it. Check the name."
    if not (folder / "config.json").is_file():
        return f"`{folder}` has no config.json. Expected what `save_pretrained` writes. Pass the model's own folder."
    if not any(folder.glob("*.safetensors")):
        return no_safetensors(folder, WEIGHTS_NAME)
    reason = " ".join(str(error).split())
    return f"`{folder}` cannot be read ({reason}). Expected undamaged JSON and safetensors. Copy the folder again."


@contextmanager
def without_warnings(library: Any = diffusers_logging) -> Iterator[None]:
    """Silence a library, by its `logging` module, while it loads; what it would warn of is raised as an error."""
    verbosity = library.get_verbosity()
    library.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
