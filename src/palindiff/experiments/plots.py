"""Line plots of named columns as SVG, for a page or a file of its own, drawn with matplotlib (extra `plots`)."""

import html
import io
import math
import re
from collections.abc import Sequence
from typing import Any

Line = dict[str, float]

SIZE_INCHES = (4.4, 2.7)
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "palindiff",  # the same log gives the same SVG
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 8,
}
NOT_FOR_PAGES = re.compile(r' id="[^"]*"|<defs>.*?</defs>', re.DOTALL)  # ids that repeat, a style for all of a page
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def line_plot(log: Sequence[Line], names: Sequence[str], title: str, x: str = "step") -> str:
    """Plot named columns of a log against another one; title and last values are also the drawing's label.

    Values that are not finite are left out.

    Returns: an `<svg>` element without references; a paragraph if no column has two points.
    Raises: ModuleNotFoundError if matplotlib is not installed.
    """
    points = {
        name: [(line[x], line[name]) for line in log if math.isfinite(line.get(name, math.nan))] for name in names
    }
    series = {name: found for name, found in points.items() if len(found) > 1}
    if not series:
        return f"<p>{html.escape(title)}: fewer than two values in the log.</p>"
    labels = [f"{name.replace('_', ' ')}: {found[-1][1]:.3g}" for name, found in series.items()]
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=x.replace("_", " "))
        for label, found in zip(labels, series.values(), strict=True):
            axes.plot(*zip(*found, strict=True), label=label, clip_on=False)
        axes.grid(alpha=0.3, clip_on=False)
        axes.tick_params(length=0)
        axes.legend(frameon=False)
        figure.savefig(stream, format="svg", metadata=NO_METADATA)
    label = html.escape("; ".join([title, *labels]))
    svg = stream.getvalue()
    svg = NOT_FOR_PAGES.sub("", svg[svg.index("<svg") :])
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
