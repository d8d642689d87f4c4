"""rows.py: which rows are held out, by their captions alone."""

import json
import random

import pytest
from PIL import Image

from palindiff.data.sources import DataConfig, open_images


def open_set(folder, captions_of_rows):
    """A folder of one image for each row."""
    train = folder / "train"
    train.mkdir(parents=True)
    for number in range(len(captions_of_rows)):
        Image.new("RGB", (2, 2)).save(train / f"{number}.png")
    rows = [{"file_name": f"{i}.png", "captions": list(captions)} for i, captions in enumerate(captions_of_rows)]
    (train / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_images(DataConfig(path=str(folder)))


def captions_of(rows):
    return {caption for row in rows for caption in row.captions}


MANY = [(f"caption {number % 80}", f"other {number}") for number in range(120)]  # forty captions stand twice


def test_about_a_fraction_is_held_out_and_no_caption_is_on_both_sides(tmp_path):
    rest, held = open_set(tmp_path, MANY).held_out(0.25)
    assert len(rest) + len(held) == 120
    assert 15 <= len(held) <= 45
    assert not captions_of(rest) & captions_of(held)
    assert len({rest.fingerprint, held.fingerprint, open_images(DataConfig(path=str(tmp_path))).fingerprint}) == 3


def test_the_captions_alone_decide_whatever_the_order_and_further_rows(tmp_path):
    shuffled = random.Random(0).sample(MANY, len(MANY))
    _, held = open_set(tmp_path / "a", MANY).held_out(0.25)
    _, again = open_set(tmp_path / "b", shuffled).held_out(0.25)
    _, more = open_set(tmp_path / "c", [*MANY, *((f"new {number}",) for number in range(50))]).held_out(0.25)
    assert captions_of(held) == captions_of(again) == {each for each in captions_of(more) if "new" not in each}


def test_rows_are_linked_through_the_captions_of_a_third(tmp_path):
    chain = [("a", "b"), ("c", "d"), ("b", "c"), *((f"other {number}",) for number in range(30))]
    for fraction in (0.1, 0.5, 0.9):
        sides = open_set(tmp_path / str(fraction), chain).held_out(fraction)
        assert sorted(len(captions_of(side) & set("abcd")) for side in sides) == [0, 4]


def test_neither_side_is_empty_and_one_group_alone_cannot_be_divided(tmp_path):
    for fraction in (0.001, 0.999):
        sides = open_set(tmp_path / str(fraction), [("a",), ("b",), ("c",)]).held_out(fraction)
        assert sorted(map(len, sides)) == [1, 2]
    same = open_set(tmp_path / "same", [("a",), ("a", "b"), ("b",)])
    with pytest.raises(ValueError, match=r"All 3 rows of `.*` have equal captions, directly or through others"):
        same.held_out(0.5)
