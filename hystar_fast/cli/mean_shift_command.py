"""The options of ``hystar-fast mean-shift``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hystar_fast.cli.errors import clear_errors
from hystar_fast.cli.options import (
    Adapter,
    Device,
    GalleryStyle,
    MovedBackbone,
    MovedWeights,
    backbone_changes,
    say_adapter,
)
from hystar_fast.terminal.console import create_console


@clear_errors(directory="--adapter", pretrained="--weights")
def mean_shift(
    data: Annotated[str, typer.Option(help="Data with pictures of several styles, as of eval.")],
    output: Annotated[Path, typer.Option(help="Folder of the adapter that is written.")] = Path("runs/mean-shift"),
    adapter: Adapter = None,
    unseen: Annotated[
        str | None, typer.Option(help="Categories that take no part, as of eval: by default those of the adapter.")
    ] = None,
    gallery_style: GalleryStyle = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most so many pictures of each style.")] = None,
    backbone: MovedBackbone = None,
    weights: MovedWeights = None,
    device: Device = "auto",
) -> None:
    """Measure the mean vector of every style on training pictures: eval and search then move queries by them."""
    from hystar_fast.cli.mean_shift_work import MeanShiftSettings, run_mean_shift

    console = create_console()
    settings = MeanShiftSettings(data, output, say_adapter(adapter, console), unseen, gallery_style, limit, device)
    run_mean_shift(settings, console, backbone_changes(backbone, weights))
