"""SVG to pixels, and what an SVG that others wrote may contain.

Here: rendering, and the check of SVG text from an icon package. Not here: which SVG files there are
(`emoji_styles.py`), the SVG of an icon (`icon_sets.py`). The renderer reads image files that an SVG names, and deeply
nested elements end its process. So text from a package is checked first: only elements that draw shapes, and
references only within the SVG.
"""

import io
import re
from xml.etree import ElementTree

from PIL import Image

from palindiff.data.emoji_extra import import_package

MAX_SVG_CHARS = 2_000_000
MAX_LEVELS = 32  # of nested elements, with those that they refer to
MAX_ELEMENTS = 100_000  # each counted wherever something refers to it
SVG_NAMESPACE = "http://www.w3.org/2000/svg"
SVG_OPENING = f'<svg xmlns="{SVG_NAMESPACE}" xmlns:xlink="http://www.w3.org/1999/xlink"'

_SHAPES = "circle ellipse line path polygon polyline rect text tspan"
_GROUPS = "svg g defs symbol use clipPath mask marker pattern linearGradient radialGradient stop title desc"
_FILTERS = (
    "filter feBlend feColorMatrix feComponentTransfer feComposite feDropShadow feFlood feFuncA feFuncB feFuncG feFuncR"
    " feGaussianBlur feMerge feMergeNode feOffset feTile"
)
_STILL = "animate animateMotion animateTransform mpath set"  # not rendered: an image shows the first state
_ELEMENTS = set(f"{_SHAPES} {_GROUPS} {_FILTERS} {_STILL}".split())
_URL = re.compile(r"url\(\s*['\"]?([^'\")]*)")


class SvgFault(ValueError):
    """An SVG that is not drawn; its message is a short reason, such as `element image`."""


def draw_svg(svg: bytes, size_px: int) -> Image.Image:
    """Render an SVG on white, centred in a square of `size_px`; other shapes are padded."""
    resvg = import_package("resvg_py")
    view_box = re.search(rb'viewBox="[-\d. ]+ ([\d.]+) +([\d.]+) *"', svg)
    width, height = map(float, view_box.groups()) if view_box else (1, 1)
    scale = {"width": size_px} if width >= height else {"height": size_px}
    png = resvg.svg_to_bytes(svg_string=svg.decode(), skip_system_fonts=True, **scale)
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    square = Image.new("RGBA", (size_px, size_px), "white")
    square.alpha_composite(drawn, ((size_px - drawn.width) // 2, (size_px - drawn.height) // 2))
    return square.convert("RGB")


def draw_checked_svg(svg: str, size_px: int) -> Image.Image:
    """Render an SVG that others wrote, after `check_svg`.

    Raises: SvgFault if the check or the renderer refuses it, or it shows nothing.
    """
    check_svg(svg)
    try:
        drawn = draw_svg(svg.encode(), size_px)
    except ValueError as error:
        raise SvgFault("refused by the renderer") from error
    if drawn.tobytes().count(255) == 3 * size_px**2:
        raise SvgFault("nothing to see on white")
    return drawn


def check_svg(svg: str) -> None:
    """Check that an SVG only draws: known elements, no reference to anything outside of it, bounded size and depth.

    Source: ours.
    Raises: SvgFault.
    """
    if len(svg) > MAX_SVG_CHARS:
        raise SvgFault("SVG too long")
    try:
        root = ElementTree.fromstring(svg)
    except (ElementTree.ParseError, ValueError) as error:  # ValueError: half a surrogate pair
        raise SvgFault("broken XML") from error
    by_id = {}
    for element in root.iter():
        namespace, _, name = str(element.tag).rpartition("}")
        if namespace != f"{{{SVG_NAMESPACE}" or name not in _ELEMENTS:
            raise SvgFault(f"element {name[:30]}")
        if any(not target.startswith("#") for target in _targets(element)):
            raise SvgFault("reference to something outside of the SVG")
        by_id[f"#{element.get('id')}"] = element
    if _num_elements(root, by_id, 0, {})[1] > MAX_ELEMENTS:
        raise SvgFault("too many elements")


def _targets(element: ElementTree.Element) -> list[str]:
    """List what an element's attributes refer to."""
    links = [value.strip() for key, value in element.items() if key.rpartition("}")[2] == "href"]
    return links + [target.strip() for value in element.attrib.values() for target in _URL.findall(value)]


def _num_elements(
    element: ElementTree.Element,
    by_id: dict[str, ElementTree.Element],
    level: int,
    known: dict[ElementTree.Element, tuple[int, int]],
) -> tuple[int, int]:
    """Count the levels and elements below one, those that it refers to among them.

    Raises: SvgFault if levels exceed MAX_LEVELS, as they do where an element refers to itself.
    """
    levels, number = known.get(element, (0, 0))
    if level + levels > MAX_LEVELS:
        raise SvgFault("elements nested or referred to too deeply")
    if not number:
        below = [*element, *(by_id[target] for target in _targets(element) if target in by_id)]
        counts = [_num_elements(each, by_id, level + 1, known) for each in below]
        levels, number = 1 + max((each for each, _ in counts), default=0), 1 + sum(each for _, each in counts)
        known[element] = levels, number
    return levels, number
