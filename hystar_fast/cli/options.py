"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Seed = Annotated[int, typer.Option(help="Seed of the training order and of what is drawn at random.")]
Weights = Annotated[str, typer.Option(help="Weights of the tiny backbone: packaged, random, or a safetensors file.")]
Limit = Annotated[int | None, typer.Option(min=2, help="Use only so many concepts of each split, to try things out.")]
Jobs = Annotated[int, typer.Option(min=1, help="Trainings at a time, each a process with its share of the cores.")]
TuneVariants = Annotated[
    bool, typer.Option(help="Tune every variant by itself, or let it take the rates of its method where it can.")
]
Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu or cuda.")]
Folder = Annotated[Path, typer.Option(help="Folder for everything that is written.")]


def pretrained(weights: str) -> str | None:
    """The weights of a word: None for random ones."""
    return None if weights == "random" else weights
