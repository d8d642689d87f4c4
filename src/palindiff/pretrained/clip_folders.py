"""Contrastive models on disk: a stock transformers CLIP, or an image encoder beside another text encoder.

A CLIP text encoder makes a folder that `CLIPModel.from_pretrained` loads. With any other, the folder holds
`image_encoder/`, `text_encoder/`, `tokenizer/` and `contrastive.json`. Here: reading and writing both, from
safetensors alone, or building one from configs. Not here: encoding (`inference/clip_model.py`).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from palindiff.models.image_encoder import ImageEncoder
from palindiff.models.logit_scale import bounded
from palindiff.models.strict_model import check_finite
from palindiff.models.text_encoder import Pooling, TextEncoder
from palindiff.pretrained.hub import PAPER_CLIP, STABLE_DIFFUSION_1, TEXT_CONFIGS, no_such
from palindiff.pretrained.layout import read_json, result_of
from palindiff.pretrained.model_card import is_hub_name
from palindiff.pretrained.saving import make_portable
from palindiff.pretrained.text_encoders import (
    blank_tokenizer,
    load_text_encoder,
    load_text_model,
    load_tokenizer,
    load_weights,
)

CONTRASTIVE_FILE = "contrastive.json"
PROCESSOR_FILE = "preprocessor_config.json"
CLIP_FILES = ["*.json", "*.txt", "*.safetensors"]  # downloaded of a CLIP: nothing that is executed
_OTHER_OF_CLIP = ("text_model.", "text_projection.", "logit_scale")
_SCALE = "logit_scale"
_EXPECTED = (
    "a CLIP as transformers saves it, or what `palindiff train` writes with `objective.name: contrastive`. Use a "
    "folder of one of these."
)


class ContrastiveSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What the folder of a contrastive model with another text encoder says of it."""

    pooling: Pooling
    log_logit_scale: float


@dataclass(frozen=True)
class ClipParts:
    """The encoders of a contrastive model, and the log of κ, which multiplies a cosine."""

    image_encoder: ImageEncoder
    text_encoder: TextEncoder
    log_logit_scale: Tensor  # () float32

    def __post_init__(self) -> None:
        """Refuse encoders whose embeddings differ in width.

        Raises: ValueError.
        """
        d, d_e = self.image_encoder.model.config.projection_dim, self.text_encoder.d_e
        if d != d_e:
            raise ValueError(
                f"The image encoder makes embeddings of width {d}, the text encoder `{self.text_encoder.name}` of "
                f"width {d_e}. Expected one width. Use two encoders that were trained together."
            )


def is_clip(folder: Path) -> bool:
    """Whether a folder holds a whole CLIP of transformers, by its config."""
    return read_json(folder, "config.json", default={}).get("model_type") == "clip"


