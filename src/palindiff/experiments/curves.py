"""Curves of a training log as one small SVG, drawn by hand so that a page needs no plotting library."""

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT, MARGIN = 360, 200, 44
COLOURS = ("#2563eb", "#dc2626", "#059669", "#9333ea")

Line = dict[str, float]


def curves(log: Sequence[Line], names: Sequence[str], title: str) -> str:
    """Draw named columns of a log against the step; each line's ends are labelled with its values.

    Values that are not finite have no place on a drawing and are left out. Its label tells who does not see it the
    last values.

    Returns: an `<svg>` element; a note instead of a plot if fewer than two points exist.
    """
    series = {
        name: [(line["step"], line[name]) for line in log if name in line and math.isfinite(line[name])]
        for name in names
    }
    series = {name: points for name, points in series.items() if len(points) > 1}
    if not series:
        return f"<p>{html.escape(title)}: too short to draw.</p>"
    steps = [step for points in series.values() for step, _ in points]
    values = [value for points in series.values() for _, value in points]
    low, high = min(values), max(values) + 1e-9
    first, last = min(steps), max(steps)

    def x_of(step: float) -> float:
        return MARGIN + (step - first) / max(last - first, 1) * (WIDTH - 2 * MARGIN)

    def y_of(value: float) -> float:
        return HEIGHT - MARGIN - (value - low) / (high - low) * (HEIGHT - 2 * MARGIN)

    drawn = [_axes(title, first, last, low, high)]
    lasts = [f"{name.replace('_', ' ')}: {points[-1][1]:.3g}" for name, points in series.items()]
    for number, (told, points) in enumerate(zip(lasts, series.values(), strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x_of(step):.1f},{y_of(value):.1f}" for step, value in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        y = MARGIN - 4 + 13 * number
        drawn.append(
            f'<text x="{WIDTH - MARGIN}" y="{y}" fill="{colour}" text-anchor="end" font-size="11">'
            f"{html.escape(told)}</text>"
        )
    label = html.escape("; ".join([title, *lasts]))
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
    return f'<svg {size} role="img" aria-label="{label}">{"".join(drawn)}</svg>'


def _axes(title: str, first: float, last: float, low: float, high: float) -> str:
    bottom, right = HEIGHT - MARGIN, WIDTH - MARGIN
    labels = [
        (MARGIN - 6, MARGIN + 4, "end", f"{high:.3g}"),
        (MARGIN - 6, bottom, "end", f"{low:.3g}"),
        (MARGIN, bottom + 16, "start", f"step {first:.0f}"),
        (right, bottom + 16, "end", f"{last:.0f}"),
    ]
    texts = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="11" fill="#555">{html.escape(text)}</text>'
        for x, y, anchor, text in labels
    )
    frame = f'<path d="M{MARGIN},{MARGIN} V{bottom} H{right}" fill="none" stroke="#bbb"/>'
    return f'<text x="{MARGIN}" y="18" font-size="13" font-weight="600">{html.escape(title)}</text>{frame}{texts}'
