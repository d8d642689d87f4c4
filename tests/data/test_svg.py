"""svg.py: rendering on a white square, and what an SVG from a package may not contain."""

import pytest
from PIL import Image

from palindiff.data.svg import MAX_LEVELS, MAX_SVG_CHARS, SVG_OPENING, SvgFault, check_svg, draw_checked_svg, draw_svg

pytest.importorskip("resvg_py", reason="needs the extra `emoji`")

BLACK = '<path d="M0 0h8v8H0z"/>'


def svg(body):
    return f'{SVG_OPENING} viewBox="0 0 8 8">{body}</svg>'


def bounding_box(image):
    return image.point(lambda value: 255 - value).getbbox()


def test_svg_that_is_not_square_is_padded_and_not_squeezed():
    def box(width, height):
        whole = f'<rect width="{width}" height="{height}" fill="black"/>'
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{whole}</svg>'.encode()

    assert bounding_box(draw_svg(box(40, 20), 32)) == (0, 8, 32, 24)
    assert bounding_box(draw_svg(box(20, 40), 32)) == (8, 0, 24, 32)
    assert bounding_box(draw_svg(box(30, 30), 32)) == (0, 0, 32, 32)


def test_drawing_is_deterministic_on_white_and_of_the_size_asked_for():
    half = svg('<path fill="red" d="M0 0h4v8H0z"/>')
    drawn = draw_checked_svg(half, 24)
    assert (drawn.mode, drawn.size) == ("RGB", (24, 24))
    assert (drawn.getpixel((4, 12)), drawn.getpixel((20, 12))) == ((255, 0, 0), (255, 255, 255))
    assert draw_checked_svg(half, 24).tobytes() == drawn.tobytes()


def test_the_current_colour_is_black():
    assert draw_checked_svg(svg(BLACK.replace("path", 'path fill="currentColor"')), 8).getpixel((4, 4)) == (0, 0, 0)


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "secret.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return path


@pytest.mark.parametrize(
    "body",
    [
        '<image href="{}" width="8" height="8"/>',
        '<image xlink:href="{}" width="8" height="8"/>',
        '<s:image xmlns:s="http://www.w3.org/2000/svg" href="{}" width="8" height="8"/>',
        '<filter id="f"><feImage href="{}"/></filter><rect width="8" height="8" filter="url(#f)"/>',
    ],
)
def test_a_file_that_a_body_names_is_not_read(body, image_file):
    named = svg(body.format(image_file))
    assert draw_svg(named.encode(), 8).getpixel((4, 4)) == (255, 0, 0)  # the renderer alone would read it
    with pytest.raises(SvgFault, match=r"^element (fe)?[iI]mage$"):
        draw_checked_svg(named, 8)


NESTED = "<g>" * 300 + BLACK + "</g>" * 300  # enough to end the process
CHAIN = BLACK.replace("path", 'path id="a0"') + "".join(
    f'<g id="a{i}"><use href="#a{i - 1}"/></g>' for i in range(1, 200)
)
BOMB = BLACK.replace("path", 'path id="a0"') + "".join(
    f'<g id="a{i}"><use href="#a{i - 1}"/><use href="#a{i - 1}"/></g>' for i in range(1, 15)
)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<script>alert(1)</script>" + BLACK, "element script"),
        ("<foreignObject/>", "element foreignObject"),
        ("<style>@import 'a.css'</style>", "element style"),
        ('<filter id="f"><feTurbulence numOctaves="1000000000"/></filter>', "element feTurbulence"),
        ('<path xmlns="http://example.org" d="M0 0"/>', "element path"),
        ('<use href="other.svg#a"/>', "reference to something outside of the SVG"),
        ('<use xlink:href="file:///etc/passwd"/>', "reference to something outside of the SVG"),
        ('<path fill="url(http://example.org/a.svg#a)" d="M0 0"/>', "reference to something outside of the SVG"),
        ("<path style=\"fill: url( 'a.svg#a' )\" d='M0 0'/>", "reference to something outside of the SVG"),
        (NESTED, "elements nested or referred to too deeply"),
        (CHAIN, "elements nested or referred to too deeply"),
        ('<g id="a"><use href="#a"/></g>', "elements nested or referred to too deeply"),
        (BOMB * 10, "too many elements"),
        ("<path", "broken XML"),
        ("</svg><svg>", "broken XML"),
        ("<!DOCTYPE svg>", "broken XML"),
        ("\ud800", "broken XML"),
        ("", "nothing to see on white"),
        ('<path fill="#fff" d="M0 0h8v8H0z"/>', "nothing to see on white"),
        ('<path d="M0 0"/>' * (MAX_SVG_CHARS // 10), "SVG too long"),
    ],
)
def test_what_is_not_drawn_has_a_reason(body, reason):
    with pytest.raises(SvgFault, match=f"^{reason}$"):
        draw_checked_svg(svg(body), 8)


def test_references_within_an_svg_are_drawn():
    gradient = '<linearGradient id="g"><stop stop-color="#00f"/></linearGradient>'
    body = f'{gradient}<defs><path id="p" fill="url(#g)" d="M0 0h8v8H0z"/></defs><use xlink:href="#p"/>'
    assert draw_checked_svg(svg(body), 8).getpixel((4, 4)) == (0, 0, 255)


def test_levels_up_to_the_limit_are_drawn_without_harm():
    deep = "<g>" * (MAX_LEVELS - 1) + BLACK + "</g>" * (MAX_LEVELS - 1)
    assert draw_checked_svg(svg(deep), 8).getpixel((4, 4)) == (0, 0, 0)
    with pytest.raises(SvgFault, match="too deeply"):
        check_svg(svg(f"<g>{deep}</g>"))
