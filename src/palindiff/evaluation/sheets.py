"""Sheets to look at: many images on one white page with their captions, pairs side by side, a walk as a strip.

Here: laying out and lettering, with PIL alone. Not here: making the images (`inference/`).
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from palindiff.data.images import decode_image, fit_image

MIN_CELL_PX = 24
ELLIPSIS = "…"
INK, SOFT_INK, FRAME = (30, 30, 30), (110, 110, 110), (222, 222, 222)


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int = 8,
    cell_px: int = 96,
    title: str = "",
    max_lines: int = 4,
) -> Image.Image:
    """Lay images out in rows, each with its caption below, wrapped and cut to `max_lines`.

    Shapes: n images of any size, shown whole in cells of cell_px; n captions or none.
    Raises: ValueError if there are no images, the captions are not as many, or a size is too small.
    """
    _check_counts(images, captions)
    page = _Page(_Layout(columns=min(columns, len(images)), cell_px=cell_px, title=title, max_lines=max_lines))
    return page.draw([[image] for image in images], captions)


def pairs_sheet(
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int = 4,
    cell_px: int = 96,
    headings: tuple[str, str] = ("before", "after"),
) -> Image.Image:
    """Lay out pairs, before on the left and after on the right, with headings on top and one caption below each pair.

    Shapes: n images twice; n captions or none; `columns` counts pairs.
    Raises: as `contact_sheet`; ValueError if `before` and `after` are not as many.
    """
    if len(before) != len(after):
        raise ValueError(
            f"`before` has {len(before)} images and `after` {len(after)}. Expected as many: a pair is one subject."
        )
    _check_counts(before, captions)
    page = _Page(_Layout(columns=min(columns, len(before)), cell_px=cell_px, block=2, headings=headings))
    return page.draw([list(pair) for pair in zip(before, after, strict=True)], captions)


def strip(
    images: Sequence[Image.Image], labels: Sequence[str] | None = None, cell_px: int = 96, title: str = ""
) -> Image.Image:
    """Lay the steps of a walk out from left to right, with an arrow between them and a label below each.

    Shapes: n images; n labels or none.
    Raises: as `contact_sheet`.
    """
    _check_counts(images, labels)
    layout = _Layout(columns=len(images), cell_px=cell_px, title=title, has_arrows=True)
    return _Page(layout).draw([[image] for image in images], labels)


def wrap_text(text: str, font: ImageFont.FreeTypeFont, width_px: int, max_lines: int) -> list[str]:
    """Break a text into at most `max_lines` lines that fit `width_px`; what is left over becomes an ellipsis.

    Breaks at spaces, and within a word that is wider than a line alone.
    """
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width_px:
            lines[-1] = joined
            continue
        pieces = _pieces(word, font, width_px)
        lines = (lines if lines[-1] else lines[:-1]) + pieces
    if len(lines) <= max_lines:
        return lines if lines[0] else []
    last = lines[max_lines - 1]
    while last and font.getlength(last + ELLIPSIS) > width_px:
        last = last[:-1]
    return [*lines[: max_lines - 1], last.rstrip(" ,;:") + ELLIPSIS]


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels, all derived from the cell's side."""

    columns: int  # blocks in a row
    cell_px: int
    title: str = ""
    max_lines: int = 4
    block: int = 1  # images that share one caption
    headings: Sequence[str] = field(default_factory=tuple)
    has_arrows: bool = False

    def __post_init__(self) -> None:
        if self.cell_px < MIN_CELL_PX or self.columns < 1 or self.max_lines < 1:
            raise ValueError(
                f"A sheet of {self.columns} columns, cells of {self.cell_px} px and {self.max_lines} lines a caption. "
                f"Expected at least 1 column, {MIN_CELL_PX} px and 1 line."
            )

    @property
    def gap(self) -> int:
        return max(8, self.cell_px // 6)

    @property
    def block_gap(self) -> int:
        return max(2, self.cell_px // 32)

    @property
    def block_width(self) -> int:
        return self.block * self.cell_px + (self.block - 1) * self.block_gap

    @property
    def width(self) -> int:
        return self.columns * self.block_width + (self.columns + 1) * self.gap


class _Page:
    """Draws blocks of images row by row."""

    def __init__(self, layout: _Layout) -> None:
        self.layout = layout
        self.font = _font(max(10, round(layout.cell_px / 8)))
        self.title_font = _font(max(13, round(layout.cell_px / 6)))
        self.line_px = sum(self.font.getmetrics()) + 1

    def draw(self, blocks: Sequence[Sequence[Image.Image]], captions: Sequence[str] | None) -> Image.Image:
        """Measure all captions, then draw title, headings and rows."""
        at = self.layout
        texts = [_printable(caption) for caption in captions] if captions is not None else [""] * len(blocks)
        wrapped = [wrap_text(text, self.font, at.block_width, at.max_lines) for text in texts]
        starts = range(0, len(blocks), at.columns)
        depths = [self._depth(wrapped[start : start + at.columns]) for start in starts]
        title = wrap_text(_printable(at.title), self.title_font, at.width - 2 * at.gap, 2)
        title_px = len(title) * (sum(self.title_font.getmetrics()) + 1) + (at.gap // 2 if title else 0)
        heading_px = self.line_px + at.gap // 4 if at.headings else 0
        self.sheet = Image.new("RGB", (at.width, at.gap + title_px + heading_px + sum(depths)), "white")
        self.pen = ImageDraw.Draw(self.sheet)
        for i, line in enumerate(title):
            self.pen.text((at.gap, at.gap + i * (sum(self.title_font.getmetrics()) + 1)), line, INK, self.title_font)
        y = at.gap + title_px
        self._draw_headings(y)
        y += heading_px
        for start, depth in zip(starts, depths, strict=True):
            for i in range(start, min(start + at.columns, len(blocks))):
                x = at.gap + (i - start) * (at.block_width + at.gap)
                self._draw_block(blocks[i], wrapped[i], x, y)
                if at.has_arrows and i:
                    self._draw_arrow(x - at.gap / 2, y + at.cell_px / 2)
            y += depth
        return self.sheet

    def _depth(self, captions: Sequence[Sequence[str]]) -> int:
        num_lines = max(map(len, captions))
        return self.layout.cell_px + self.layout.gap + (num_lines * self.line_px + 4 if num_lines else 0)

    def _draw_block(self, images: Sequence[Image.Image], caption: Sequence[str], x: int, y: int) -> None:
        at = self.layout
        for i, image in enumerate(images):
            left = x + i * (at.cell_px + at.block_gap)
            self.sheet.paste(fit_image(decode_image(image), at.cell_px, "pad"), (left, y))
            self.pen.rectangle((left - 1, y - 1, left + at.cell_px, y + at.cell_px), outline=FRAME)
        for i, line in enumerate(caption):
            top = y + at.cell_px + 4 + i * self.line_px
            self.pen.text((x + at.block_width / 2, top), line, INK, self.font, anchor="ma")

    def _draw_headings(self, y: int) -> None:
        at = self.layout
        for column in range(at.columns):
            for i, heading in enumerate(at.headings):
                left = at.gap + column * (at.block_width + at.gap) + i * (at.cell_px + at.block_gap)
                line = wrap_text(_printable(heading), self.font, at.cell_px, 1)
                self.pen.text((left + at.cell_px / 2, y), "".join(line), SOFT_INK, self.font, anchor="ma")

    def _draw_arrow(self, x: float, y: float) -> None:
        size = self.layout.gap / 4
        self.pen.polygon((x - size / 2, y - size, x + size / 2, y, x - size / 2, y + size), SOFT_INK)


def _pieces(word: str, font: ImageFont.FreeTypeFont, width_px: int) -> list[str]:
    """A word cut into pieces that each fit a line; a single letter is never cut."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width_px:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _printable(text: str) -> str:
    """The default font holds plain Latin only: dashes, quotes and accents become their plain relatives."""
    for signs, plain in (("–—−", "-"), ("‘’", "'"), ("“”", '"'), ("×", "x")):
        for sign in signs:
            text = text.replace(sign, plain)
    return "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))


def _font(size_px: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size_px)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType. Expected scalable letters. Install Pillow's own wheel.")
    return font


def _check_counts(images: Sequence[Image.Image], captions: Sequence[str] | None) -> None:
    if not images:
        raise ValueError("There are no images to lay out. Expected one or more.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images. Expected one for each, or None.")
