"""Small data and settings on which FGAN trains in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hystar_fast.data.word_vectors import write_word_vectors
from tests.support.picture_trees import picture

CLASSES = ("ant", "bee", "cat", "dog")
PASCAL = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def sentences(root: Path, classes: tuple[str, ...] = CLASSES, train: int = 4, test: int = 2) -> Path:
    """Write Pascal Sentence with so many pairs of each class; the words of a text are its class and its number."""
    for part, count in (("train", train), ("test", test)):
        for number, name in enumerate(classes):
            for i in range(count):
                picture(root / "image" / part / name / f"{part}{i}.png", seed=100 * number + i, size=(32, 32))
                text = root / "sentence" / part / name / f"{part}{i}.txt"
                text.parent.mkdir(parents=True, exist_ok=True)
                text.write_text(f"A {name}.\nNumber word{i}, unheard.\n")
    return root


def vectors(path: Path, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write vectors of the words of `sentences`, except "unheard"."""
    words = ["a", "number", *classes, *(f"word{i}" for i in range(10))]
    write_word_vectors(path, words, np.random.default_rng(0).normal(size=(len(words), 12)).astype(np.float32))
    return path


def changes(root: Path, output: Path, *more: str) -> list[str]:
    """Return changes of the settings "fgan" that train on `sentences` in a second."""
    return [
        f"data.source=crossmodal:{root}", f"fgan.text_vectors={root}/vectors.npz", "fgan.image_encoder=random",
        "fgan.width=8", "fgan.embedding=6", "fgan.samples=20", "fgan.image_regions_kept=3", "fgan.text_regions_kept=2",
        "fgan.teacher=random", "fgan.labels=7", "optim.batch_size=4", "optim.steps=4", "run.checkpoint_every=2",
        "run.device=cpu", f"run.output={output}", *more,
    ]  # fmt: skip
