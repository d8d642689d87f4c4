"""CLIP-score: how well generated images fit their captions, by the cosine of a named CLIP's embeddings.

Here: the score, and two kinds of CLIP. Not here: generated images (`generation.py`).
Scores of two CLIPs do not compare, so a row names its model; only OpenAI's ResNet-50 gives `clip_score_rn50_openai`.
"""

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel
from transformers.utils import logging as transformers_logging

from palindiff.evaluation.efficientnet import check_pixels
from palindiff.evaluation.intervals import bootstrap_interval
from palindiff.evaluation.results import Row
from palindiff.inference.defaults import CAPTIONS_AT_ONCE
from palindiff.models.strict_model import check_weights, no_safetensors, without_warnings

RN50 = "RN50-quickgelu"  # open_clip's name of the network as OpenAI trained it


class Clip(Protocol):
    """A CLIP that scores generated images."""

    metric: str  # name of the score
    name: str  # which model this is, with the beginning of its files' SHA-256 where there are any

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Shapes: (b, 3, H, W) uint8 -> (b, d) float32, unit length."""

    def embed_text(self, captions: Sequence[str]) -> Tensor:
        """Shapes: n captions -> (n, d) float32, unit length."""

    def num_cut(self, captions: Sequence[str]) -> int:
        """Number of captions that are longer than the text encoder reads; their ends are not scored."""


class TransformersClip(nn.Module):
    """Any `CLIPModel` folder of transformers: weights as safetensors, tokenizer, image processor.

    Raises: FileNotFoundError if a file is missing; ValueError if it is no CLIP, or weights are missing.
    """

    metric = "clip_score"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        _check_clip_folder(folder)
        with without_warnings(transformers_logging):
            try:
                loaded: Any = CLIPModel.from_pretrained(
                    folder, use_safetensors=True, local_files_only=True, output_loading_info=True
                )
                self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            except OSError as error:
                raise FileNotFoundError(
                    f"`{folder}` cannot be read ({' '.join(str(error).split())[:200]}). Expected a whole CLIP with "
                    "its tokenizer. Use the folder that `save_pretrained` wrote."
                ) from error
        model, info = loaded
        check_weights(f"`{folder}`", info["missing_keys"])
        self.model: Any = model
        self.processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        self.length = min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)
        self.name = f"{folder.resolve().name} ({files_sha256(folder)[:8]})"
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def embed_images(self, pixels: Tensor) -> Tensor:
        """Shapes: (b, 3, H, W) uint8 -> (b, d) float32, unit length."""
        x = processed(self.processor, pixels).to(self.model.device)
        return F.normalize(self.model.get_image_features(pixel_values=x).pooler_output.float(), dim=-1)

    @torch.no_grad()
    def embed_text(self, captions: Sequence[str]) -> Tensor:
        """Shapes: n captions -> (n, d) float32, unit length."""
        found = []
        for start in range(0, len(captions), CAPTIONS_AT_ONCE):
            part = list(captions[start : start + CAPTIONS_AT_ONCE])
            tokens = self.tokenizer(part, padding=True, truncation=True, max_length=self.length, return_tensors="pt")
            found.append(self.model.get_text_features(**tokens.to(self.model.device)).pooler_output.float())
        return F.normalize(torch.cat(found), dim=-1)

    def num_cut(self, captions: Sequence[str]) -> int:
        """Number of captions with more tokens than the text encoder has positions."""
        with without_warnings(transformers_logging):
            ids = self.tokenizer(list(captions), truncation=False)["input_ids"]
        return sum(len(each) > self.length for each in ids)


class OpenClipRN50(nn.Module):
    """OpenAI's CLIP ResNet-50 by open_clip, as in DiffDis, Table 3, whose weights open_clip downloads and keeps.

    Images are prepared by transformers' image processor, whose defaults are OpenAI's.

    Raises: ModuleNotFoundError if open_clip cannot be imported, which needs torchvision and ftfy.
    """

    metric = "clip_score_rn50_openai"
    name = "OpenAI RN50 (open_clip)"

    def __init__(self) -> None:
        super().__init__()
        try:
            open_clip = importlib.import_module("open_clip")
        except (ImportError, RuntimeError) as error:  # a torchvision that does not fit torch raises RuntimeError
            raise ModuleNotFoundError(
                f"open_clip cannot be imported ({error}), for CLIP-score with OpenAI's RN50. Expected open_clip_torch "
                "with the torchvision of this torch. Install both, or pass the folder of a transformers CLIP."
            ) from error
        self.model = open_clip.create_model(RN50, pretrained="openai", require_pretrained=True)
        self._finish(open_clip.get_tokenizer(RN50))

    def _finish(self, tokenizer: Any) -> None:
        self.tokenizer, self.processor = tokenizer, CLIPImageProcessor()
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def embed_images(self, pixels: Tensor) -> Tensor:
        """Shapes: (b, 3, H, W) uint8 -> (b, 1024) float32, unit length."""
        x = processed(self.processor, pixels).to(self.model.logit_scale.device)
        return F.normalize(self.model.encode_image(x).float(), dim=-1)

    @torch.no_grad()
    def embed_text(self, captions: Sequence[str]) -> Tensor:
        """Shapes: n captions -> (n, 1024) float32, unit length."""
        found = [
            self.model.encode_text(self.tokenizer(list(captions[start : start + CAPTIONS_AT_ONCE])).to(
                self.model.logit_scale.device)).float()
            for start in range(0, len(captions), CAPTIONS_AT_ONCE)
        ]  # fmt: skip
        return F.normalize(torch.cat(found), dim=-1)

    def num_cut(self, captions: Sequence[str]) -> int:
        """Number of captions with more tokens than the text encoder reads."""
        longest = self.tokenizer.context_length - 2  # beginning and end
        return sum(len(self.tokenizer.encode(caption)) > longest for caption in captions)


def processed(processor: CLIPImageProcessor, pixels: Tensor) -> Tensor:
    """Shapes: (b, 3, H, W) uint8 -> (b, 3, h, w) float32, as the CLIP was trained on."""
    check_pixels(pixels)
    images = [Image.fromarray(each.permute(1, 2, 0).cpu().numpy()) for each in pixels]  # (3, H, W) -> (H, W, 3)
    x: Tensor = processor(images, return_tensors="pt")["pixel_values"]
    return x


def clip_scores(e_image: Tensor, e_text: Tensor) -> Tensor:
    """max(100 cos, 0) of each image and its caption.

    Source:  Hessel et al. (EMNLP 2021), eq. 1, with the factor 100 of torchmetrics in place of 2.5.
    Shapes:  e_image, e_text (n, d) float -> (n,) float32 in [0, 100].
    Raises:  ValueError if shapes do not fit.
    Departs: captions are not prefixed with "A photo depicts", and negative cosines count as 0 one by one, where
             torchmetrics clamps the mean alone.
    """
    if e_image.shape != e_text.shape or e_image.ndim != 2:
        raise ValueError(
            f"`e_image` has shape {tuple(e_image.shape)} and `e_text` {tuple(e_text.shape)}. Expected the same "
            "(n, d). Pass one caption for each image."
        )
    return (100 * F.cosine_similarity(e_image.float(), e_text.float(), dim=-1)).clamp(min=0)


def clip_score_row(clip: Clip, e_image: Tensor, captions: Sequence[str]) -> Row:
    """Mean score with its bootstrap interval over images.

    Shapes: e_image (n, d) of generated images, in the order of their n captions.
    """
    scores = clip_scores(e_image.cpu(), clip.embed_text(captions).cpu())
    low, high = bootstrap_interval(scores)
    return {
        "metric": clip.metric, "value": float(scores.double().mean()), "ci_low": low, "ci_high": high,
        "n": len(scores), "clip": clip.name, "num_captions_cut": clip.num_cut(captions),
    }  # fmt: skip


def _check_clip_folder(folder: Path) -> None:
    """Refuse a folder that is no CLIP, or lacks what scoring needs."""
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"`{folder}` has no {name}. Expected a whole CLIP: model, tokenizer and image processor. "
                "Use the folder of a `CLIPModel` with all its files."
            )
    kind = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if kind != "clip":
        raise ValueError(f"`{folder}` holds a model of type `{kind}`. Expected `clip`. Use a `CLIPModel` folder.")
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(no_safetensors(folder, "model.safetensors"))


def files_sha256(folder: Path) -> str:
    """Hash weights, configs and tokenizer of a model's folder: all that decides what it computes.

    Raises: FileNotFoundError if there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"`{folder}` does not exist. Expected a model's folder. Train or copy it first.")
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".txt", ".safetensors"):
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
