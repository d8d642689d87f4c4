"""From a Stable Diffusion 1.x or 2.x and the CLIP its text encoder was taken from to the parts of a palindiff pipeline.

Here: loading and putting the parts together. Not here: what a base must be (`base_layout.py`), single-file checkpoints
(`single_file.py`), telling whether two towers are one (`models/with_clip_projection.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import try_to_load_from_cache

from palindiff.models.query_stream import QueryStream, QueryStreamConfig
from palindiff.models.strict_model import without_warnings
from palindiff.models.text_diffusion import text_diffusion_scheduler
from palindiff.pretrained.checkpoint_folder import check_whole
from palindiff.pretrained.clip_projection import with_clip_projection
from palindiff.pretrained.layout import PICKLE_ENDINGS, WEIGHT_FILES, check_layout, weights_variant
from palindiff.pretrained.model_card import (
    CARD_NAME,
    BaseWeights,
    CardFacts,
    License,
    card_text,
    is_hub_name,
    public_name,
    read_base_license,
)
from palindiff.pretrained.saving import HubMixin
from palindiff.pretrained.single_file import load_single_file
from palindiff.pretrained.text_encoders import TextEncoder, load_text_encoder, load_text_tower

NO_CHECKER = {"safety_checker": None, "requires_safety_checker": False}  # what may be said of a file: it holds none


def stable_diffusion_parts(
    source: str | Path,
    text: str | Path,
    query_stream: QueryStreamConfig,
    seed: int = 0,
    variant: str | None = None,
    config: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Load a base and its CLIP, and draw a new query stream: the components of a `PalindiffPipeline`.

    `source` is a folder in diffusers' layout, a Hub name, or a single .safetensors file, which `config`, a folder in
    diffusers' layout without weights, may describe. `text` is the CLIP's folder or Hub name; what is compared with the
    base's own tower. Further options go to `StableDiffusionPipeline.from_pretrained`; without `dtype`, all is float32.

    Source: DiffDis §4.1, which starts from Stable Diffusion v1-1; decisions rows 15 and 22.
    Raises: FileNotFoundError or ValueError, in a sentence, for all that cannot work.
    """
    clip = load_text_tower(str(text))
    base, tower = load_base(source, clip, variant, config, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stream = new_stream(base, tower, query_stream)
    with without_warnings():  # of a change of type, which nothing in the stream is exempt from
        stream.to(base.unet.dtype)
    num_steps: int = base.scheduler.config.num_train_timesteps
    return base.components | {
        "query_stream": stream.eval(),
        "query_scheduler": text_diffusion_scheduler(num_steps),
        "requires_safety_checker": base.config.requires_safety_checker,
    }


def start_card(source: str | Path, text: str | Path) -> str:
    """Write the card of a checkpoint that nothing was trained of yet."""
    name, license_ = public_name(str(source)), base_license(source)
    bases = (
        BaseWeights(name=name, part="U-Net, VAE and text encoder", license=license_),
        BaseWeights(name=public_name(str(text)), part="Text projection", license=base_license(text)),
    )
    limits = ("The query stream is new: it names nothing before it is trained.",)
    return card_text(CardFacts(name=name, bases=bases, license=license_, limits=limits))


def base_license(source: str | Path) -> License | None:
    """Read a base's licence from the card in or beside it, or in the Hub's cache; None if nothing there tells it."""
    path = Path(source)
    if path.exists():
        return read_base_license(path if path.is_dir() else path.parent)
    cached = try_to_load_from_cache(str(source), CARD_NAME) if is_hub_name(str(source)) else None
    return read_base_license(Path(cached).parent) if isinstance(cached, str) else None


def new_stream(base: StableDiffusionPipeline, tower: TextEncoder, config: QueryStreamConfig) -> QueryStream:
    """Draw a new query stream for a base and the completed tower of its captions."""
    assert tower.projection is not None, "a completed tower has CLIP's projection"
    d_e = len(tower.projection)
    return QueryStream.for_unet(base.unet, d_e, config, "clip", tower.projection, tower.tail)


def load_base(
    source: str | Path, clip: TextEncoder, variant: str | None = None, config: str | Path | None = None, **options: Any
) -> tuple[StableDiffusionPipeline, TextEncoder]:
    """Load a base, and complete its tower from the CLIP that it was taken from.

    Raises: FileNotFoundError or ValueError, in a sentence, for all that cannot work.
    """
    dtype = options.pop("dtype", None) or options.pop("torch_dtype", None)
    options["dtype"] = dtype or torch.float32  # without one, transformers' parts would take the type of their files
    if not Path(source).is_dir() and Path(source).suffix in (*PICKLE_ENDINGS, ".safetensors"):
        _check_file(Path(source), variant, options)
        return load_single_file(Path(source), clip, config, options["dtype"])
    folder = find_base(source, variant, **options)
    check_layout(folder, str(source))
    if config is not None:
        raise ValueError(
            f"A config folder is given beside `{source}`, which has configs of its own. Expected one beside a "
            ".safetensors file alone. Leave --config, or `config=`, out."
        )
    own_variant = {name: weights_variant(folder, name, variant) for name in WEIGHT_FILES}
    text_encoder: Any = load_text_encoder(folder / "text_encoder", own_variant["text_encoder"])
    given = options | {"use_safetensors": True, "variant": variant, "text_encoder": text_encoder}
    base = StableDiffusionPipeline.from_pretrained(folder, **given)
    check_whole(base.components)
    tower = with_clip_projection(text_encoder, base.tokenizer, str(source), clip)
    text_encoder.to(base.unet.dtype)
    return base, tower


def _check_file(path: Path, variant: str | None, options: Mapping[str, Any]) -> None:
    if path.suffix in PICKLE_ENDINGS:
        raise ValueError(
            f"`{path}` is a pickle, which runs code when opened and is never read. Expected a .safetensors file or "
            "a folder in diffusers' layout. Get the model in one of these forms."
        )
    if variant is not None:
        raise ValueError(
            f"The variant {variant} is asked of `{path}`, and one file holds its weights once. Expected a variant of "
            "a folder alone. Leave --variant, or `variant=`, out."
        )
    known = NO_CHECKER | {"dtype": options["dtype"]}
    unknown = [name for name, value in options.items() if name not in known or value != known[name]]
    if unknown or not isinstance(options["dtype"], torch.dtype):
        told = f"`{'` and `'.join(unknown)}`" if unknown else f"the type {options['dtype']!r}"
        raise ValueError(
            f"`{path}` was to be loaded with {told}. Expected one torch type as `dtype`, and no option besides: a "
            "file holds U-Net, VAE and text encoder alone. Leave it out, and change the pipeline that you get."
        )


def find_base(source: str | Path, variant: str | None = None, **options: Any) -> Path:
    """Find a base's folder, downloading what a Hub name stands for.

    Raises: FileNotFoundError if it is no folder and the Hub and its cache give nothing.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        given = options | {"variant": variant, "use_safetensors": True}
        with without_warnings():
            return Path(HubMixin.download(str(source), **given))
    except (OSError, ValueError) as missing:
        raise FileNotFoundError(
            f"No Stable Diffusion `{source}`: it is no folder, and neither the Hub nor its cache on this machine gave "
            "it as safetensors. Expected a folder in diffusers' layout, a .safetensors file, or a Hub name. Check the "
            "name, the connection, and --variant fp16 if it has no other weights."
        ) from missing
