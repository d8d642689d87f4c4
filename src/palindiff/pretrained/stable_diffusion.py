"""The parts of a palindiff pipeline from a Stable Diffusion 1.x or 2.x and the CLIP of its text encoder.

Here: loading the parts, or building them from configs alone. Not here: what a base must be (`layout.py`), single-file
checkpoints (`single_file.py`), comparing two text encoders (`clip_projection.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import try_to_load_from_cache

from palindiff.models.query_stream import QueryStream, QueryStreamConfig
from palindiff.models.strict_model import GET_ANOTHER, PICKLE_ENDINGS, check_finite, without_warnings
from palindiff.models.text_diffusion import QuerySchedulerConfig, text_diffusion_scheduler
from palindiff.models.text_encoder import TextEncoder
from palindiff.pretrained import model_card
from palindiff.pretrained.clip_projection import with_clip_projection
from palindiff.pretrained.hub import STABLE_DIFFUSION_1, find_base_configs, no_such
from palindiff.pretrained.layout import INDEX_NAME, check_layout, check_whole, is_palindiff, read_json, weights_variant
from palindiff.pretrained.saving import HubMixin
from palindiff.pretrained.single_file import load_single_file, scheduler_of
from palindiff.pretrained.text_encoders import blank_tokenizer, load_text_encoder, load_text_model

NO_CHECKER = {"safety_checker": None, "requires_safety_checker": False}  # allowed for a file, which holds none


def stable_diffusion_parts(
    source: str | Path,
    text: str | Path,
    query_stream: QueryStreamConfig,
    query_scheduler: QuerySchedulerConfig = QuerySchedulerConfig(),  # noqa: B008  # frozen
    seed: int = 0,
    variant: str | None = None,
    config: str | Path | None = None,
    with_weights: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Load a base and its CLIP, and draw a new query stream: the components of a `PalindiffPipeline`.

    `source` is a folder in diffusers' layout, a Hub name, or a single .safetensors file, which `config`, a folder in
    diffusers' layout without weights, may describe. `text` is the folder or Hub name of the CLIP, which is compared
    with the base's own text encoder. Further options go to `StableDiffusionPipeline.from_pretrained`; without `dtype`,
    all is float32. Without weights, the parts are built from configs alone, with random weights; Stable Diffusion v1-1
    and its CLIP then need no file.

    Source: DiffDis §4.1, which starts from Stable Diffusion v1-1; decisions rows 15 and 22.
    Raises: FileNotFoundError or ValueError, in a sentence, for all that cannot work.
    """
    clip = load_text_encoder(str(text), with_weights=with_weights)
    if with_weights:
        base, encoder = load_base(source, clip, variant, config, **options)
        check_finite({"text projection": encoder.projection}, GET_ANOTHER)
    else:
        base, encoder = build_base(source, clip, config)
    assert encoder.projection is not None, "a base's text encoder has been completed with CLIP's projection"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stream = QueryStream.for_unet(base.unet, encoder.d_e, query_stream, "clip", encoder.projection)
    if stream.dtype != base.unet.dtype:  # a fake tensor cannot be moved, not even to its own dtype
        with without_warnings():  # of a change of dtype, from which nothing in the stream is exempt
            stream.to(base.unet.dtype)
    num_steps: int = base.scheduler.config.num_train_timesteps
    return base.components | {
        "query_stream": stream.eval(),
        "query_scheduler": text_diffusion_scheduler(num_steps, query_scheduler),
        "requires_safety_checker": base.config.requires_safety_checker,
    }