def download_clip(name: str) -> Path | None:
    """Find the folder of a CLIP by its Hub name, downloaded now or earlier; None if the Hub gives no CLIP of it."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        config = Path(hf_hub_download(name, "config.json"))
    except (HfHubHTTPError, LocalEntryNotFoundError):
        return None
    return Path(snapshot_download(name, allow_patterns=CLIP_FILES)) if is_clip(config.parent) else None


def find_clip(source: str) -> Path:
    """Resolve the folder of a contrastive model, that of a run, or a Hub name.

    Raises: FileNotFoundError if it is a Hub name of which the Hub gives no CLIP.
    """
    if not is_hub_name(source):
        return Path(result_of(source, "clip", "config.json"))
    if (folder := download_clip(source)) is None:
        raise FileNotFoundError(
            f"`{source}` is not a folder, and the Hub gave no CLIP of that name. Expected {_EXPECTED} "
            "Or check the name."
        )
    return folder


def find_clip_configs(source: str) -> Path:
    """Resolve the folder of a contrastive model's configs, as `find_clip` does of weights too.

    Those of OpenAI's ViT-L/14, the CLIP of Stable Diffusion 1.x, are known without a download.

    Raises: FileNotFoundError if there are none.
    """
    if not is_hub_name(source):
        return Path(result_of(source, "clip", "config.json"))
    if source == PAPER_CLIP:
        return STABLE_DIFFUSION_1 / "clip"
    from huggingface_hub import snapshot_download

    with no_such("configs of the CLIP", source, f"a folder, a Hub name, or `{PAPER_CLIP}` (known without a download)"):
        return Path(snapshot_download(source, allow_patterns=[*TEXT_CONFIGS, PROCESSOR_FILE]))


def load_clip(folder: Path, with_weights: bool = True) -> ClipParts:
    """Load a contrastive model in float32 and eval mode; without weights, build it from configs, at random.

    Raises: FileNotFoundError, OSError or ValueError if the folder is of another kind, or a part is missing or damaged.
    """
    if (folder / CONTRASTIVE_FILE).is_file():
        return _load_parts(folder, with_weights)
    if not is_clip(folder):
        kind = read_json(folder, "config.json", expected=_EXPECTED).get("model_type")
        raise ValueError(f"`{folder}` holds a `{kind}`. Expected {_EXPECTED}")
    text_encoder = load_text_encoder(str(folder), with_weights=with_weights)
    text_encoder.check()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    vision: CLIPVisionConfig = config.vision_config
    vision.projection_dim = config.projection_dim  # the vision part's own is often missing or stale
    image_encoder = _load_image_encoder(folder, vision, with_weights)
    return ClipParts(image_encoder, text_encoder, _read_scale(folder) if with_weights else torch.zeros(()))


def save_clip(parts: ClipParts, folder: Path) -> None:
    """Write a contrastive model into a folder: stock CLIP if its text encoder is CLIP's.

    Raises: ValueError if a weight is not finite.
    """
    image, text = parts.image_encoder, parts.text_encoder
    check_finite({"image encoder": image, "text encoder": text}, "Train again, with a smaller learning rate.")
    if text.pooling == "clip":
        _stock_clip(parts).save_pretrained(folder)
        text.tokenizer.save_pretrained(folder)
        _processor(image).save_pretrained(folder)
    else:
        settings = ContrastiveSettings(pooling=text.pooling, log_logit_scale=float(parts.log_logit_scale.detach()))
        image.model.save_pretrained(folder / "image_encoder")
        _processor(image).save_pretrained(folder / "image_encoder")
        text.model.save_pretrained(folder / "text_encoder")
        text.tokenizer.save_pretrained(folder / "tokenizer")
        (folder / CONTRASTIVE_FILE).write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")
    make_portable(folder)


def _load_parts(folder: Path, with_weights: bool) -> ClipParts:
    file = folder / CONTRASTIVE_FILE
    try:
        settings = ContrastiveSettings.model_validate(read_json(folder, CONTRASTIVE_FILE))
    except ValidationError as error:
        problem = error.errors()[0]
        raise ValueError(
            f"`{file}` has a problem at `{'.'.join(map(str, problem['loc']))}`: {problem['msg']}. Expected what "
            "`palindiff train` writes. Copy the folder again."
        ) from error
    for part in ("image_encoder", "text_encoder", "tokenizer"):
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"`{folder}` has no {part}/. Expected {_EXPECTED}")
    text_model = load_text_model(folder / "text_encoder", with_weights=with_weights).requires_grad_(False)
    load = load_tokenizer if with_weights else blank_tokenizer
    tokenizer = load(folder / "tokenizer", text_model)
    text_encoder = TextEncoder(text_model, tokenizer, settings.pooling, name=str(folder))
    text_encoder.check()
    read_json(folder / "image_encoder", "config.json", expected=_EXPECTED)
    vision = CLIPVisionConfig.from_pretrained(folder / "image_encoder")
    image_encoder = _load_image_encoder(folder / "image_encoder", vision, with_weights)
    return ClipParts(image_encoder, text_encoder, torch.tensor(settings.log_logit_scale))


def _load_image_encoder(folder: Path, config: CLIPVisionConfig, with_weights: bool) -> ImageEncoder:
    """Load the image half of a CLIP, with the normalisation that its image processor states, else CLIP's own."""
    model, missing = load_weights(
        CLIPVisionModelWithProjection, folder, config, None, with_weights, _OTHER_OF_CLIP, part="image encoder"
    )
    assert not missing, "every missing weight of an image encoder has been refused"
    processor = read_json(folder, PROCESSOR_FILE, default={})
    mean, deviation = processor.get("image_mean", OPENAI_CLIP_MEAN), processor.get("image_std", OPENAI_CLIP_STD)
    return ImageEncoder(model.requires_grad_(False), mean, deviation).eval()


def _read_scale(folder: Path) -> Tensor:
    """Read a CLIP's `logit_scale`, the log of κ, without the other weights.

    Raises: ValueError if the weights have none.
    """
    index = read_json(folder, "model.safetensors.index.json", default={}).get("weight_map", {})
    with safe_open(folder / index.get(_SCALE, "model.safetensors"), framework="pt") as weights:
        if _SCALE not in weights.keys():  # noqa: SIM118  # it is no dict
            raise ValueError(f"The weights of `{folder}` have no `{_SCALE}`. Expected {_EXPECTED}")
        scale: Tensor = weights.get_tensor(_SCALE)
    return bounded(scale.reshape(()))


def _stock_clip(parts: ClipParts) -> CLIPModel:
    """Put the parts into transformers' own class; no weight is copied."""
    text, image = parts.text_encoder, parts.image_encoder
    assert text.projection is not None, "CLIP's text encoder has a projection"
    d = text.d_e
    text_config, vision_config = (
        {name: value for name, value in part.config.to_dict().items() if not name.startswith("_")}  # without its path
        | {"projection_dim": d}
        for part in (text.model, image.model)
    )
    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=d))
    clip.text_model, clip.vision_model = text.model, image.model.vision_model
    clip.visual_projection.weight = image.model.visual_projection.weight
    clip.text_projection.weight = nn.Parameter(text.projection.weight.detach())
    clip.logit_scale = nn.Parameter(parts.log_logit_scale.detach())
    return clip


def _processor(image_encoder: ImageEncoder) -> CLIPImageProcessorPil:
    side = image_encoder.image_size_px
    return CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=image_encoder.mean.flatten().tolist(),
        image_std=image_encoder.deviation.flatten().tolist(),
    )
