"""Index one folder of pictures in one call, as ``hystar-fast embed`` does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.data.image_files import IMAGE_SUFFIXES, list_images
from hystar_fast.index.encode_files import Report
from hystar_fast.index.engine import Engine, IndexDamaged
from hystar_fast.index.generation_methods import Encoder, Made, encoder_with, save_generation
from hystar_fast.index.local import INDEX_FILE, LocalEngine
from hystar_fast.index.open_index import REPLACEMENT, replace_index
from hystar_fast.index.sources import new_source
from hystar_fast.index.stamp import check_stamps
from hystar_fast.index.sync import add, sync
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.device import select_device
from hystar_fast.methods.interface import Method

Progress = Callable[[int, int], object]


def index_folder(
    folder: Path,
    adapter: Path | Method,
    output: Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
    **changes: str | None,
) -> Report:
    """Index the pictures of a folder with a method; a second call brings the index up to date.

    Unreadable pictures are skipped and named. Every batch is kept when it is done, so a call that was stopped goes on.

    Args:
        folder: searched recursively.
        adapter: of any trained method, or a method itself: a trained one, or the frozen backbone.
        output: folder of the index, which gets a copy of the adapter.
        device: "auto", "cpu" or "cuda".
        overwrite: replace an index of other pictures or of another model; it is in use until the new one is whole.
        progress: called after every batch with the pictures done, the unreadable ones too, and their total.
        changes: fields of the adapter's configuration, such as the new place of its backbone.

    Returns:
        What was done.

    Raises:
        ValueError: the folder or the adapter cannot be used, no picture can be read, another command is writing
            `output`, or it holds another index and `overwrite` is false.
        FloatingPointError: a picture has an embedding that is not finite.
    """
    if not list_images(folder)[0]:
        raise ValueError(f"folder must hold images ({', '.join(sorted(IMAGE_SUFFIXES))}), but {folder} holds none")
    select_device(device)
    with lock_folder(output):
        method = adapter if isinstance(adapter, Method) else load_method(adapter, **changes)
        return _index(folder, method, output, device, overwrite, progress)


def check_output(folder: Path, output: Path) -> None:
    """Raise ValueError if an output folder holds the index of another folder of pictures."""
    if not (output / INDEX_FILE).is_file():
        return
    with LocalEngine(output) as engine:
        sources = engine.settings()["sources"]
    if sources and sources != new_source(folder, {}):
        earlier = ", ".join(str(entry.get("folder", name)) for name, entry in sources.items())
        raise ValueError(
            f"output must be another folder, got {output} with the index of {earlier}; --overwrite replaces it"
        )


def _index(
    folder: Path, method: Method, output: Path, device: str, overwrite: bool, progress: Progress | None
) -> Report:
    made = save_generation(method, output)
    encoder = encoder_with(dict.fromkeys(made.stamps, method), select_device(device))
    settings = {"sources": new_source(folder, {})}
    try:
        if not (output / INDEX_FILE).is_file():
            return _create(folder, output, made, settings, encoder, progress)
        if not overwrite:
            check_output(folder, output)
        if overwrite and not _is_of(output, made, settings):
            report = Report()

            def fill(engine: Engine) -> None:
                nonlocal report
                report = add(engine, [folder], lambda: encoder, progress=progress)
                _check_any(engine, folder, report)

            replace_index(output, made, fill, settings)
            return report
        with LocalEngine(output) as engine:
            check_stamps(engine.stamps(), made.stamps, f"{output}, unless --overwrite replaces it,")
            return sync(engine, lambda: encoder, progress=progress)
    except BaseException:
        _tidy(output, made)
        raise


def _create(
    folder: Path, output: Path, made: Made, settings: dict[str, Any], encoder: Encoder, progress: Progress | None
) -> Report:
    with LocalEngine.create(output, made.stamps, made.notes, settings) as engine:
        report = add(engine, [folder], lambda: encoder, progress=progress)
        try:
            _check_any(engine, folder, report)
        except ValueError:
            engine.close()
            (output / INDEX_FILE).unlink()
            raise
        return report


def _check_any(engine: Engine, folder: Path, report: Report) -> None:
    if not engine.count():
        total, first = len(report.skipped), report.skipped[0].reason
        raise ValueError(f"folder must hold readable pictures, got {folder} with none of {total}, the first: {first}")


def _is_of(output: Path, made: Made, settings: dict[str, Any]) -> bool:
    """Return whether the index in a folder is of this model and these sources."""
    try:
        with LocalEngine(output) as engine:
            return dict(engine.stamps()) == dict(made.stamps) and engine.settings()["sources"] == settings["sources"]
    except IndexDamaged:
        return False


def _tidy(output: Path, made: Made) -> None:
    """Remove the adapter that was written for a generation which was not made."""
    if not made.notes.get("written"):
        return
    try:
        with LocalEngine(output) as engine:
            is_used = made.notes["adapter"] in [entry.notes.get("adapter") for entry in engine.generations()]
    except ValueError:
        is_used = False
    if not is_used and not (output / REPLACEMENT).exists():
        shutil.rmtree(output / made.notes["adapter"], ignore_errors=True)
