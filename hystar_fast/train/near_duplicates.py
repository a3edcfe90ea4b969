"""Search for drawings that look like held-out ones, by the correlation of their pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image
from tqdm import tqdm

SIDE = 16
_INK = 24  # of 255: fainter pixels are background when a drawing is cropped


def signatures(images: np.ndarray) -> np.ndarray:
    """Return float32 [n, 256] of drawings on white, uint8 [n, H, W, 3]: products of two rows are correlations.

    A row holds the grey values of the drawing, cropped to its ink, centred in a square and reduced to 16 x 16 pixels,
    with mean 0 and length 1. An empty drawing has zeros, which correlate with nothing.
    """
    found = np.zeros((len(images), SIDE * SIDE), np.float32)
    for row, image in zip(found, tqdm(images, desc="signatures", mininterval=5), strict=True):
        ink = 255 - image.mean(axis=2)
        rows, columns = np.flatnonzero((ink > _INK).any(axis=1)), np.flatnonzero((ink > _INK).any(axis=0))
        if len(rows) == 0:
            continue
        crop = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = crop.shape
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        square = np.pad(crop, ((top, side - height - top), (left, side - width - left)))
        row[:] = np.asarray(Image.fromarray(square).resize((SIDE, SIDE), Image.Resampling.BOX)).ravel()
        row -= row.mean()
        row /= max(float(np.linalg.norm(row)), 1e-6)
    return found


def nearest(drawings: np.ndarray, held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each signature of `drawings` its largest correlation with `held_out`, and the row of that there."""
    largest, place = np.empty(len(drawings), np.float32), np.empty(len(drawings), np.int64)
    for start in range(0, len(drawings), 4096):
        block = drawings[start : start + 4096] @ held_out.T
        place[start : start + 4096] = block.argmax(axis=1)
        largest[start : start + 4096] = block.max(axis=1)
    return largest, place
