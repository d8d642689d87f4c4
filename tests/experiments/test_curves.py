"""curves.py: a drawing that parses, lines where the numbers are, and a note where there is nothing to draw."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from palindiff.experiments.curves import HEIGHT, MARGIN, WIDTH, curves

LOG = [{"step": 10, "loss": 4.0}, {"step": 10, "told": 0.5}, {"step": 20, "loss": 3.0}, {"step": 40, "loss": 2.0}]


def points_of(svg, number=0):
    """The corners of a line, as pairs of pixels."""
    line = ElementTree.fromstring(svg).findall("polyline")[number]
    return [tuple(float(value) for value in pair.split(",")) for pair in line.get("points").split()]


def texts_of(svg):
    return [text.text for text in ElementTree.fromstring(svg).findall("text")]


def test_a_line_runs_through_the_log_s_numbers():
    points = points_of(curves(LOG, ["loss"], "loss"))
    left, right, top, bottom = MARGIN, WIDTH - MARGIN, MARGIN, HEIGHT - MARGIN
    assert points == [(left, top), (left + round((right - left) / 3, 1), (top + bottom) / 2), (right, bottom)]


def test_ends_title_and_last_values_are_told():
    told = texts_of(curves(LOG, ["loss"], "generation loss"))
    assert told[0] == "generation loss"
    assert {"4", "2", "step 10", "40", "loss: 2"} <= set(told)


def test_who_does_not_see_it_is_told_title_and_last_values():
    log = [{"step": step, "seen": float(step), "not_seen": 10.0 - step} for step in range(11)]
    drawing = ElementTree.fromstring(curves(log, ["seen", "not_seen"], 'a "b" <i>'))
    assert drawing.get("role") == "img"
    assert drawing.get("aria-label") == 'a "b" <i>; seen: 10; not seen: 0'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_left_out(value):
    broken = [LOG[0], {"step": 15, "loss": value}, *LOG[1:], {"step": 50, "loss": value}]
    assert curves(broken, ["loss"], "loss") == curves(LOG, ["loss"], "loss")
    only = [{"step": step, "loss": value} for step in range(3)]
    assert curves(only, ["loss"], "the loss") == "<p>the loss: too short to draw.</p>"


def test_several_lines_share_their_axes_and_differ_in_colour():
    log = [{"step": step, "seen": float(step), "image_to_text": 10.0 - step} for step in range(11)]
    svg = curves(log, ["seen", "image_to_text", "absent"], "both")
    lines = ElementTree.fromstring(svg).findall("polyline")
    assert len({line.get("stroke") for line in lines}) == len(lines) == 2
    assert points_of(svg, 0)[0][1] == points_of(svg, 1)[-1][1] == HEIGHT - MARGIN
    assert "image to text: 0" in texts_of(svg)


def test_names_and_titles_are_text():
    log = [{"step": step, "a<b & c": 1.0} for step in range(2)]
    assert {"<i>t</i> & u", "a<b & c: 1"} <= set(texts_of(curves(log, ["a<b & c"], "<i>t</i> & u")))
    assert "&lt;i&gt;" in curves([], ["a"], "<i>t</i>")


def test_a_constant_stays_within_the_drawing():
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points_of(curves(LOG[:1] * 2, ["loss"], "loss")))


@pytest.mark.parametrize("log", [[], LOG[:1], [{"step": 1, "told": 1.0}, {"step": 2, "told": 1.0}]])
def test_fewer_than_two_numbers_are_a_note(log):
    assert curves(log, ["loss"], "the loss") == "<p>the loss: too short to draw.</p>"