def parts_from_configs(folder: Path) -> dict[str, Any]:
    """Build the parts of a Stable Diffusion or palindiff folder with random weights, from its configs alone.

    Raises: FileNotFoundError or ValueError if a config is missing or damaged.
    """
    index = read_json(folder, INDEX_NAME)
    parts: dict[str, Any] = {"scheduler": scheduler_of(folder)}
    for name in ("unet", "vae"):
        config = read_json(folder, f"{name}/config.json")
        parts[name] = getattr(diffusers, index[name][1]).from_config(config).eval()
    parts["text_encoder"] = load_text_model(folder / "text_encoder", with_weights=False)
    parts["tokenizer"] = blank_tokenizer(folder / "text_encoder", parts["text_encoder"])
    if "query_stream" in index:
        parts["query_stream"] = QueryStream.from_config(QueryStream.load_config(folder / "query_stream")).eval()
        query_scheduler = getattr(diffusers, index["query_scheduler"][1])
        parts["query_scheduler"] = query_scheduler.from_pretrained(folder, subfolder="query_scheduler")
    return parts


def build_base(
    source: str | Path, clip: TextEncoder, config: str | Path | None = None
) -> tuple[StableDiffusionPipeline, TextEncoder]:
    """Build what `load_base` loads from configs alone; a single file is taken for Stable Diffusion 1.x or a `config`.

    Raises: FileNotFoundError or ValueError if a config is missing or cannot work.
    """
    if Path(source).suffix == ".safetensors" and not Path(source).is_dir():
        folder = Path(config or STABLE_DIFFUSION_1)
    else:
        folder = find_base_configs(str(source))
    if folder != STABLE_DIFFUSION_1:
        check_layout(folder, str(source))
    base = StableDiffusionPipeline(
        **parts_from_configs(folder), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    return base, with_clip_projection(base.text_encoder, base.tokenizer, str(source), clip, with_weights=False)


def load_generator(
    source: str | Path, variant: str | None = None, with_weights: bool = True
) -> tuple[UNet2DConditionModel, AutoencoderKL, SchedulerMixin]:
    """Load the U-Net, VAE and scheduler of a Stable Diffusion or palindiff folder, or Hub name, in float32.

    Without weights, they are built from configs alone, with random weights.

    Raises: FileNotFoundError, OSError or ValueError, in a sentence, for all that cannot work.
    """
    folder = find_generator(source, variant, with_weights)
    if not with_weights:
        built = parts_from_configs(folder)
        return built["unet"], built["vae"], built["scheduler"]
    parts: dict[str, Any] = {}
    for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        weights_variant(folder / name, "diffusion_pytorch_model", variant)
        parts[name] = kind.from_pretrained(
            folder, subfolder=name, variant=variant, use_safetensors=True, torch_dtype=torch.float32
        ).eval()
    check_finite(parts, GET_ANOTHER)
    return parts["unet"], parts["vae"], scheduler_of(folder)


def find_generator(source: str | Path, variant: str | None = None, with_weights: bool = True) -> Path:
    """Find a Stable Diffusion or palindiff folder; another kind of model is refused before weights are downloaded.

    Raises: FileNotFoundError or ValueError, in a sentence.
    """
    if Path(source).is_file():
        raise ValueError(
            f"`{source}` is a single file. Expected a folder in diffusers' layout, or a Hub name. Convert it with "
            "`StableDiffusionPipeline.from_single_file` and `save_pretrained` of diffusers."
        )
    configs = find_base_configs(str(source))
    _check_generator(configs, str(source))
    if not with_weights:
        return configs
    folder = find_base(source, variant)
    _check_generator(folder, str(source))
    return folder


def _check_generator(folder: Path, name: str) -> None:
    if folder != STABLE_DIFFUSION_1 and not is_palindiff(folder):
        check_layout(folder, name)


def num_text_layers(folder: Path) -> int | None:
    """The number of layers of a Stable Diffusion's own text encoder; None if its config does not say."""
    config: dict[str, Any] = read_json(folder, "text_encoder/config.json", default={})
    return config.get("num_hidden_layers")


def start_card(source: str | Path, text: str | Path) -> str:
    """Write the card of a checkpoint before any training."""
    name, license_ = model_card.public_name(str(source)), base_license(source)
    bases = (
        model_card.BaseWeights(name=name, part="U-Net, VAE and text encoder", license=license_),
        model_card.BaseWeights(
            name=model_card.public_name(str(text)), part="Text projection", license=base_license(text)
        ),
    )
    limits = ("The query stream is new: it cannot name images before it is trained.",)
    return model_card.card_text(model_card.CardFacts(name=name, bases=bases, license=license_, limits=limits))


def base_license(source: str | Path) -> model_card.License | None:
    """Read a base's licence from the card in or next to it, or in the Hub's cache; None if none is stated."""
    path = Path(source)
    if path.exists():
        return model_card.read_base_license(path if path.is_dir() else path.parent)
    cached = try_to_load_from_cache(str(source), model_card.CARD_NAME) if model_card.is_hub_name(str(source)) else None
    return model_card.read_base_license(Path(cached).parent) if isinstance(cached, str) else None


def load_base(
    source: str | Path, clip: TextEncoder, variant: str | None = None, config: str | Path | None = None, **options: Any
) -> tuple[StableDiffusionPipeline, TextEncoder]:
    """Load a base, and complete its text encoder from the CLIP that it was taken from.

    Raises: FileNotFoundError or ValueError, in a sentence, for all that cannot work.
    """
    dtype = options.pop("dtype", None) or options.pop("torch_dtype", None)
    options["dtype"] = dtype or torch.float32  # without one, transformers' parts would take the type of their files
    if not Path(source).is_dir() and Path(source).suffix in (*PICKLE_ENDINGS, ".safetensors"):
        _check_file(Path(source), options if variant is None else options | {"variant": variant})
        return load_single_file(Path(source), clip, config, options["dtype"])
    folder = find_base(source, variant, **options)
    check_layout(folder, str(source))
    if config is not None:
        raise ValueError(
            f"A config folder is given with `{source}`, which has configs of its own. Expected one for a "
            ".safetensors file only. Leave --config, or `config=`, out."
        )
    for part in ("unet", "vae"):
        weights_variant(folder / part, "diffusion_pytorch_model", variant)
    text_model: Any = load_text_model(folder / "text_encoder", variant)
    given = options | {"use_safetensors": True, "variant": variant, "text_encoder": text_model}
    base = StableDiffusionPipeline.from_pretrained(folder, **given)
    check_whole(base.components)
    check_finite(base.components, GET_ANOTHER)
    encoder = with_clip_projection(text_model, base.tokenizer, str(source), clip)
    text_model.to(base.unet.dtype)
    return base, encoder


def _check_file(path: Path, options: Mapping[str, Any]) -> None:
    if path.suffix in PICKLE_ENDINGS:
        raise ValueError(
            f"`{path}` is a pickle, which runs code when opened and is never read. Expected a .safetensors file or "
            "a folder in diffusers' layout. Get the model in one of these forms."
        )
    known = NO_CHECKER | {"dtype": options["dtype"]}
    unknown = [name for name, value in options.items() if name not in known or value != known[name]]
    if unknown or not isinstance(options["dtype"], torch.dtype):
        found = f"`{'` and `'.join(unknown)}`" if unknown else f"the type {options['dtype']!r}"
        raise ValueError(
            f"`{path}` was to be loaded with {found}. Expected one torch type as `dtype`, and no other option: a "
            "file holds U-Net, VAE and text encoder alone, in one variant. Remove it (`variant` is also --variant), "
            "and change the pipeline after loading."
        )


def find_base(source: str | Path, variant: str | None = None, **options: Any) -> Path:
    """Find a base's folder, downloading what a Hub name stands for.

    Raises: FileNotFoundError if it is not a folder and the Hub and its cache give nothing.
    """
    if Path(source).is_dir():
        return Path(source)
    options |= {"variant": variant, "use_safetensors": True}
    expected = "a folder, a .safetensors file, or a Hub name (with `--variant fp16` if it has no other safetensors)"
    with no_such("Stable Diffusion", str(source), expected), without_warnings():
        return Path(HubMixin.download(str(source), **options))
