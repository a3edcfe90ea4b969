"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu or cuda.")]
Folder = Annotated[Path, typer.Option(help="Folder for everything that is written.")]
Adapter = Annotated[Path, typer.Option(help="An adapter that train or demo wrote.")]
MovedBackbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="The adapter's backbone, if it was moved; of frozen, which one: tiny, open_clip:<name>, "
        "transformers:<id or path> or albef:<path>.",
    ),
]
MovedWeights = Annotated[
    str | None,
    typer.Option("--weights", help="The adapter's weights, if they were moved; of frozen, which: a tag or a file."),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: section.key=value. May be repeated.")]
Config = Annotated[str, typer.Option(help="A TOML file, or shipped settings: emoji (the embedded drawings) or paper.")]
Output = Annotated[Path | None, typer.Option(help="Folder for everything that is written (run.output).")]


def weights_of(word: str) -> str | None:
    """Return the weights of a command-line word: None for "random"."""
    return None if word == "random" else word


def backbone_changes(backbone: str | None, weights: str | None) -> dict[str, str | None]:
    """Return the fields of a configuration that the options change; None changes nothing."""
    changes: dict[str, str | None] = {} if backbone is None else {"backbone": backbone}
    return changes if weights is None else {**changes, "pretrained": weights_of(weights)}


def setting_changes(changes: list[str] | None, output: Path | None) -> list[str]:
    """Return the changes of ``--set`` and ``--output``."""
    return [*(changes or ()), *(() if output is None else (f"run.output={output}",))]
