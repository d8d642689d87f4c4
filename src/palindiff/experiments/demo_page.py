"""The demo page as one HTML file: images and plots inside it; no script, font or image from elsewhere.

Here: HTML and its style. Not here: what the page shows (`demo_sections.py`).
"""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from palindiff.evaluation.results import Scalar

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c; }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd } p.note { color: #555 }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .7rem; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #bbb } td { border-bottom: 1px solid #eee } td.number { text-align: right }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: .8rem }
.sheet figure, .row figure { margin: 0; font-size: 12px; line-height: 1.25 }
.sheet img { width: 96px; height: 96px } .row { display: flex; gap: .6rem; flex-wrap: wrap }
.row img { width: 64px; height: 64px } img { image-rendering: auto; border: 1px solid #eee; background: white }
svg { max-width: 100% } .right { font-weight: 700; color: #047857 } .row figure { width: 70px }
"""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """Join sections (heading, HTML body) into a whole page."""
    body = "".join(f"<h2>{html.escape(name)}</h2>\n{content}\n" for name, content in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n{lead}\n{body}</body></html>\n"
    )


def note(text: str) -> str:
    """Write a paragraph of explanation."""
    return f'<p class="note">{html.escape(text)}</p>'


def heading(text: str) -> str:
    """Write a small heading within a section."""
    return f"<h3>{html.escape(text)}</h3>"


def img_tag(image: Image.Image, alt: str) -> str:
    """Embed an image as PNG; screen readers read `alt`."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def figures(
    images: Sequence[Image.Image],
    captions: Sequence[str],
    kind: str = "sheet",
    right: int | None = None,
    alts: Sequence[str] | None = None,
) -> str:
    """Show images with a caption below each, as a `sheet` that wraps or a `row`; number `right` is marked.

    `alts` describe the images where the captions do not.
    """
    cells = []
    for number, (image, caption, alt) in enumerate(zip(images, captions, alts or captions, strict=True)):
        figcaption = _marked("figcaption", html.escape(caption), number == right)
        cells.append(f"<figure>{img_tag(image, alt)}{figcaption}</figure>")
    return f'<div class="{kind}">{"".join(cells)}</div>'


def table(headings: Sequence[str], rows: Sequence[Sequence[Scalar]]) -> str:
    """Write a table. Cells: text is HTML already; floats are shares, shown in percent; integers as they are."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in headings)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def names(ranked: Sequence[tuple[str, float]], truth: str) -> str:
    """List ranked names with their scores; the right one is marked."""
    return "<br>".join(
        _marked("span", f"{html.escape(name)} <small>{score:.2f}</small>", name == truth) for name, score in ranked
    )


def _marked(tag: str, content: str, is_right: bool) -> str:
    """Mark the right answer by colour, weight and a sign, so that none of them is needed alone."""
    return f'<{tag} class="right">✓ {content}</{tag}>' if is_right else f"<{tag}>{content}</{tag}>"


def _cell(value: Scalar) -> str:
    if isinstance(value, str):
        return f"<td>{value}</td>"
    return f'<td class="number">{f"{100 * value:.1f} %" if isinstance(value, float) else value}</td>'
