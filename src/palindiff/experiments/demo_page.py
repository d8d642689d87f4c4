"""The demo page as one HTML file: images and plots inside it; no script, font or image from elsewhere.

Here: rendering `demo_page.html`, a Jinja template, and what it is given. Not here: what is shown (`demo_sections.py`).
"""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image


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


def page(content: Mapping[str, object]) -> str:
    """Fill in the template; every text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["png"] = png_uri
    return environment.get_template("demo_page.html").render(content)


def png_uri(image: Image.Image) -> str:
    """Encode an image without loss as an address that holds it."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
