"""image_files.py: names and metadata of files, and that none is replaced."""

import pytest
from PIL import Image

from palindiff.inference.image_files import MAX_NAME_LETTERS, file_stem, write_png


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("A flat emoji of a red apple!", "a-flat-emoji-of-a-red-apple"),
        ("../../etc/passwd", "etc-passwd"),
        ("père Noël", "père-noël"),
        ("🍎", "image"),
        ("x" * 300, "x" * MAX_NAME_LETTERS),
    ],
)
def test_a_file_is_called_after_its_prompt(prompt, stem):
    assert file_stem(prompt) == stem


def test_a_file_says_how_it_was_made_in_any_language(tmp_path):
    told = {"prompt": "🍎 père [bold]", "seed": "3"}
    path = write_png(Image.new("RGB", (2, 2), "red"), tmp_path, "a", told)
    with Image.open(path) as read:
        assert dict(read.text) == told
        assert read.getpixel((0, 0)) == (255, 0, 0)


def test_no_file_is_replaced(tmp_path):
    names = [write_png(Image.new("RGB", (2, 2), (i, 0, 0)), tmp_path, "a", {}).name for i in range(3)]
    assert names == ["a.png", "a (2).png", "a (3).png"]
    assert [Image.open(tmp_path / name).getpixel((0, 0))[0] for name in names] == [0, 1, 2]
