"""demo_rates.py: sentences say what the rows say, or that nothing was measured."""

import pytest

from palindiff.experiments.demo_rates import (
    generation_sentence,
    naming_sentence,
    seen_sentence,
    vendor_measured,
    vendor_sentence,
    verdict,
)


def row(**given):
    return {"direction": "image_to_text", "k": 1, "recall": 0.5, "chance": 0.1, "n": 60} | given


@pytest.mark.parametrize(
    ("rate", "words"),
    [(1.0, "Nearly always right"), (0.6, "Mostly right"), (0.5, "Right about half of the time"),
     (0.2, "Sometimes right"), (0.0, "Rarely right")],
)  # fmt: skip
def test_the_verdict_follows_the_rate(rate, words):
    assert verdict(rate) == words


def test_generation_is_said_by_the_share_of_captions_that_are_recognised():
    rows = [
        row(direction="caption_to_generated", split=split, recall=recall, chance=0.1 / 23.7, n=200, k=k)
        for split, recall, k in (("seen", 0.86, 1), ("seen", 0.88, 1), ("seen", 0.99, 10), ("unseen", 0.1, 1))
    ]
    assert generation_sentence(rows, "seen") == (
        "Mostly right: of 237 real emoji, the right one is the most similar to the generated image for 86 to 88 % of "
        "200 captions in each style (guessing: 0.4 %)."
    )
    assert generation_sentence(rows, "unseen").startswith("Rarely right: of 237 real emoji, ")
    assert generation_sentence(rows, "composition") == (
        "How often the generated image is right: not measured for this model."
    )


def test_naming_is_said_by_the_first_and_the_first_ten_names():
    rows = [
        row(split="composition", recall=0.43, chance=1 / 60),
        row(split="composition", k=10, recall=0.8, chance=1 / 6),
        row(split="composition", vendor="emojione", recall=0.99),
    ]
    assert naming_sentence(rows, "composition") == (
        "Right about half of the time: among 60 names, the right one comes first for 43 % of the images of a style, "
        "and is among the first ten for 80 % (guessing: 1.7 % and 16.7 %)."
    )
    assert naming_sentence(rows[:1], "composition").endswith("43 % of the images of a style (guessing: 1.7 %).")
    assert "not measured for this model" in naming_sentence(rows, "unseen")


def test_counts_become_sentences():
    assert seen_sentence(68, 100, 1069) == (
        "Mostly right: among all 1,069 names, the right one comes first for 68 % of 100 images from training."
    )
    assert vendor_sentence(20, 3, 24, 10, 1069) == (
        "Mostly right with 10 names to choose from, 20 of these 24 images; rarely right among all 1,069 names, 3 of "
        "24."
    )


def test_what_was_measured_of_a_vendor_is_compared_with_copying_a_name():
    measured = (("none", 1, 0.25), ("none", 10, 0.5), ("nearest_thumbnail", 1, 0.125))
    rows = [
        row(split="seen", vendor="emojione", control=control, k=k, recall=recall, n=810)
        for control, k, recall in measured
    ]
    assert vendor_measured(rows) == (
        "On all 810 such images, the right one of 810 names comes first for 25 % and is among the first ten for 50 %. "
        "Taking the name of the training image with the most similar colours is right for 12 %."
    )
    assert "Taking" not in vendor_measured(rows[:2])
    assert vendor_measured([]) == "On all images of this artist: not measured for this model."
