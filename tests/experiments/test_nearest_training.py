"""nearest_training.py: a copy of a training image is found, in the style that was asked for."""

import pytest
from PIL import Image

from palindiff.data.images import decode_image
from palindiff.experiments.emoji_subsets import training_images
from palindiff.experiments.nearest_training import nearest_images


@pytest.mark.parametrize("style", ["flat", "outlined"])
def test_a_copied_image_is_found_in_its_style(emoji_dir, style):
    rows = list(training_images(emoji_dir, style))[2:5]
    images = [decode_image(row.source).resize((32, 32)) for row in rows]
    assert [row.source.name for row in nearest_images(images, [style] * 3, emoji_dir)] == [
        row.source.name for row in rows
    ]


def test_an_image_of_another_style_gets_the_nearest_of_the_style_asked_for(emoji_dir):
    image = decode_image(training_images(emoji_dir, "flat")[0].source)
    (found,) = nearest_images([image], ["outlined"], emoji_dir)
    assert found.fields["style"] == "outlined"


@pytest.mark.parametrize("style", [None, "emojione"])
def test_without_a_style_of_training_all_images_are_compared(emoji_dir, style):
    rows = [training_images(emoji_dir, each)[3] for each in ("flat", "outlined")]
    images = [decode_image(row.source) for row in rows]
    found = nearest_images([*images, Image.new("RGB", (16, 16))], [style] * 3, emoji_dir)
    assert [row.source.name for row in found[:2]] == [row.source.name for row in rows]
