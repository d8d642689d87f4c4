"""Contact sheets: images in a grid on a white page, with captions below and a title on top.

Here: layout and text. Not here: making the images (`inference/`).
"""

import math
import textwrap
import unicodedata
from collections.abc import Sequence

from diffusers.utils import make_image_grid
from PIL import Image, ImageDraw, ImageFont, ImageOps

from palindiff.data.images import decode_image, fit_image

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

MIN_CELL_PX = 24
PAIR_GAP_PX = 2
MAX_LINES = 4  # of a caption
INK, FRAME = (30, 30, 30), (222, 222, 222)
PLAIN_LETTERS = str.maketrans("–—−‘’“”×", "---''\"\"x")


def contact_sheet(
    images: Sequence[Image.Image | Sequence[Image.Image]],
    captions: Sequence[str] | None = None,
    columns: int = 8,
    cell_px: int = 96,
    title: str = "",
) -> Image.Image:
    """Lay images out in rows, each with its caption below, wrapped and cut to MAX_LINES.

    In place of an image there may be several, equally many everywhere, which share one caption.

    Shapes: n images of any size, each shown whole in a cell of cell_px; n captions or None.
    Raises: ValueError if there are no images, the captions are not as many, or a size is too small.
    """
    blocks = [[each] if isinstance(each, Image.Image) else each for each in images]
    if not blocks or cell_px < MIN_CELL_PX or columns < 1 or (captions is not None and len(captions) != len(blocks)):
        num_captions = "no" if captions is None else len(captions)
        raise ValueError(
            f"A sheet of {len(blocks)} images with {num_captions} captions, {columns} columns and cells of {cell_px} "
            f"px. Expected at least 1 image, a caption for each or None, 1 column and {MIN_CELL_PX} px. Pass those."
        )
    columns, gap = min(columns, len(blocks)), max(8, cell_px // 6)
    width = len(blocks[0]) * (cell_px + PAIR_GAP_PX) - PAIR_GAP_PX
    font, title_font = ImageFont.load_default(max(10, cell_px // 8)), ImageFont.load_default(max(13, cell_px // 6))
    texts = [_wrapped(caption, font, width, MAX_LINES) for caption in captions or [""] * len(blocks)]
    size = (width + gap, cell_px + gap + max(_height(text, font) for text in texts))
    cells = [Image.new("RGB", size, "white") for _ in range(math.ceil(len(blocks) / columns) * columns)]
    for cell, block, text in zip(cells, blocks, texts, strict=False):  # the last row may end with empty cells
        draw = ImageDraw.Draw(cell)
        for number, image in enumerate(block):
            left, top = gap // 2 + number * (cell_px + PAIR_GAP_PX), gap // 2
            cell.paste(fit_image(decode_image(image), cell_px, "pad"), (left, top))
            draw.rectangle((left - 1, top - 1, left + cell_px, top + cell_px), outline=FRAME)
        draw.multiline_text((size[0] / 2, gap // 2 + cell_px + 4), text, INK, font, anchor="ma", align="center")
    grid = ImageOps.expand(make_image_grid(cells, len(cells) // columns, columns), gap // 2, "white")
    heading = _wrapped(title, title_font, grid.width - 2 * gap, max_lines=2)
    sheet = ImageOps.expand(grid, (0, _height(heading, title_font), 0, 0), "white")
    ImageDraw.Draw(sheet).multiline_text((gap, gap // 2), heading, INK, title_font)
    return sheet


def wrap_text(text: str, font: Font, width_px: int, max_lines: int) -> list[str]:
    """Break a text into at most `max_lines` lines of at most `width_px`; an ellipsis stands for the rest."""
    for num_letters in range(min(len(text), width_px), 0, -1):
        lines = textwrap.wrap(text, num_letters, max_lines=max_lines, placeholder="…")
        if all(font.getlength(line) <= width_px for line in lines):
            return lines
    return []


def _wrapped(text: str, font: Font, width_px: int, max_lines: int) -> str:
    """Wrap a text in letters that Pillow's font has: accents are dropped, dashes and quotes become ASCII."""
    letters = unicodedata.normalize("NFKD", text.translate(PLAIN_LETTERS))
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return "\n".join(wrap_text(plain, font, width_px, max_lines))


def _height(text: str, font: Font) -> int:
    """Height of wrapped lines with a margin, pixels; 0 without text."""
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font)
    return math.ceil(box[3]) + 6 if text else 0
