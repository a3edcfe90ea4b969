"""``hystar-fast save-delta``: half the size of an adapter that holds whole towers, for serving."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from hystar_fast.cli.errors import clear_errors
from hystar_fast.cli.options import MovedBackbone, MovedWeights, backbone_changes
from hystar_fast.terminal.console import create_console


@clear_errors(directory="--adapter", pretrained="--weights")
def save_delta(
    adapter: Annotated[Path, typer.Option(help="The adapter of a method that trained its backbone, such as MA-SBIR.")],
    output: Annotated[Path, typer.Option(help="Folder of the adapter that is written.")],
    backbone: MovedBackbone = None,
    weights: MovedWeights = None,
) -> None:
    """Write an adapter with the difference of the trained weights from the released ones, in 16 bits, for serving."""
    from hystar_fast.methods.adapter_files import load_method
    from hystar_fast.methods.adapter_files import save_delta as save
    from hystar_fast.models.adapter_format import TENSOR_FILE
    from hystar_fast.train.data_record import DATA_FILE

    if output.resolve() == adapter.resolve():
        raise ValueError(f"output must be another folder than that of the adapter, got {output} for both")
    console = create_console()
    save(load_method(adapter, **backbone_changes(backbone, weights)), output)
    if (adapter / DATA_FILE).is_file():
        shutil.copy(adapter / DATA_FILE, output / DATA_FILE)
    sizes = [(folder / TENSOR_FILE).stat().st_size / 1e6 for folder in (adapter, output)]
    console.print(f"wrote {output}: {sizes[1]:.1f} MB in place of {sizes[0]:.1f} MB")
