"""The demo page as one HTML file: images and plots inside it; no script, font or image from elsewhere.

Here: rendering `demo_page.html`, a Jinja template, and what it is given. Not here: what is shown (`demo_sections.py`).
"""

import base64
import io
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from PIL import Image

TEMPLATE = Path(__file__).with_name("demo_page.html")


class Figure(NamedTuple):
    """An image with its caption; `alt` describes it where the caption does not."""

    image: Image.Image
    caption: str
    alt: str = ""
    is_right: bool = False


class RankedName(NamedTuple):
    """A name with its score, and whether it is the right one."""

    name: str
    score: float
    is_right: bool


def page(**content: object) -> str:
    """Fill in the template; every text is escaped."""
    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters["png"] = png_uri
    return jinja.from_string(TEMPLATE.read_text(encoding="utf-8")).render(content)


def png_uri(image: Image.Image) -> str:
    """Encode an image without loss as an address that holds it."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
