"""Completing a Stable Diffusion text encoder with the projection, and missing layers, of the CLIP it was taken from.

Here: comparing both text encoders tensor by tensor, and taking from CLIP what the other lacks. Not here: loading them
(`text_encoders.py`).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase

from palindiff.models.clip_projection import LAYER_SETTINGS, ClipProjection
from palindiff.models.text_encoder import CLIP_TEXT_TYPE, TextEncoder


def with_clip_projection(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, clip: TextEncoder, with_weights: bool = True
) -> TextEncoder:
    """Join a pipeline's own text model and tokenizer with the projection of its CLIP, and the layers that it lacks.

    They are the same if every tensor is equal, or equal once the one that was stored in half precision
    is rounded so. Without weights, only shapes and settings are compared.

    Source: decisions rows 15 and 22.
    Raises: ValueError that names the first difference, or what is not a CLIP.
    """
    check_clip(clip, name)
    whole = clip.model
    assert isinstance(whole, CLIPTextModel), "a CLIP is loaded as transformers' CLIPTextModel"
    assert clip.projection is not None, "as `check_clip` has checked"
    if model.config.model_type != CLIP_TEXT_TYPE:
        raise ValueError(
            f"The text encoder of `{name}` is a `{model.config.model_type}`. Expected CLIP's, as in Stable "
            "Diffusion 1.x and 2.x. Start from one of these."
        )
    pairs = {setting: (getattr(model.config, setting), getattr(whole.config, setting)) for setting in LAYER_SETTINGS}
    differences = [f"`{each}` is {here!r} there and {of_clip!r} in CLIP" for each, (here, of_clip) in pairs.items()
                   if here != of_clip]  # fmt: skip
    compare = differing_tensors if with_weights else differing_shapes
    check_same(differences or compare(model.state_dict(), whole.state_dict()), name, clip)
    num_kept = model.config.num_hidden_layers
    projection = ClipProjection.from_clip(whole, clip.projection.weight, num_kept)
    encoder = TextEncoder(model.requires_grad_(False), tokenizer, "clip", projection, name)
    encoder.check()
    return encoder


def check_same(differences: Sequence[str], name: str, clip: TextEncoder) -> None:
    """Refuse a text encoder that differs from CLIP's.

    Raises: ValueError that names the first difference.
    """
    if differences:
        more = f", and {len(differences) - 1} more" if len(differences) > 1 else ""
        raise ValueError(
            f"The text encoder of `{name}` is not that of `{clip.name}`: {differences[0]}{more}. Expected the CLIP "
            "that the text encoder was taken from, whose projection makes captions' embeddings. Name that CLIP's "
            "folder (openai/clip-vit-large-patch14 for Stable Diffusion 1.x, of width 768; "
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K for 2.x, of width 1024); a text encoder that was trained further "
            "has none."
        )


def differing_tensors(of_base: Mapping[str, Tensor], of_clip: Mapping[str, Tensor]) -> list[str]:
    """Describe how each tensor of a text encoder differs from CLIP's, if it does; what only CLIP has is ignored."""
    found = differing_shapes(of_base, of_clip)
    for name, tensor in of_base.items():
        if name in of_clip and tensor.shape == of_clip[name].shape and not _is_same(tensor, of_clip[name]):
            distance = (tensor.float() - of_clip[name].float()).abs().max()
            found.append(f"`{name}` differs by up to {distance:.3g}")
    return found


def differing_shapes(of_base: Mapping[str, Tensor], of_clip: Mapping[str, Tensor]) -> list[str]:
    """Describe the tensors of a text encoder that CLIP lacks, or has in another shape."""
    found = []
    for name, tensor in of_base.items():
        if name not in of_clip:
            found.append(f"CLIP has no `{name}`")
        elif tensor.shape != of_clip[name].shape:
            found.append(f"`{name}` has shape {tuple(tensor.shape)} there and {tuple(of_clip[name].shape)} in CLIP")
    return found


def check_clip(clip: TextEncoder, name: str) -> None:
    """Refuse anything but a CLIP with its text projection to complete the text encoder of `name`.

    Raises: ValueError.
    """
    if clip.pooling != "clip":
        raise ValueError(
            f"`{clip.name}` is a sentence encoder. Expected the CLIP that the text encoder of `{name}` was taken "
            "from. Name that CLIP's folder."
        )
    if clip.projection is None:
        raise ValueError(
            f"`{clip.name}` has no text projection, which makes captions' embeddings and which no Stable Diffusion "
            "folder has. Expected a whole CLIP or a `CLIPTextModelWithProjection`. Name the CLIP's own folder."
        )


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    if torch.equal(tensor, other):
        return True
    for half in (torch.float16, torch.bfloat16):
        rounded, other_rounded = tensor.to(half), other.to(half)
        was_half = torch.equal(rounded.to(tensor.dtype), tensor) or torch.equal(other_rounded.to(other.dtype), other)
        if was_half and torch.equal(rounded, other_rounded):
            return True
    return False
