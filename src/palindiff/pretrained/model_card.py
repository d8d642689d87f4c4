"""The model card: README.md of a checkpoint folder, with the metadata header that the Hub reads.

Here: writing a card from known facts, through the Jinja template `model_card.md.jinja`, and reading another card's
licence. Unknown facts are called unknown. Not here: the result files that rows come from (`evaluation/results.py`),
uploading (`saving.py`).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined
from pydantic import AfterValidator, BaseModel

from palindiff.atomic import atomic_text

CARD_NAME = "README.md"
TAGS = ("palindiff", "diffdis", "zero-shot-image-classification", "image-text-retrieval")
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
ANY_FOLDER = "path/to/this/folder"
EXPORT_NOTICE = (
    "> This folder is stock Stable Diffusion: it generates. What the card says of classification and retrieval "
    "holds for the checkpoint that it was exported from."
)
HEAD = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)

Scalar = str | bool | int | float | None


def is_hub_name(name: str) -> bool:
    """Return whether a name is OWNER/NAME, as on the Hub, and not a path in the working folder."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None and not Path(name).exists()


def public_name(source: str) -> str:
    """Shorten a path to its last part, so that cards reveal no folder of the machine; a Hub name stays."""
    return source if is_hub_name(source) else Path(source).resolve().name or source


def _no_path(name: str) -> str:
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or "\\" in name:
        raise ValueError("Expected OWNER/NAME or one word, no path: cards are published. Use `public_name`.")
    return name


PublicName = Annotated[str, AfterValidator(_no_path)]


class License(BaseModel, frozen=True, extra="forbid"):
    """A licence as the header of a card states it."""

    license: str  # the Hub's identifier: "apache-2.0", "creativeml-openrail-m", "other"
    license_name: str | None = None  # with "other"
    license_link: str | None = None  # with "other"

    @property
    def title(self) -> str:
        """What people call it."""
        return self.license_name or self.license if self.license == "other" else self.license


UNKNOWN_LICENSE = License(license="other", license_name="unknown")


class BaseWeights(BaseModel, frozen=True, extra="forbid"):
    """Weights that a checkpoint was made from."""

    name: PublicName
    part: str  # "U-Net and VAE", "text encoder"
    license: License | None = None  # None: not known


class CardFacts(BaseModel, frozen=True, extra="forbid"):
    """All that a card states about one checkpoint."""

    name: PublicName  # the heading; a Hub name is also what the examples load
    bases: tuple[BaseWeights, ...] = ()  # none: every weight is new
    license: License | None = None  # of these weights; None: that of the bases if they agree, otherwise unknown
    datasets: tuple[PublicName, ...] = ()
    language: tuple[str, ...] = ()  # of the captions, ISO 639-1
    parameters: Mapping[str, int] = {}  # of each part
    training: Mapping[str, str | int | float] = {}  # the recipe in the author's words: what, value
    results: tuple[Mapping[str, Scalar], ...] = ()  # rows of a result file; none: not measured
    measured_by: str | None = None  # the command that wrote them
    limits: tuple[str, ...] = ()  # sentences

    @property
    def stated_license(self) -> License:
        """The licence of the header: the given one, the one that all bases share, or unknown."""
        of_bases = {base.license for base in self.bases}
        return self.license or (of_bases.pop() if len(of_bases) == 1 else None) or UNKNOWN_LICENSE


def card_text(facts: CardFacts) -> str:
    """Write a card: the header in YAML, then the same and more for readers."""
    head = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=list(TAGS),
        base_model=[base.name for base in facts.bases if is_hub_name(base.name)] or None,
        datasets=[name for name in facts.datasets if is_hub_name(name)] or None,
        language=list(facts.language) or None,
        **facts.stated_license.model_dump(exclude_none=True),
    )
    jinja = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    jinja.filters["cell"] = _cell
    return jinja.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        head=head.to_yaml(),
        facts=facts,
        where=facts.name if is_hub_name(facts.name) else ANY_FOLDER,
        columns=list(dict.fromkeys(name for row in facts.results for name in row)),
    )


def write_card(folder: Path, facts: CardFacts) -> Path:
    """Write the card of a checkpoint folder; an older one is replaced."""
    atomic_text(folder / CARD_NAME, card_text(facts))
    return folder / CARD_NAME


def read_card(folder: Path) -> str | None:
    """Read the text of a folder's card; None if it has none."""
    path = folder / CARD_NAME
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def read_base_license(folder: Path) -> License | None:
    """Read what the head of a folder's card says of its licence; None if it says nothing that can be read.

    A part of a pipeline's folder has the card of the whole.
    """
    has_index = (folder.parent / "model_index.json").is_file()
    head = _split(read_card(folder) or (has_index and read_card(folder.parent)) or "")[0]
    found = {name: head[name] for name in License.model_fields if isinstance(head.get(name), str)}
    return License.model_validate(found) if "license" in found else None


def stable_diffusion_card(card: str) -> str:
    """Rewrite a card for the same folder without the parts that name: its licence and its history still hold."""
    head, body = _split(card)
    head["tags"] = [tag for tag in head.get("tags") or () if tag not in TAGS]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n{EXPORT_NOTICE}\n\n{body.lstrip()}"


def card_head(card: str) -> str:
    """Cut out a card's head, without its fences; empty if it has none."""
    found = HEAD.match(card)
    return found[1] if found else ""


def _split(card: str) -> tuple[dict[str, Any], str]:
    """Head and body of a card; an empty head where it cannot be read."""
    try:
        head = yaml.safe_load(card_head(card))
    except yaml.YAMLError:
        head = None
    return head if isinstance(head, dict) else {}, HEAD.sub("", card, count=1)


def _cell(value: Scalar) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
