"""sheets.py: every image in its cell to the pixel, captions that fit and never overlap, and refused input."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from palindiff.evaluation.sheets import contact_sheet, wrap_text

CELL, GAP = 48, 8
LONG = "a very long caption of many words and one indivisiblewordthatisfarwiderthananycell " * 3


def make_images(n, size=CELL, seed=0):
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 255, (size, size, 3), dtype=np.uint8)) for _ in range(n)]


def cell(sheet, x, y):
    return np.asarray(sheet)[y : y + CELL, x : x + CELL]


def is_white(part):
    return bool((np.asarray(part) == 255).all())


def test_contact_sheet_without_captions_by_hand():
    images = make_images(5)
    sheet = contact_sheet(images, columns=3, cell_px=CELL)
    assert sheet.mode == "RGB"
    assert sheet.size == (3 * CELL + 4 * GAP, 2 * CELL + 3 * GAP)
    for i, image in enumerate(images):
        row, column = divmod(i, 3)
        x, y = GAP + column * (CELL + GAP), GAP + row * (CELL + GAP)
        assert np.array_equal(cell(sheet, x, y), np.asarray(image))
    assert is_white(cell(sheet, GAP + 2 * (CELL + GAP), GAP + CELL + GAP))  # the sixth place stays empty


def test_sheet_is_no_wider_than_its_images():
    assert contact_sheet(make_images(2), columns=8, cell_px=CELL).width == 2 * CELL + 3 * GAP


def test_sheet_is_the_same_each_time():
    images, captions = make_images(3), ["one", LONG, ""]
    first, second = (contact_sheet(images, captions, cell_px=CELL, title="A title") for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_transparent_and_oblong_images_stand_on_white():
    clear = Image.new("RGBA", (CELL, CELL), (255, 0, 0, 0))
    oblong = Image.new("RGB", (CELL, CELL // 2), "red")
    sheet = contact_sheet([clear, oblong], cell_px=CELL)
    assert is_white(cell(sheet, GAP, GAP))
    right = cell(sheet, 2 * GAP + CELL, GAP)
    assert is_white(right[: CELL // 4])
    assert is_white(right[-CELL // 4 :])
    assert (right[CELL // 4 : -CELL // 4] == (255, 0, 0)).all()


def test_long_captions_never_leave_their_column():
    images = make_images(6)
    sheet = np.asarray(contact_sheet(images, [LONG] * 6, columns=3, cell_px=CELL))
    for column in range(4):
        x = column * (CELL + GAP)
        assert is_white(sheet[:, x + 1 : x + GAP - 1])  # the frame takes one pixel at each side of a gap
    assert not is_white(sheet[GAP + CELL + 4 :, GAP : GAP + CELL])


def test_captions_never_reach_the_next_row():
    """The second row comes out whole and the gap above it is white, however long the captions of the first."""
    images = make_images(4)
    plain = contact_sheet(images, ["", "", "", ""], columns=2, cell_px=CELL)
    sheet = contact_sheet(images, [LONG, "short", "", ""], columns=2, cell_px=CELL)
    y = GAP + (sheet.height - GAP) // 2  # both rows are as high
    assert sheet.height > plain.height == 2 * CELL + 3 * GAP
    for column in range(2):
        assert np.array_equal(cell(sheet, GAP + column * (CELL + GAP), y), np.asarray(images[2 + column]))
    assert is_white(np.asarray(sheet)[y - GAP + 1 : y - 1])


def test_captions_without_letters_change_nothing():
    images = make_images(3)
    assert contact_sheet(images, ["", " ", "\n"], cell_px=CELL) == contact_sheet(images, cell_px=CELL)


def test_accents_and_quotes_become_letters_the_font_has():
    images = make_images(1)
    fancy = contact_sheet(images, ["façade – “é”"], cell_px=96)
    assert fancy == contact_sheet(images, ['facade - "e"'], cell_px=96)
    assert fancy != contact_sheet(images, ["facade"], cell_px=96)


def test_title_stands_above_the_images():
    images = make_images(3)
    plain, titled = contact_sheet(images, cell_px=CELL), contact_sheet(images, cell_px=CELL, title="After 18 min")
    title_px = titled.height - plain.height
    assert titled.crop((0, title_px + GAP - 1, titled.width, titled.height)) == plain.crop(
        (0, GAP - 1, plain.width, plain.height)
    )
    assert not is_white(titled.crop((0, 0, titled.width, title_px)))


def test_a_sheet_of_pairs_puts_before_left_of_after():
    before, after = make_images(3, seed=1), make_images(3, seed=2)
    pairs = list(zip(before, after, strict=True))
    sheet = contact_sheet(pairs, ["one", "two", LONG], columns=2, cell_px=CELL, title="left: before, right: after")
    top = next(y for y in range(sheet.height) if np.array_equal(cell(sheet, GAP, y), np.asarray(before[0])))
    assert not is_white(np.asarray(sheet)[: top - 2])  # the title: left: before, right: after
    for i in range(2):
        x = GAP + i * (2 * CELL + 2 + GAP)
        assert np.array_equal(cell(sheet, x, top), np.asarray(before[i]))
        assert np.array_equal(cell(sheet, x + CELL + 2, top), np.asarray(after[i]))


@pytest.mark.parametrize("width_px", [40, 90, 400])
@pytest.mark.parametrize("max_lines", [1, 3, 50])
def test_wrapped_lines_fit_and_keep_every_letter_until_the_ellipsis(width_px, max_lines):
    font = ImageFont.load_default(12)
    lines = wrap_text(LONG, font, width_px, max_lines)
    assert len(lines) <= max_lines
    assert all(0 < font.getlength(line) <= width_px for line in lines)
    is_cut = lines[-1].endswith("…")
    told = "".join(lines).replace(" ", "").removesuffix("…")
    letters = LONG.replace(" ", "")
    assert letters.startswith(told)
    assert is_cut is (told != letters)


def test_wrap_breaks_at_spaces_by_hand():
    font = ImageFont.load_default(12)
    width_px = int(font.getlength("a flat emoji")) + 1
    assert wrap_text("a flat emoji of a cat", font, width_px, 3) == ["a flat emoji", "of a cat"]
    assert wrap_text("a flat emoji of a cat", font, width_px, 1) == ["a flat…"]
    assert wrap_text(" \n ", font, width_px, 3) == []


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: contact_sheet([]), r"A sheet of 0 images with no captions.*Expected at least 1 image"),
        (lambda p: contact_sheet(p, ["one"]), r"3 images with 1 captions.*Expected .*a caption for each or None"),
        (lambda p: contact_sheet(list(zip(p, p, strict=True)), ["one"]), r"3 images with 1 captions"),
        (lambda p: contact_sheet(p, columns=0), r"0 columns.*Expected .*1 column"),
        (lambda p: contact_sheet(p, cell_px=10), r"cells of 10 px.*Expected .*24 px"),
    ],
)
def test_sheets_refuse(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(make_images(3))
