"""``hystar-fast embed``: index a folder of pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hystar_fast.cli.index_work import counted
from hystar_fast.cli.open_method import open_method
from hystar_fast.data.flat_folders import gallery_of_sketches
from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.index.folder_index import check_output, index_folder
from hystar_fast.index.open_index import folder_of_uri, open_engine
from hystar_fast.methods.device import select_device
from hystar_fast.terminal.console import Console


def run_embed(
    folder: Path,
    adapter: Path | None,
    output: Path,
    console: Console,
    *,
    changes: dict[str, Any],
    overwrite: bool,
    device: str,
) -> None:
    """Index a folder with an adapter, or with the frozen backbone if there is none, and print the result.

    Raises:
        ValueError: an option is wrong, or the output holds the index of another folder and `overwrite` is false.
    """
    if not folder.is_dir():
        raise ValueError(
            f"SOURCE must be a folder of pictures, but {folder} does not exist or is not a folder; tars go into an "
            "index with `hystar-fast index add`"
        )
    folder_of_uri(output)
    select_device(device)
    with lock_folder(output):
        start = time.perf_counter()
        gallery = gallery_of_sketches(folder)
        if gallery is not None:
            console.print(f"indexing {gallery}: the other pictures in {folder} are sketches of these")
            folder = gallery
        if not overwrite:
            check_output(folder, output)
        method = open_method(adapter, None, changes, console)
        console.log_to(output)
        with counted(console, "embed") as progress:
            report = index_folder(folder, method, output, device=device, overwrite=overwrite, progress=progress)
        with open_engine(output) as engine:
            count = engine.count()
        if report.skipped:
            first = f"{report.skipped[0].path}: {report.skipped[0].reason}"
            console.print(
                f"skipped {len(report.skipped)} of {count + len(report.skipped)} pictures, the first: {first}"
            )
        encoded = report.added + report.changed
        rest = "" if encoded == count else f", {encoded} of them new or changed, {report.removed} removed"
        console.print(f"indexed {count} pictures{rest} in {time.perf_counter() - start:.1f} s: {output}")
