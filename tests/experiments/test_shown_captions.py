"""shown_captions.py: captions that nobody picked, from every split that the set has."""

import shutil

import pytest

from palindiff.data.emoji import STYLES
from palindiff.experiments.emoji_subsets import concept_images, evenly
from palindiff.experiments.shown_captions import FREE_WORDING, shown_captions, style_of, without_style
from toys.emoji import write_emoji_set


def test_captions_are_evenly_spread_over_each_split_half_in_each_style(emoji_dir):
    found = shown_captions(emoji_dir, 10)
    for group, split in (("seen", "train"), ("unseen", "test"), ("composition", "composition")):
        rows = [row for style in STYLES for row in evenly(concept_images(emoji_dir, split, style), 5)]
        assert found[group] == [row.captions[0] for row in rows]
    assert [len(group) for group in found.values()] == [10, 6, 10, len(FREE_WORDING)]
    assert list(found) == ["seen", "composition", "unseen", "free"]  # from what works to what does not


def test_a_split_that_the_set_lacks_has_no_captions(tmp_path):
    folder = write_emoji_set(tmp_path / "set")
    shutil.rmtree(folder / "composition")
    assert shown_captions(folder, 4)["composition"] == []


@pytest.mark.parametrize(
    ("caption", "style", "name"),
    [
        ("a flat emoji of a red heart", "flat", "a red heart"),
        ("an old noto emoji of a cat", "noto-v1", "a cat"),
        ("a fluent flat emoji of the flag of Chad", "fluent-emoji-flat", "the flag of Chad"),
        ("a red circle", None, "a red circle"),
        ("a flat emoji", None, "a flat emoji"),
    ],
)
def test_the_style_of_a_caption_is_in_its_first_words(caption, style, name):
    assert (style_of(caption), without_style(caption)) == (style, name)
