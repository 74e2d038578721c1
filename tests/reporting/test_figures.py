"""The figures: labels that do not collide, and axes of scores from 0 to 1."""

import random
import re

import pytest

from perdure.reporting.figures import Box, Point, scatter, whiskers
from perdure.reporting.spread import spread


pytestmark = pytest.mark.own


def labels(figure: str) -> list[Box]:
    """What the labels of a scatter plot cover, with letters of 6.2 pixels."""
    found = re.findall(r'<text ([^>]*class="(?:end )?label[^>]*)>([^<]*)<', figure)
    boxes = []
    for attributes, words in found:
        x, y = (float(re.search(rf'\b{name}="([\d.]+)"', attributes)[1]) for name in "xy")
        left = x - 6.2 * len(words) if 'class="end' in attributes else x
        boxes.append(Box(left, y - 10, left + 6.2 * len(words), y + 2))
    return boxes


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.2), (0.5, 0.51), (0.85, 0.95), (0.0, 1.0)])
@pytest.mark.parametrize("diagonal", [True, False])
def test_labels_do_not_collide(low, high, diagonal):
    draw = random.Random(0)
    points = [
        Point(draw.uniform(low, high), draw.uniform(low, high), i, f"method_number_{i}")
        for i in range(8)
    ]
    boxes = labels(scatter("title", points, "x", "y", diagonal=diagonal))
    assert len(boxes) == 8
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not [pair for pair in pairs if pair[0].meets(pair[1])]
    assert all(box.left >= 0 and box.right <= 340 for box in boxes)


def test_axes_of_scores_go_from_0_to_1():
    near = [Point(0.9, 0.91, 0, "a"), Point(0.901, 0.912, 1, "b")]
    rows = [("a", spread([0.9, 0.91]), [0.9, 0.91])]
    for figure in (scatter("title", near, "x", "y", diagonal=True), whiskers("title", rows)):
        ticks = {float(tick) for tick in re.findall(r"tick[^>]*>([\d.]+)<", figure)}
        assert ticks == {0.0, 0.25, 0.5, 0.75, 1.0}
