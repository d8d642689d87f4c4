"""plots.py: an SVG without references, the log's numbers in it, a note where there is nothing to plot."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from palindiff.experiments.plots import line_plot

pytest.importorskip("matplotlib", reason="needs the extra `plots`")

LOG = [{"step": 10, "loss": 4.0}, {"step": 10, "other": 0.5}, {"step": 20, "loss": 3.0}, {"step": 40, "loss": 2.0}]
SVG = "{http://www.w3.org/2000/svg}"


def texts_of(svg):
    return [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def lines_of(svg):
    """The plotted lines as (colour, corners in pixels): they alone are drawn in matplotlib's colour cycle."""
    found = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        colour = re.search(r"stroke: (#[0-9a-f]{6})", path.get("style", ""))
        corners = [tuple(map(float, pair)) for pair in re.findall(r"[ML] (\S+) (\S+)", path.get("d"))]
        if colour and colour[1] in ("#1f77b4", "#ff7f0e") and not is_legend(corners):
            found.append((colour[1], corners))
    return found


def is_legend(corners):
    return len({y for _, y in corners}) == 1 and len(corners) == 3


def test_a_line_runs_through_the_log_s_numbers():
    ((_, points),) = lines_of(line_plot(LOG, ["loss"], "loss"))
    (left, top), (middle, half), (right, bottom) = points
    assert middle - left == pytest.approx((right - left) / 3, abs=1e-3)  # pixels are printed with six decimals
    assert half == pytest.approx((top + bottom) / 2, abs=1e-3)
    assert (left < right, top < bottom) == (True, True)


def test_title_axis_and_last_values_are_text():
    found = texts_of(line_plot(LOG, ["loss"], "generation loss"))
    assert {"generation loss", "step", "loss: 2", "10", "40"} <= set(found)


def test_the_drawing_is_labelled_with_title_and_last_values():
    log = [{"step": step, "seen": float(step), "not_seen": 10.0 - step} for step in range(11)]
    drawing = ElementTree.fromstring(line_plot(log, ["seen", "not_seen"], 'a "b" <i>'))
    assert drawing.get("role") == "img"
    assert drawing.get("aria-label") == 'a "b" <i>; seen: 10; not seen: 0'


def test_the_drawing_refers_to_nothing_and_is_the_same_each_time():
    svg = line_plot(LOG, ["loss"], "loss")
    assert svg == line_plot(LOG, ["loss"], "loss")
    assert not re.search(r"href|url\(| id=|<style|<metadata|<image", svg)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_left_out(value):
    broken = [LOG[0], {"step": 15, "loss": value}, *LOG[1:], {"step": 50, "loss": value}]
    assert line_plot(broken, ["loss"], "loss") == line_plot(LOG, ["loss"], "loss")
    only = [{"step": step, "loss": value} for step in range(3)]
    assert line_plot(only, ["loss"], "the loss") == "<p>the loss: fewer than two values in the log.</p>"


def test_several_lines_share_their_axes_and_differ_in_colour():
    log = [{"step": step, "seen": float(step), "image_to_text": 10.0 - step} for step in range(11)]
    svg = line_plot(log, ["seen", "image_to_text", "absent"], "both")
    (first, rising), (second, falling) = lines_of(svg)
    assert first != second
    assert rising[0][1] == falling[-1][1] > rising[-1][1] == falling[0][1]  # y grows downwards
    assert "image to text: 0" in texts_of(svg)


def test_names_and_titles_are_text():
    log = [{"step": step, "a<b & $c$": 1.0} for step in range(2)]
    assert {"<i>t</i> & u", "a<b & $c$: 1"} <= set(texts_of(line_plot(log, ["a<b & $c$"], "<i>t</i> & u")))
    assert "&lt;i&gt;" in line_plot([], ["a"], "<i>t</i>")


def test_a_constant_stays_within_the_drawing():
    svg = line_plot([LOG[0], LOG[0] | {"step": 20}], ["loss"], "loss")
    _, _, width, height = map(float, ElementTree.fromstring(svg).get("viewBox").split())
    ((_, points),) = lines_of(svg)
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


@pytest.mark.parametrize("log", [[], LOG[:1], [{"step": 1, "other": 1.0}, {"step": 2, "other": 1.0}]])
def test_fewer_than_two_numbers_are_a_note(log):
    assert line_plot(log, ["loss"], "the loss") == "<p>the loss: fewer than two values in the log.</p>"
