"""The elements of all figures. Everything that is not `Markup` is escaped."""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape


Scale = Callable[[float], float]

DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 3", "1 4", "6 2 1 2 1 2")
SIZE = 4.2  # pixels, half the width of a marker
_DIAMOND = ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0))
_PLUS = ((-0.35, -1.2), (0.35, -1.2), (0.35, -0.35), (1.2, -0.35), (1.2, 0.35), (0.35, 0.35))
_PLUS += ((0.35, 1.2), (-0.35, 1.2), (-0.35, 0.35), (-1.2, 0.35), (-1.2, -0.35), (-0.35, -0.35))
# The corners of each kind of marker, in half widths. The first kind, without corners, is a circle.
SHAPES: tuple[tuple[tuple[float, float], ...], ...] = (
    (),
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
    _DIAMOND,
    _PLUS,
    ((0, 1.2), (1.15, -0.9), (-1.15, -0.9)),
    tuple(((x - y) * 0.71, (x + y) * 0.71) for x, y in _PLUS),
    ((-1.3, -0.45), (1.3, -0.45), (1.3, 0.45), (-1.3, 0.45)),
)


def tag(name: str, *inside: object, **attributes: object) -> Markup:
    """Return an element.

    `class_` stands for the attribute class, and `stroke_width` for stroke-width. An attribute that
    is None is left out.
    """
    attribute_text = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
        if value is not None
    )
    body = Markup("").join(escape(part) for part in inside)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), attribute_text, body)


def svg(width: float, height: float, title: str, *inside: Markup, **attributes: object) -> Markup:
    """Return a figure; its size is in pixels, and its title is for readers who do not see it."""
    box = f"0 0 {_plain(width)} {_plain(height)}"
    attributes = {"class_": "figure", **attributes}
    sized = {"viewBox": box, "width": width, "height": height, "role": "img", "aria_label": title}
    return tag("svg", tag("title", title), *inside, **sized, **attributes)


def text(x: float, y: float, words: object, **attributes: object) -> Markup:
    return tag("text", words, x=x, y=y, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


def marker(shape: int, x: float, y: float, size: float = SIZE, **attributes: object) -> Markup:
    """Return a marker at (x, y). The shapes start again after the last one."""
    corners = SHAPES[shape % len(SHAPES)]
    if not corners:
        return tag("circle", cx=x, cy=y, r=size, **attributes)
    points = " ".join(f"{_plain(x + size * a)},{_plain(y + size * b)}" for a, b in corners)
    return tag("polygon", points=points, **attributes)


def polyline(points: Sequence[tuple[float, float | None]], **attributes: object) -> Markup:
    """Return a line through the points, with a gap at each point whose y is None."""
    pieces, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        pieces.append(f"{pen}{_plain(x)} {_plain(y)}")
        pen = "L"
    return tag("path", d=" ".join(pieces), fill="none", **attributes)


def scale(low: float, high: float, start: float, end: float) -> Scale:
    """Return a function that maps values from `low` to `high` to pixels from `start` to `end`."""
    return lambda value: start + (value - low) / ((high - low) or 1) * (end - start)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers, from at most `low` to at least `high`."""
    span = high - low
    if span < 0.05 * max(abs(high), 0.5):  # the values are nearly equal, so widen the range
        return ticks(low - 0.1 * max(abs(low), 0.5), high + 0.1 * max(abs(high), 0.5), count)
    power = 10 ** math.floor(math.log10(span / count))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if span / (power * f) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, max(last, first + 1) + 1)]


def shorten(words: str, most: int) -> str:
    """Cut a text to at most `most` characters."""
    return words if len(words) <= most else words[: most - 1] + "…"


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return positions for labels near `wanted`, at least `gap` apart if there is room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed, last = [0.0] * len(wanted), low - gap
    for i in order:
        last = placed[i] = max(wanted[i], last + gap)
    room = high
    for i in reversed(order):
        room = placed[i] = min(placed[i], room)
        room -= gap
    return placed


def _plain(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
