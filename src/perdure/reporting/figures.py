"""The figures of the report, as SVG.

Each can be read without its colours, by labels next to the marks, markers, dashes and numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from perdure.reporting.spread import Spread
from perdure.reporting.svg import (
    DASHES,
    apart,
    line,
    marker,
    polyline,
    scale,
    shorten,
    svg,
    tag,
    text,
    ticks,
)


WIDTH = 340
CHARACTER = 6.2  # pixels, the width of a letter at the size of the labels
WIDE_CHARACTER = 7.0  # the same in a bold or wide font, where a label must not meet another


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot. A point without a label is one of several lineages of a method."""

    x: float
    y: float
    shape: int
    label: str = ""


def whiskers(title: str, rows: Sequence[tuple[str, Spread, Sequence[float]]]) -> Markup:
    """Draw one row per method: its mean, its interval if any, and its lineages as small strokes.

    Args:
        title: the title, for readers who do not see the figure.
        rows: the label of each method, its spread, and the values of its lineages.
    """
    candidates = [v for _, spread, values in rows for v in (spread.low, spread.high, *values)]
    known = [value for value in candidates if value is not None]
    marks = _score_ticks(known)
    left = min(150, max([len(label) for label, *_ in rows]) * CHARACTER + 14)
    height, right = 26 * len(rows) + 34, WIDTH - 42
    x = scale(marks[0], marks[-1], left, right)
    parts = [_tick_x(x(mark), height - 22, mark, 4) for mark in marks]
    for i, (label, spread, values) in enumerate(rows):
        y = 16 + 26 * i
        short_label = shorten(label, int((left - 12) / CHARACTER))
        parts.append(text(left - 10, y + 4, short_label, class_="label end"))
        if spread.mean is None:
            parts.append(text(left + 4, y + 4, "unknown", class_="faint"))
            continue
        if spread.low is not None and spread.high is not None:
            parts.append(line(x(spread.low), y, x(spread.high), y, class_="whisker"))
            ends = (spread.low, spread.high)
            parts += [line(x(v), y - 4, x(v), y + 4, class_="whisker") for v in ends]
        if len(values) > 1:
            parts += [line(x(v), y + 5, x(v), y + 9, class_="stroke") for v in values]
        parts.append(marker(0, x(spread.mean), y, class_=_lead("dot", i)))
        parts.append(text(WIDTH - 2, y + 4, f"{spread.mean:.3f}", class_="number end"))
    return svg(WIDTH, height, title, *parts)


def scatter(
    title: str, points: Sequence[Point], x_name: str, y_name: str, diagonal: bool = False
) -> Markup:
    """Draw labelled points. The upward axis is of scores, from 0 to 1.

    With `diagonal`, both axes are of scores, and the line x = y is drawn.
    """
    height, left, top, bottom = 290, 40, 22, 250
    right = WIDTH - (80 if diagonal else 12)  # with a diagonal, most labels are on the right
    xs, ys = [p.x for p in points], [p.y for p in points]
    if diagonal:
        xs = ys = [*xs, *ys]
    across, up = _score_ticks(xs) if diagonal else ticks(0, max(xs)), _score_ticks(ys)
    x = scale(across[0], across[-1], left, right)
    y = scale(up[0], up[-1], bottom, top)
    parts = [_tick_x(x(mark), bottom, mark, top) for mark in across]
    parts += [_tick_y(y(mark), left, mark, right) for mark in up]
    parts.append(text(right, height - 4, x_name, class_="axis end"))
    parts.append(text(2, 11, y_name, class_="axis"))
    if diagonal:
        parts.append(line(left, bottom, right, top, class_="diagonal"))
    parts += [marker(p.shape, x(p.x), y(p.y), size=3, class_="ring") for p in points if not p.label]
    marks = [(x(p.x), y(p.y)) for p in points]
    taken: list[Box] = []  # what the labels so far cover
    for p in sorted((p for p in points if p.label), key=lambda p: p.y):
        label, at = shorten(p.label, 24), (x(p.x), y(p.y))
        box = _free_box(at, len(label) * WIDE_CHARACTER, marks, taken, low=top, high=bottom)
        taken.append(box)
        is_left, middle = box.right < at[0], (box.top + box.bottom) / 2
        side, label_x = ("end ", box.right) if is_left else ("", box.left)
        if abs(middle - at[1]) > 7:
            parts.append(line(*at, label_x, middle, class_="leader"))
        parts.append(text(label_x, middle + 4, label, class_=f"{side}{_lead('label', p.shape)}"))
    parts += [
        marker(p.shape, x(p.x), y(p.y), size=4.6, class_=_lead("dot", p.shape))
        for p in points
        if p.label
    ]
    return svg(WIDTH, height, title, *parts)


