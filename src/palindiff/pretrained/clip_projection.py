"""A Stable Diffusion folder's text encoder, completed by what the CLIP it was taken from has besides: the text query's.

Here: telling whether both hold one tower, tensor by tensor, and taking CLIP's projection and last layers from it.
Not here: loading either (`caption_encoder.py`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase

from palindiff.models.clip_tail import TAIL_SETTINGS, ClipTail
from palindiff.models.text_encoder import check_tower
from palindiff.pretrained.text_encoders import CLIP_TEXT_TYPE, TextEncoder

_HALVES = (torch.float16, torch.bfloat16)


def with_clip_projection(
    text_encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, clip: TextEncoder
) -> TextEncoder:
    """Join a pipeline's own tower and tokenizer with the projection of its CLIP, and the layers that it lacks.

    Two towers are one if every tensor is equal, or equal once the one that was stored in half precision is rounded so.

    Source: decisions rows 15 and 22.
    Raises: ValueError that names the first difference, or what is no CLIP.
    """
    check_clip(clip, name)
    _check_tower(text_encoder, name, clip)
    assert isinstance(clip.text_encoder, CLIPTextModel), "a CLIP tower is loaded as transformers' CLIPTextModel"
    num_kept, num_whole = (tower.config.num_hidden_layers for tower in (text_encoder, clip.text_encoder))
    differences = _differing_settings(text_encoder, clip.text_encoder) or differing_tensors(
        text_encoder.state_dict(), clip.text_encoder.state_dict()
    )
    if differences:
        more = f", and {len(differences) - 1} more" if len(differences) > 1 else ""
        raise ValueError(
            f"The text encoder of `{name}` is not that of `{clip.name}`: {differences[0]}{more}. Expected the CLIP that "
            "the tower was taken from, whose projection makes captions' embeddings. Name that CLIP's folder "
            "(openai/clip-vit-large-patch14 for Stable Diffusion 1.x, laion/CLIP-ViT-H-14-laion2B-s32B-b79K for 2.x); "
            "a tower that was trained further has none."
        )
    tail = ClipTail.of(clip.text_encoder, num_kept) if num_whole > num_kept else None
    tower = TextEncoder(text_encoder.requires_grad_(False), tokenizer, "clip", clip.projection, name, tail)
    check_tower(tower)
    return tower


def differing_tensors(of_base: Mapping[str, Tensor], of_clip: Mapping[str, Tensor]) -> list[str]:
    """Say of each tensor of a tower how it differs from CLIP's, if it does; what CLIP has besides is not looked at."""
    found = differing_shapes(of_base, of_clip)
    for name, tensor in of_base.items():
        if name in of_clip and tensor.shape == of_clip[name].shape and not _is_same(tensor, of_clip[name]):
            distance = (tensor.float() - of_clip[name].float()).abs().max()
            found.append(f"`{name}` differs by up to {distance:.3g}")
    return found


def differing_shapes(of_base: Mapping[str, Tensor], of_clip: Mapping[str, Tensor]) -> list[str]:
    """Say of each tensor of a tower whether CLIP lacks it, or has it in another shape."""
    found = []
    for name, tensor in of_base.items():
        if name not in of_clip:
            found.append(f"CLIP has no `{name}`")
        elif tensor.shape != of_clip[name].shape:
            found.append(f"`{name}` has shape {tuple(tensor.shape)} there and {tuple(of_clip[name].shape)} in CLIP")
    return found


def check_clip(clip: TextEncoder, name: str) -> None:
    """Refuse what is no CLIP with its text projection to complete the tower of `name` from.

    Raises: ValueError.
    """
    if clip.pooling != "clip":
        raise ValueError(
            f"`{clip.name}` is a sentence encoder. Expected the CLIP that the text encoder of `{name}` was taken from. "
            "Name that CLIP's folder."
        )
    if clip.projection is None:
        raise ValueError(
            f"`{clip.name}` has no text projection, which makes captions' embeddings and which no Stable Diffusion "
            "folder has. Expected a whole CLIP or a `CLIPTextModelWithProjection`. Name the CLIP's own folder."
        )


def _check_tower(text_encoder: PreTrainedModel, name: str, clip: TextEncoder) -> None:
    if text_encoder.config.model_type != CLIP_TEXT_TYPE:
        raise ValueError(
            f"The text encoder of `{name}` is a `{text_encoder.config.model_type}`. Expected CLIP's, as in Stable "
            "Diffusion 1.x and 2.x. Start from one of these."
        )
    width, own_width = text_encoder.config.hidden_size, clip.text_encoder.config.hidden_size
    if width != own_width:
        raise ValueError(
            f"The text encoder of `{name}` has width {width}, that of `{clip.name}` {own_width}. Expected the CLIP that "
            "the tower was taken from (768: openai/clip-vit-large-patch14; 1024: "
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K). Name that one."
        )


def _differing_settings(text_encoder: PreTrainedModel, clip: PreTrainedModel) -> list[str]:
    pairs = {name: (getattr(text_encoder.config, name), getattr(clip.config, name)) for name in TAIL_SETTINGS}
    return [
        f"`{name}` is {here!r} there and {there!r} in CLIP" for name, (here, there) in pairs.items() if here != there
    ]


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    if torch.equal(tensor, other):
        return True
    for half in _HALVES:
        rounded, other_rounded = tensor.to(half), other.to(half)
        was_half = torch.equal(rounded.to(tensor.dtype), tensor) or torch.equal(other_rounded.to(other.dtype), other)
        if was_half and torch.equal(rounded, other_rounded):
            return True
    return False
