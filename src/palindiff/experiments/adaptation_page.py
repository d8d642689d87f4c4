"""The report of `palindiff adapt` as one HTML file: before and after, samples side by side, cost, the next command.

Here: what the page is given, and rendering `adaptation_page.html`. Not here: measuring (`adaptation.py`).
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from PIL import Image

from palindiff.data.sources import DataConfig
from palindiff.experiments.demo_page import png_uri
from palindiff.pretrained.unidiff_folders import CLIP_FOLDER, STABLE_DIFFUSION_FOLDER

TEMPLATE = Path(__file__).with_name("adaptation_page.html")
METRICS = {  # name -> what the page calls it, whether it is a share, and what is better
    "text_retrieval_recall@1": ("image to text: recall@1", True, "higher"),
    "text_retrieval_recall@5": ("image to text: recall@5", True, "higher"),
    "text_retrieval_recall@10": ("image to text: recall@10", True, "higher"),
    "image_retrieval_recall@1": ("text to image: recall@1", True, "higher"),
    "image_retrieval_recall@5": ("text to image: recall@5", True, "higher"),
    "image_retrieval_recall@10": ("text to image: recall@10", True, "higher"),
    "kd_efflite0": ("distance of generated images to yours (KD-EffLite0)", False, "lower"),
    "effective_rank": ("dimensions that embeddings use (effective rank)", False, "higher: not collapsed"),
    "mean_cosine": ("mean cosine between two images", False, "lower: not collapsed"),
    "retained": ("zero-shot accuracy on --retain", True, "higher"),
}


class Sample(NamedTuple):
    """An image of each model for one caption, from the same noise."""

    caption: str
    before: Image.Image
    after: Image.Image


class Line(NamedTuple):
    """A row of the table."""

    name: str
    before: str
    after: str
    chance: str  # empty where it is not known
    better: str


class AdaptationReport(NamedTuple):
    """All that the page shows."""

    clip: str
    stable_diffusion: str
    data: DataConfig
    num_training: int
    num_validation: int
    reasons: Sequence[str]
    before: Mapping[str, float]
    after: Mapping[str, float]
    chance: Mapping[str, float]
    samples: Sequence[Sample]
    steps: int
    training_s: float
    elapsed_s: float
    missing: Sequence[str]  # what was not measured or says little, and what to do
    best_by: str | None
    best_step: int | None  # whose weights were kept; 0: those before training; None: the last ones
    folders: Sequence[str]
    output: Path
    has_validation: bool  # whether the held-out images are a split of their own

    @property
    def lines(self) -> list[Line]:
        """The numbers that were measured before and after."""
        return [
            Line(
                name, _shown(self.before[key], is_share), _shown(self.after[key], is_share),
                _shown(self.chance[key], is_share) if key in self.chance else "", better,
            )
            for key, (name, is_share, better) in METRICS.items()
            if key in self.before and key in self.after
        ]  # fmt: skip

    @property
    def commands(self) -> list[str]:
        """What to do with the result."""
        clip = shlex.quote(str(self.output / CLIP_FOLDER))
        generator = str(self.output / STABLE_DIFFUSION_FOLDER)
        code = (
            "from diffusers import StableDiffusionPipeline as P; "
            f"P.from_pretrained({generator!r})('a caption').images[0].save('generated.png')"
        )
        return [
            embed_command(self.data, self.output),
            f'palindiff rank embeddings --model {clip} --caption "a caption" --by caption',
            f"python -c {_quoted(code)}",
        ]


def embed_command(data: DataConfig, output: Path) -> str:
    """The command that embeds a catalogue with the adapted CLIP, in the squares that it was trained on."""
    options = "" if data.fit == "crop" else f" --fit {data.fit}"
    options += "" if data.on_bad == "refuse" else f" --on-bad {data.on_bad}"
    clip = shlex.quote(str(output / CLIP_FOLDER))
    return f"palindiff embed {shlex.quote(data.path)} --model {clip}{options} --output embeddings"


def adaptation_page(report: AdaptationReport) -> str:
    """Fill in the template; every text is escaped."""
    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters["png"] = png_uri
    return jinja.from_string(TEMPLATE.read_text(encoding="utf-8")).render(report=report)


def _quoted(code: str) -> str:
    """Quote code for a shell, readably where it holds nothing that a shell replaces between double quotes."""
    return shlex.quote(code) if set(code).intersection('"\\$`!\n') else f'"{code}"'


def _shown(value: float, is_share: bool) -> str:
    return f"{100 * value:.1f} %" if is_share else f"{value:.4g}"
