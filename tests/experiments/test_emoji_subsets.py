"""emoji_subsets.py: which images of a set are measured, and what a set may lack."""

import itertools
import shutil

import pytest

from palindiff.data.emoji import STYLES
from palindiff.data.sources import DataConfig, open_images
from palindiff.experiments.emoji_subsets import (
    concept_images,
    evenly,
    has_split,
    missing_vendor,
    styles_of,
    training_images,
    vendor_images,
)
from toys.emoji import vendor_rows, write_emoji_set, write_vendor
from toys.run import write_images


@pytest.mark.parametrize("style", STYLES)
def test_a_concept_is_its_neutral_image_in_the_order_of_the_set(emoji_dir, style):
    found = concept_images(emoji_dir, "test", style)
    assert [row.source.name for row in found] == [f"{style}/{number}.png" for number in range(12)]
    assert len(open_images(DataConfig(path=str(emoji_dir), split="test"))) == 2 * (12 + 4)


def test_a_set_that_is_drawn_anew_is_read_anew(tmp_path):
    folder = write_emoji_set(tmp_path / "set")
    assert styles_of(folder, "train") == list(STYLES)
    assert len(training_images(folder)) == 2 * (12 + 4)
    listed = folder / "train" / "metadata.jsonl"
    flat = [line for line in listed.read_text(encoding="utf-8").splitlines() if '"flat/' in line]
    listed.write_text("\n".join(flat), encoding="utf-8")
    shutil.rmtree(folder / "train" / "outlined")
    assert styles_of(folder, "train") == ["flat"]
    assert len(training_images(folder)) == 12 + 4


def test_a_set_without_styles_is_refused(tmp_path):
    folder = write_images(tmp_path)
    with pytest.raises(ValueError, match=r"has no `style` and `is_representative`.*Expected the emoji set in"):
        concept_images(folder, "train", "flat")


@pytest.mark.parametrize(("total", "number"), [(12, 5), (12, 11), (237, 200), (1000, 237), (3, 1), (12, 2)])
def test_evenly_spread_rows_are_as_many_and_all_different(total, number):
    chosen = evenly(range(total), number)
    assert len(chosen) == len(set(chosen)) == number
    assert chosen == sorted(chosen)
    assert chosen[0] == 0
    if number > 1:
        assert chosen[-1] == total - 1
        gaps = [after - before for before, after in itertools.pairwise(chosen)]
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("number", [4, 5, 200])
def test_all_rows_are_taken_where_there_are_no_more(number):
    assert evenly("abcd", number) == list("abcd")


def test_a_style_that_a_split_lacks_is_refused(emoji_dir):
    with pytest.raises(
        ValueError, match=r"no image of the style `noto` in its split `test`. Expected one of flat, outl"
    ):
        concept_images(emoji_dir, "test", "noto")


def test_styles_and_splits_are_those_of_the_set(emoji_dir, vendor_dir):
    assert styles_of(emoji_dir, "test") == list(STYLES)
    assert styles_of(vendor_dir, "vendor") == ["emojione"]
    assert has_split(vendor_dir, "vendor")
    assert not has_split(emoji_dir, "vendor")


def test_training_images_are_all_of_a_style_or_of_all(emoji_dir):
    assert len(training_images(emoji_dir)) == 2 * (12 + 4)
    assert {row.fields["style"] for row in training_images(emoji_dir, "flat")} == {"flat"}
    assert len(training_images(emoji_dir, "flat")) == 12 + 4


def test_images_of_a_vendor_are_representatives_of_seen_concepts_without_flags(vendor_dir):
    found = vendor_images(vendor_dir)
    assert {style: [row.label for row in rows] for style, rows in found.items()} == {"emojione": ["aa", "ab", "ac"]}
    assert missing_vendor(vendor_dir) is None


@pytest.mark.parametrize("field", ["concept_split", "label"])
def test_a_vendor_without_a_field_is_refused(tmp_path, field):
    rows = [{key: value for key, value in row.items() if key != field} for row in vendor_rows()]
    folder = write_vendor(write_emoji_set(tmp_path / "set"), rows)
    problem = "rows of the split `vendor` have no `concept_split` or no `label`"
    assert missing_vendor(folder) == problem
    with pytest.raises(ValueError, match=f"{problem}.*Draw the set with `palindiff data emoji --icons FOLDER`"):
        vendor_images(folder)


def test_a_set_without_a_vendor_says_so(emoji_dir):
    assert missing_vendor(emoji_dir) == f"`{emoji_dir}` has no split `vendor`"
    with pytest.raises(ValueError, match="has no split `vendor`"):
        vendor_images(emoji_dir)
