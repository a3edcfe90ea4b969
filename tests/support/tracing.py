"""A drawing of lines as strokes, which a test can draw again with a mouse."""

from __future__ import annotations

import numpy as np
from PIL import Image
from skimage.morphology import skeletonize

Stroke = list[tuple[float, float]]
_STEP = 2  # pixels between two points of a stroke


def strokes(drawing: Image.Image) -> list[Stroke]:
    """Trace the middle of the dark lines of a drawing.

    Returns:
        Strokes of points (x, y) in [0, 1]; a dot is a stroke of one point.
    """
    grey = np.asarray(drawing.convert("L"))
    left = {(int(x), int(y)) for y, x in np.argwhere(skeletonize(grey < 128))}
    traced = []
    while left:
        start = min(left, key=lambda pixel: (len(_near(pixel, left)), pixel))  # an end of a line comes first
        path = _walk(start, left)
        points = path[::_STEP] if len(path) % _STEP else [*path[::_STEP], path[-1]]
        traced.append([((x + 0.5) / grey.shape[1], (y + 0.5) / grey.shape[0]) for x, y in points])
    return traced


def _near(pixel: tuple[int, int], left: set[tuple[int, int]]) -> list[tuple[int, int]]:
    x, y = pixel
    steps = ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, -1), (-1, 1))
    return [(x + dx, y + dy) for dx, dy in steps if (x + dx, y + dy) in left]


def _walk(start: tuple[int, int], left: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Follow a line to its end, as straight as it goes, and take its pixels away."""
    path = [start]
    left.discard(start)
    while near := _near(path[-1], left):
        before = path[-min(len(path), 4)]
        ahead = (2 * path[-1][0] - before[0], 2 * path[-1][1] - before[1])
        path.append(min(near, key=lambda pixel: (pixel[0] - ahead[0]) ** 2 + (pixel[1] - ahead[1]) ** 2))
        left.discard(path[-1])
    if len(path) > 3 and path[-1] in _near(start, {path[-1]}):
        path.append(start)  # a closed line
    return path