def trend(
    title: str,
    lines: Sequence[tuple[str, Sequence[float | None]]],
    learned_at: int,
    top_score: float = 1.0,
    numbers: Sequence[int] | None = None,
) -> Markup:
    """Draw a task's score after each stage, one line per method.

    A vertical line marks the stage that learned the task.

    Args:
        title: the title, for readers who do not see the figure.
        lines: the label of each line, and its scores, that of the base first.
        learned_at: which of the scores is that of the stage that learned the task.
        top_score: where the axis of the scores ends.
        numbers: the number of the stage of each score, if they do not count up from 0.
    """
    left, top, bottom, height = 26, 12, 112, 134
    width = 240 + min(max(len(label) for label, _ in lines) * CHARACTER, 100)
    last = max(len(values) for _, values in lines) - 1
    x, y = scale(0, max(last, 1), left + 8, 190), scale(0, top_score, bottom, top)
    parts = [_tick_y(y(mark), left, mark, 196) for mark in (0, top_score / 2, top_score)]
    every = -(-(last + 1) // 9)  # at most nine stages are labelled
    parts += [
        text(x(stage), bottom + 14, numbers[stage] if numbers else stage, class_="tick middle")
        for stage in range(0, last + 1, every)
    ]
    parts.append(line(x(learned_at), top, x(learned_at), bottom, class_="learned"))
    ends = []
    for i, (label, values) in enumerate(lines):
        points = [(x(j), None if v is None else y(v)) for j, v in enumerate(values)]
        dash = DASHES[i % len(DASHES)] or None
        parts.append(polyline(points, class_=_lead("line", i), stroke_dasharray=dash))
        known = [(px, py, j) for j, (px, py) in enumerate(points) if py is not None]
        marked = {learned_at, known[-1][2] if known else -1} if last > 6 else range(last + 1)
        dot = _lead("dot", i)
        parts += [marker(i, px, py, size=3.2, class_=dot) for px, py, j in known if j in marked]
        if known:
            px, py, j = known[-1]
            ends.append((i, px, py, f"{values[j]:.2f} {shorten(label, 16)}".strip()))
    levels = apart([py + 4 for _, _, py, _ in ends], gap=12, low=top + 4, high=bottom + 4)
    for (i, px, _, words), level in zip(ends, levels, strict=True):
        parts.append(text(px + 8, level, words, class_=_lead("label", i)))
    return svg(width, height, title, *parts)


def heat(
    title: str, rows: Sequence[str], columns: Sequence[str], cells: dict, highest: float
) -> Markup:
    """Draw a heat map of shares, in per cent.

    Args:
        title: the title, for readers who do not see the figure.
        rows: the names of the rows.
        columns: the names of the columns.
        cells: the shares, from 0 to 1, by (row, column).
        highest: the share with the strongest background.
    """
    left = max([len(row) for row in rows]) * CHARACTER + 10
    wide = max(40.0, max([len(column) for column in columns]) * 5.6 + 6)
    parts = [
        text(left + wide * (j + 0.5), 12, column, class_="tick middle")
        for j, column in enumerate(columns)
    ]
    for i, row in enumerate(rows):
        y = 18 + 20 * i
        parts.append(text(left - 6, y + 14, row, class_="tick end"))
        for j, column in enumerate(columns):
            x, value = left + wide * j, cells.get((row, column))
            box = {"x": x, "y": y, "width": wide - 2, "height": 18}
            if value is None:
                parts.append(text(x + wide / 2 - 1, y + 13, "-", class_="faint middle"))
                continue
            strength = f"{0.5 * value / (highest or 1):.3f}"
            parts.append(tag("rect", **box, class_="heat", fill_opacity=strength))
            percent = f"{100 * value:.0f}"
            parts.append(text(x + wide / 2 - 1, y + 13, percent, class_="number middle"))
    return svg(left + wide * len(columns), 20 + 20 * len(rows), title, *parts)


def shares(title: str, rounds: Sequence[Sequence[float]], names: Sequence[str]) -> Markup:
    """Draw the shares of the named cases over the rounds, one line per case."""
    left, top, bottom, end = 34, 12, 112, 230
    up = ticks(0, max(max(case[: len(names)]) for case in rounds), 3)
    x = scale(1, max(len(rounds), 2), left + 8, end - 8)
    y = scale(0, up[-1], bottom, top)
    parts = [_tick_y(y(mark), left, f"{100 * mark:g} %", end) for mark in up]
    for at in sorted({1, len(rounds)}):
        parts.append(text(x(at), bottom + 14, at, class_="tick middle"))
    for i, _ in enumerate(names):
        points = [(x(n), y(case[i])) for n, case in enumerate(rounds, 1)]
        dash = DASHES[i] or None
        parts.append(polyline(points, class_=_lead("line", i), stroke_dasharray=dash))
        last_x, last_y = points[-1]
        parts.append(marker(i, last_x, last_y, size=3.2, class_=_lead("dot", i)))
    label_levels = [y(rounds[-1][i]) + 4 for i in range(len(names))]
    levels = apart(label_levels, gap=12, low=top + 4, high=bottom + 4)
    for i, (name, level) in enumerate(zip(names, levels, strict=True)):
        parts.append(text(end, level, name, class_=_lead("label", i)))
    return svg(end + 12 + max(map(len, names)) * CHARACTER, 130, title, *parts)


def dev_curve(
    title: str, points: Sequence[tuple[int, float | None]], best: int | None, is_score: bool
) -> Markup:
    """Draw what was measured on dev rows over the optimizer steps; the best value has a number.

    Args:
        title: the title, for readers who do not see the figure.
        points: (step, value), None for a value that was not finite.
        best: the step of the best value, None if there is none.
        is_score: whether the values are scores, whose axis goes from 0 to 1, or losses.
    """
    left, top, bottom, end = 34, 20, 112, 230
    known = {step: value for step, value in points if value is not None}
    highest = max(known.values(), default=1.0)
    up = _score_ticks(list(known.values())) if is_score else ticks(0, highest or 1.0, 3)
    x, y = scale(0, points[-1][0], left, end - 8), scale(up[0], up[-1], bottom, top)
    parts = [_tick_y(y(mark), left, mark, end) for mark in up]
    for step in sorted({0, points[-1][0]}):
        parts.append(text(x(step), bottom + 14, step, class_="tick middle"))
    drawn = [(x(step), None if value is None else y(value)) for step, value in points]
    parts.append(polyline(drawn, class_="line lead"))
    if best is not None:
        at = (x(best), y(known[best]))
        parts.append(marker(0, *at, size=3.2, class_="dot lead"))
        words = f"{known[best]:.3g} at {best}"
        parts.append(text(at[0], at[1] - 8, words, class_="label lead middle"))
    return svg(end + 40, 130, title, *parts)


def profile(title: str, names: Sequence[str], lines: Sequence[tuple[str, list[float]]]) -> Markup:
    """Draw values between -1 and 1 over the layers of a model.

    Args:
        title: the title, for readers who do not see the figure.
        names: the names of the layers, in order.
        lines: the name of each line, and its value in each layer.
    """
    left, top, bottom, end = 34, 12, 112, 230
    lowest = min(0.0, *(value for _, values in lines for value in values))
    low = -1.0 if lowest < -0.5 else -0.5 if lowest < 0 else 0.0
    x, y = scale(0, max(len(names) - 1, 1), left, end - 8), scale(low, 1.0, bottom, top)
    parts = [_tick_y(y(mark), left, mark, end) for mark in dict.fromkeys((low, 0.0, 0.5, 1.0))]
    for i in sorted({0, len(names) - 1}):
        parts.append(text(x(i), bottom + 14, names[i], class_="tick middle"))
    ends = []
    for i, (_, values) in enumerate(lines):
        points = [(x(j), y(value)) for j, value in enumerate(values)]
        dash = DASHES[i % len(DASHES)] or None
        parts.append(polyline(points, class_=_lead("line", i), stroke_dasharray=dash))
        if len(names) <= 24:  # markers would touch each other
            parts += [marker(i, *point, size=3.2, class_=_lead("dot", i)) for point in points]
        ends.append(points[-1][1] + 4)
    levels = apart(ends, gap=12, low=top + 4, high=bottom + 4)
    for i, ((label, _), level) in enumerate(zip(lines, levels, strict=True)):
        parts.append(text(end, level, label, class_=_lead("label", i)))
    return svg(end + 90, 134, title, *parts)


def _score_ticks(scores: Sequence[float]) -> list[float]:
    """Return the ticks of an axis of scores: from 0 to 1, so that noise does not look large.

    The axis is longer if a metric has scores outside of that.
    """
    return ticks(min([0.0, *scores]), max([1.0, *scores]))


class Box(NamedTuple):
    """A part of a figure, in pixels; the top has the smaller number."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def _free_box(
    at: tuple[float, float],
    width: float,
    marks: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    low: float,
    high: float,
) -> Box:
    """Return where the label of the mark `at` stands, so that it covers no mark and no label.

    It is as near as possible, to the right or to the left. If there is no such place, it is where
    it covers the fewest.
    """
    (x, y), half = at, 6.5  # half the height of a label
    covered = [*taken, *(Box(mx - 4, my - 4, mx + 4, my + 4) for mx, my in marks)]
    lefts = [left for left in (x + 9, x - 9 - width) if 0 <= left <= WIDTH - width]
    shifts = [sign * step * half for step in range(36) for sign in (-1, 1)]
    boxes = [
        Box(left, y + shift - half, left + width, y + shift + half)
        for shift in shifts
        for left in lefts or [max(WIDTH - width, 0)]
        if low <= y + shift <= high
    ]
    return min(boxes, key=lambda box: sum(box.meets(other) for other in covered))


def _lead(kind: str, number: int) -> str:
    """Return the CSS classes of a mark: the first is coloured, the others look like the text."""
    return f"{kind} lead" if number == 0 else kind


def _tick_x(x: float, bottom: float, mark: float, top: float) -> Markup:
    name = text(x, bottom + 15, f"{mark:g}", class_="tick middle")
    return line(x, top, x, bottom, class_="grid") + name


def _tick_y(y: float, left: float, mark: object, right: float) -> Markup:
    name = f"{mark:g}" if isinstance(mark, int | float) else mark
    words = text(left - 4, y + 4, name, class_="tick end")
    return line(left, y, right, y, class_="grid") + words
