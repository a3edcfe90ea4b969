"""``hystar-fast embed``: index a folder of pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hystar_fast.cli.open_method import open_method
from hystar_fast.data.flat_folders import gallery_of_sketches
from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.index.search import index_folder, indexed_source
from hystar_fast.methods.device import select_device
from hystar_fast.terminal.console import Console
from hystar_fast.terminal.progress import Progress


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
        raise ValueError(f"FOLDER must be a folder of pictures, but {folder} does not exist or is not a folder")
    with lock_folder(output):
        start = time.perf_counter()
        gallery = gallery_of_sketches(folder)
        if gallery is not None:
            console.print(f"indexing {gallery}: the other pictures in {folder} are sketches of these")
            folder = gallery
        select_device(device)
        earlier = indexed_source(output)
        if earlier not in (None, str(folder.resolve())) and not overwrite:
            raise ValueError(
                f"--output must be another folder, got {output} with the index of {earlier}; --overwrite replaces it"
            )
        method = open_method(adapter, None, changes, console)
        console.log_to(output)
        with Progress(console, transient=True) as progress:
            task = progress.add_task("embed", total=None)
            count, skipped = index_folder(
                folder,
                method,
                output,
                device=device,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        if skipped:
            first = f"{skipped[0].path}: {skipped[0].reason}"
            console.print(f"skipped {len(skipped)} of {count + len(skipped)} pictures, the first: {first}")
        console.print(f"indexed {count} pictures in {time.perf_counter() - start:.1f} s: {output}")
