"""The demo page as one HTML file: images inside it, no script, no font or image from elsewhere.

Here: how things look. Not here: what is shown (`showing.py`).
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

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
.right { font-weight: 700; color: #047857 } .row figure { width: 70px }
"""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """Join sections (heading, HTML body) into a whole page."""
    body = "".join(f"<h2>{html.escape(heading)}</h2>\n{content}\n" for heading, content in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n{lead}\n{body}</body></html>\n"
    )


def note(text: str) -> str:
    """A paragraph of explanation."""
    return f'<p class="note">{html.escape(text)}</p>'


def heading(text: str) -> str:
    """A small heading within a section."""
    return f"<h3>{html.escape(text)}</h3>"


def img_tag(image: Image.Image, alt: str) -> str:
    """An image inside the page, as PNG; `alt` says what it is to who does not see it."""
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
    """Images with a caption below each, as a `sheet` that wraps or a `row`; the one numbered `right` is marked.

    `alts` say what the images are where the captions do not.
    """
    cells = []
    for number, (image, caption, alt) in enumerate(zip(images, captions, alts or captions, strict=True)):
        told = html.escape(caption)
        below = _right("figcaption", told) if number == right else f"<figcaption>{told}</figcaption>"
        cells.append(f"<figure>{img_tag(image, alt)}{below}</figure>")
    return f'<div class="{kind}">{"".join(cells)}</div>'


def table(rows: Sequence[Mapping[str, str | int | float | None]], columns: Mapping[str, str]) -> str:
    """A table of rows; `columns` maps keys to headings. Floats are shares and shown in percent."""
    lines = "".join("<tr>" + "".join(_cell(row[key]) for key in columns) + "</tr>" for row in rows)
    return f"<table>{_head(columns.values())}{lines}</table>"


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML already."""
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{_head(heads)}{lines}</table>"


def names(ranked: Sequence[tuple[str, float]], truth: str) -> str:
    """Ranked names with their scores, the right one marked."""
    lines = []
    for name, score in ranked:
        text = f"{html.escape(name)} <small>{score:.2f}</small>"
        lines.append(_right("span", text) if name == truth else text)
    return "<br>".join(lines)


def _right(tag: str, told: str) -> str:
    """Mark the right answer: by colour and weight, and by a sign for who sees neither."""
    return f'<{tag} class="right">✓ {told}</{tag}>'


def _head(names: Iterable[str]) -> str:
    return "<tr>" + "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names) + "</tr>"


def _cell(value: str | int | float | None) -> str:
    if isinstance(value, float):
        return f'<td class="number">{100 * value:.1f} %</td>'
    kind = ' class="number"' if isinstance(value, int) else ""
    return f"<td{kind}>{html.escape(str(value))}</td>"
