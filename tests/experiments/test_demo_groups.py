"""demo_groups.py: what the page opens with is what the model gives, for captions and images that nobody picked."""

import shutil

import numpy as np
import pytest

from palindiff.data.emoji import STYLES
from palindiff.data.images import decode_image
from palindiff.experiments import demo_groups
from palindiff.experiments.bundled_vendor import bundled_vendor_images
from palindiff.experiments.demo_groups import NUM_NAMED, generated_images, page_groups
from palindiff.experiments.emoji_protocol import METRIC_STEPS
from palindiff.experiments.emoji_subsets import evenly
from palindiff.experiments.naming_protocol import embed_compositions, naming_rows
from palindiff.experiments.nearest_training import nearest_images
from palindiff.experiments.shown_captions import shown_captions
from palindiff.inference.generation import generate_images
from toys.emoji import SCRIPT, write_emoji_set

TITLES = ["Emoji from its training", "Known things in a new style", "Known things by another artist",
          "Things it has never seen", "Free wording"]  # fmt: skip


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def few():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_groups, "NUM_GENERATED", 4)
        yield


@pytest.fixture(scope="module")
def generated(model, emoji_dir, few):
    return generated_images(model.pipeline, emoji_dir, seed=3)


@pytest.fixture(scope="module")
def groups(model, emoji_dir, embedded, few):
    compositions = [embed_compositions(model.pipeline, emoji_dir, style) for style in STYLES]
    rows = [row for concepts in embedded for row in naming_rows(model, concepts)]
    return page_groups(model.pipeline, emoji_dir, 3, embedded, compositions, rows)


def test_every_caption_of_each_group_is_generated_with_the_seed_of_its_place(generated, model, emoji_dir):
    captions = shown_captions(emoji_dir, 4)
    assert {name: [each.figure.caption for each in group] for name, group in generated.items()} == captions
    assert f"outlined tl{SCRIPT}" in captions["unseen"]
    every = [each.figure for group in generated.values() for each in group]
    for number in (0, 7, len(every) - 1):
        (alone,) = generate_images(model.pipeline, [every[number].caption], [3 + number], 4.0, METRIC_STEPS)
        assert abs(pixels(every[number].image) - pixels(alone)).max() <= 1  # of 255: another batch, rounded
        assert np.ptp(pixels(alone)) > 20


def test_beside_each_generated_image_is_the_most_similar_one_of_training(generated, emoji_dir):
    shown = generated["seen"]
    nearest = nearest_images(
        [each.figure.image for each in shown], [None] * 4, emoji_dir
    )  # toy captions name no style
    for each, row in zip(shown, nearest, strict=True):
        assert (pixels(each.nearest.image) == pixels(decode_image(row.source))).all()
        assert each.nearest.alt == f"in training: {row.captions[0]}"


def test_the_groups_go_from_what_works_to_what_does_not(groups):
    assert [group.title for group in groups] == TITLES
    assert [(len(group.generated), len(group.named)) for group in groups] == [
        (4, 2 * NUM_NAMED), (4, 2 * 3), (0, 24), (4, 2 * NUM_NAMED), (8, 0)
    ]  # fmt: skip


def test_names_are_the_best_of_the_style_s_captions_and_the_right_one_is_marked(groups, embedded):
    named = iter(groups[3].named)
    for concepts in embedded:
        for i in evenly(range(12), NUM_NAMED):
            figure, ranked = next(named)
            assert (pixels(figure.image) == pixels(decode_image(concepts.rows[i].source))).all()
            best = concepts.scores[i].topk(3)
            assert [each.name for each in ranked] == [concepts.captions[j] for j in best.indices]
            assert [each.score for each in ranked] == best.values.tolist()
            assert [each.is_right for each in ranked] == [int(j) == i for j in best.indices]


def test_the_vendor_s_images_are_the_bundled_ones(groups):
    rows = bundled_vendor_images()
    assert [each.figure.alt for each in groups[2].named] == [row.captions[0] for row in rows]
    assert [each.figure.caption for each in groups[2].named] == [
        row.captions[0].removeprefix("an emoji of ") for row in rows
    ]
    assert "of these 24 images" in groups[2].on_named
    assert "not measured for this model" in groups[2].on_named


def test_what_is_measured_now_is_said_and_what_is_not_measured_too(groups):
    assert groups[0].on_generated == "How often the generated image is right: not measured for this model."
    assert "of 24 images from training" in groups[0].on_named
    assert "among 12 names" in groups[3].on_named
    assert "nothing is measured here" in groups[4].on_generated


def test_a_set_without_compositions_has_an_empty_group(model, tmp_path, embedded, few):
    folder = write_emoji_set(tmp_path / "set")
    shutil.rmtree(folder / "composition")
    group = page_groups(model.pipeline, folder, 3, embedded, [], [])[1]
    assert (group.generated, group.named) == ([], [])
