"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BACKBONES = "tiny, open_clip:<name>, transformers:<id or path> or albef:<path>"
Seed = Annotated[int, typer.Option(help="Seed of the training order and of what is drawn at random.")]
Weights = Annotated[
    str, typer.Option(help="Of the backbone: packaged (of the tiny one), random, a file, or a tag of open_clip.")
]
Limit = Annotated[int | None, typer.Option(min=2, help="Use only so many concepts of each split, to try things out.")]
Jobs = Annotated[int, typer.Option(min=1, help="Trainings at a time, each a process with its share of the cores.")]
TuneVariants = Annotated[
    bool, typer.Option(help="Tune every variant by itself, or let it take the rates of its method where it can.")
]
Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu or cuda.")]
Folder = Annotated[Path, typer.Option(help="Folder for everything that is written.")]


Data = Annotated[
    str,
    typer.Option(
        "--data",
        "--train-data",
        help="Trained on, chosen by and tested: emoji, or dsr:, domainnet:, folders:, pairs:, shards: or icons:<path>.",
    ),
]
TestData = Annotated[
    str | None, typer.Option(help="Other data that Tables 2 and 3 ask the adapters about, such as domainnet:ROOT.")
]
GalleryStyle = Annotated[str | None, typer.Option(help="Of folders, shards and icons, the style that answers.")]
BackboneNow = Annotated[
    str | None,
    typer.Option(
        "--backbone", help=f"Where an adapter's backbone is now, if it was moved; of frozen, which one: {BACKBONES}."
    ),
]
WeightsNow = Annotated[
    str | None, typer.Option("--weights", help="Where an adapter's weights are now; of frozen, which: a tag or a file.")
]
FigureData = Annotated[
    str | None,
    typer.Option("--test-data", help="Other data that Figures 9 to 11 ask the adapters about, as domainnet:ROOT."),
]
BackboneName = Annotated[str, typer.Option("--backbone", help=f"{BACKBONES}.")]
Style = Annotated[str, typer.Option(help="Where the style vector comes from: clip, prefix, dinov2 or vgg.")]
StylePretrained = Annotated[
    str | None,
    typer.Option(
        help="Weights of dinov2 (by default facebook/dinov2-base) or of vgg, which needs them: a name or a file."
    ),
]
Blocks = Annotated[
    str | None, typer.Option(help="The blocks that are modulated, as 4-7-10-13; by default those of the depth.")
]
ProtocolName = Annotated[
    str,
    typer.Option("--protocol", help="full, or batch24: the published one, in batches of 24 instead of the gallery."),
]
RunsOn = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda or auto; by default the CPU with emoji, else auto.")
]
BatchSize = Annotated[int, typer.Option(min=2, help="Pairs a training step.")]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="Training steps of each trial and run; by default 120 with emoji, else 35 epochs."),
]


def pretrained(weights: str) -> str | None:
    """The weights of a word: None for random ones."""
    return None if weights == "random" else weights


def moved(backbone: str | None, weights: str | None) -> dict[str, str | None]:
    """The fields of a configuration that these words change; None changes nothing."""
    given: dict[str, str | None] = {} if backbone is None else {"backbone": backbone}
    return given if weights is None else {**given, "pretrained": pretrained(weights)}


def numbers(blocks: str | None) -> tuple[int, ...] | None:
    """The numbers of a word such as 4-7-10-13.

    Raises:
        ValueError: they are none.
    """
    try:
        return None if blocks is None else tuple(int(number) for number in blocks.split("-"))
    except ValueError as error:
        raise ValueError(f"blocks must be numbers as in 4-7-10-13, got {blocks!r}") from error
