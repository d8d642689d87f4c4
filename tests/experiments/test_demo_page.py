"""demo_page.py: every text stays text, every tag is closed, every image is inside."""

import base64
import html
import io
import re
from types import SimpleNamespace

import pytest
from jinja2 import UndefinedError
from PIL import Image, ImageChops

from palindiff.experiments.demo_groups import GeneratedImage, Group, NamedImage
from palindiff.experiments.demo_page import Figure, RankedName, page, png_uri
from toys.page import Page, assert_self_contained

SCRIPT = "<script>alert('a')</script> & \"b\""
RED = Image.new("RGB", (5, 4), "red")
SECTIONS = ["one", "two", "three", "Finding images by caption", "Denoising step by step", "Training curves",
            "About this model and its images"]  # fmt: skip


def pair(caption):
    return GeneratedImage(Figure(RED, caption), Figure(RED, "copied", f"in training: {caption}"))


def group(title, generated=(), named=()):
    return Group(title, f"note on {title}", list(generated), "generated so often", list(named), "named so often")


def content(**given):
    """All that the template takes."""
    ranked = [RankedName("a", 0.5, False), RankedName("b", 0.25, True)]
    return {
        "model": SimpleNamespace(name="bundled", steps=12345, seconds=600.0),
        "image_size_px": 48, "credits": ["Someone, CC BY 4.0"],
        "groups": [
            group("one", [pair("red")], [NamedImage(Figure(RED, "apple", "a flat emoji of apple"), ranked)]),
            group("two", [pair("crimson")]),
            group("three"),
        ],
        "retrieved": [("a query", [Figure(RED, "0.90", "first"), Figure(RED, "0.10", "second", True)])],
        "recall": [{"style": "flat", "split": "unseen", "direction": "image_to_text", "k": 10, "recall": 0.4251,
                    "chance": 1.0, "shuffled": 0.05, "n": 12}],
        "denoised_caption": "heart", "denoised": [Figure(RED, "t = 5", "heart, at t = 5")],
        "naming": {"image": Figure(RED, "apple", "an apple"),
                   "steps": [{"t": 999, "noisy": (ranked[:1], 7), "predicted": (ranked, 2)}], "cosine": 0.98765},
        "plots": ["<svg><text>plotted</text></svg>"],
    } | given  # fmt: skip


def test_a_page_is_well_formed_and_asks_for_nothing():
    read = assert_self_contained(page(**content()))
    assert read.of("h1") == read.of("title") == ["palindiff"]
    assert read.of("h2") == SECTIONS
    assert read.of("h3") == ["Generated", "Named", "Generated", "a query", "Generating “heart”", "Naming this image"]
    assert read.of("text") == ["plotted"]
    assert len(read.references) == 9
    assert " ".join(read.of("p")[-1].split()) == "Bundled with the package: 12,345 steps, 10 minutes of training."
    assert read.of("li")[-1] == "Someone, CC BY 4.0"


@pytest.mark.parametrize(
    "given",
    [
        {"groups": [group(SCRIPT)]},
        {"groups": [group("one", [pair(SCRIPT)])]},
        {"groups": [group("one", [], [NamedImage(Figure(RED, SCRIPT, SCRIPT), [])])]},
        {"groups": [group("one", [], [NamedImage(Figure(RED, "a"), [RankedName(SCRIPT, 0.5, False)])])]},
        {"credits": [SCRIPT]},
        {"retrieved": [(SCRIPT, [Figure(RED, "0.5", SCRIPT)])]},
        {"recall": [dict.fromkeys(("direction", "k", "recall", "chance", "shuffled", "n", "split"), 0)
                    | {"style": SCRIPT}]},
        {"naming": {"image": Figure(RED, "a", "b"), "steps": [{"t": SCRIPT, "noisy": ([], 1), "predicted": ([], 1)}],
                    "cosine": 1.0}},
    ],
)  # fmt: skip
def test_text_never_becomes_a_tag(given):
    read = Page(page(**content(**given)))
    assert "script" not in read.tags
    assert SCRIPT in [text.removeprefix("t = ") for _, text in read.texts]


def alts_of(written):
    """The alternative text of each image; raises if an image has none."""
    alts = re.findall(r'<img alt="([^"]+)" src=', written)
    assert len(alts) == written.count("<img")
    return [html.unescape(alt) for alt in alts]


def test_every_image_has_an_alternative_text():
    assert alts_of(page(**content())) == [
        "red", "in training: red", "a flat emoji of apple", "crimson", "in training: crimson", "first", "second",
        "heart, at t = 5", "an apple",
    ]  # fmt: skip
    escaping = [group("one", [pair(f'"><img>{SCRIPT}')])]
    assert alts_of(page(**content(groups=escaping)))[0] == f'"><img>{SCRIPT}'


def test_an_image_is_inside_without_loss():
    drawn = Image.effect_noise((9, 7), 50).convert("RGB")
    read = Image.open(io.BytesIO(base64.b64decode(png_uri(drawn).removeprefix("data:image/png;base64,"))))
    assert ImageChops.difference(read, drawn).getbbox() is None


def test_what_the_page_says_of_the_model_is_computed():
    read = Page(page(**content()))
    assert "of 48 x 48 pixels." in " ".join(read.of("p")[0].split())
    (note,) = [text for text in read.of("p") if "Cosine of the first and the last" in text]
    assert "0.9877" in note
    assert "does not matter" not in note
    same = Page(page(**content(naming=content()["naming"] | {"cosine": 0.995})))
    assert any("text diffusion of this model does not matter here" in " ".join(text.split()) for text in same.of("p"))


def test_the_right_answers_are_marked_and_no_other():
    assert Page(page(**content())).marked == ["✓ b", "✓ 0.10", "✓ b", "0.25"]


def test_the_table_shows_shares_in_percent_and_counts_as_they_are():
    read = Page(page(**content()))
    assert read.of("td")[-9:-1] == ["flat", "unseen", "image to text", "10", "42.5 %", "100.0 %", "5.0 %", "12"]
    assert [text for text in read.of("small") if "rank" in text] == [
        f"rank of the right name: {rank}" for rank in (7, 2)
    ]


def test_heads_of_tables_are_column_heads():
    written = page(**content())
    assert written.count('<th scope="col">') == Page(written).tags.count("th") == 8 + 3


def test_a_page_without_plots_names_the_extra():
    assert "pip install -e '.[plots]'" in Page(page(**content(plots=[]))).of("code")


def test_a_group_says_what_to_expect_of_what_it_shows():
    read = Page(page(**content()))
    assert [text for text in read.of("p") if text.endswith("so often")] == [
        "generated so often", "named so often", "generated so often"
    ]  # fmt: skip
    assert [text for text in read.of("p") if "has no such images" in text]  # of the group without any


def test_missing_content_is_refused():
    given = content()
    del given["recall"]
    with pytest.raises(UndefinedError, match="recall"):
        page(**given)
