"""page.py: every text stays text, every tag is closed, every image is inside."""

import base64
import html
import io
import re

import pytest
from PIL import Image, ImageChops

from palindiff.experiments.demo_page import figures, heading, html_table, img_tag, names, note, page, table
from toys.page import Page, assert_self_contained

SCRIPT = "<script>alert('a')</script> & \"b\""
RED = Image.new("RGB", (5, 4), "red")


def test_a_page_is_well_formed_and_asks_for_nothing():
    body = note("n") + heading("h") + figures([RED, RED], ["a", "b"]) + table([{"k": 1}], {"k": "K"})
    read = assert_self_contained(page("title", "<p>lead</p>", [("one", body), ("two", "<p>text</p>")]))
    assert read.of("h1") == read.of("title") == ["title"]
    assert read.of("h2") == ["one", "two"]
    assert read.of("p") == ["lead", "n", "text"]
    assert len(read.references) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda text: page(text, "", []),
        lambda text: page("title", "", [(text, "")]),
        note,
        heading,
        lambda text: figures([RED], [text]),
        lambda text: figures([RED], ["a"], "row", alts=[text]) + note(text),
        lambda text: table([{"k": text}], {"k": "K"}),
        lambda text: table([{"k": 1}], {"k": text}),
        lambda text: html_table([text], [["<b>cell</b>"]]),
        lambda text: names([(text, 0.5)], "other"),
    ],
)
def test_text_never_becomes_a_tag(make):
    html = make(SCRIPT)
    assert "script" not in Page(html).tags
    assert SCRIPT in [text for _, text in Page(f"<div>{html}</div>").texts]


def alts_of(written):
    """What stands for each image where it is not seen; raises if an image has nothing."""
    alts = re.findall(r'<img alt="([^"]+)" src=', written)
    assert len(alts) == written.count("<img")
    return [html.unescape(alt) for alt in alts]


def test_every_image_tells_who_does_not_see_it_what_it_is():
    assert alts_of(img_tag(RED, SCRIPT)) == [SCRIPT]
    assert alts_of(figures([RED, RED], ["a", SCRIPT])) == ["a", SCRIPT]
    assert alts_of(figures([RED, RED], ["0.9", "0.1"], "row", 1, ["a", SCRIPT])) == ["a", SCRIPT]
    assert "script" not in Page(img_tag(RED, f'"><img>{SCRIPT}')).tags


def test_an_image_is_inside_without_loss():
    drawn = Image.effect_noise((9, 7), 50).convert("RGB")
    (reference,) = Page(img_tag(drawn, "noise")).references
    read = Image.open(io.BytesIO(base64.b64decode(reference.removeprefix("data:image/png;base64,"))))
    assert ImageChops.difference(read, drawn).getbbox() is None


def test_the_right_answer_is_marked_and_no_other():
    assert Page(figures([RED] * 3, ["a", "b", "a"], "row", right=1)).marked == ["✓ b"]
    assert Page(figures([RED] * 3, ["a", "b", "c"])).marked == []
    assert Page(f"<div>{names([('a', 0.5), ('b', 0.25)], 'b')}</div>").marked == ["✓ b", "0.25"]
    assert Page(figures([RED], [SCRIPT], "row", right=0)).marked == [f"✓ {SCRIPT}"]
    assert Page(f"<div>{names([(SCRIPT, 0.5)], SCRIPT)}</div>").marked == [f"✓ {SCRIPT}", "0.50"]


def test_as_many_captions_as_images_are_expected():
    with pytest.raises(ValueError, match="shorter"):
        figures([RED, RED], ["a"])
    with pytest.raises(ValueError, match="shorter"):
        figures([RED, RED], ["a", "b"], alts=["a"])


def test_a_table_shows_shares_in_percent_and_counts_as_they_are():
    rows = [{"style": "flat", "k": 10, "recall": 0.4251, "left out": 1}, {"style": None, "k": 1, "recall": 1.0}]
    read = Page(table(rows, {"style": "Style", "recall": "Recall", "k": "K"}))
    assert read.of("th") == ["Style", "Recall", "K"]
    assert read.of("td") == ["flat", "42.5 %", "10", "None", "100.0 %", "1"]


def test_heads_of_tables_say_that_they_stand_over_columns():
    for written in (table([{"k": 1, "n": 2}], {"k": "K", "n": "N"}), html_table(["K", "N"], [["1", "2"]])):
        assert written.count('<th scope="col">') == Page(written).tags.count("th") == 2
