"""``hystar-fast eval``: evaluate a saved adapter, or a method without training, on a data set."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hystar_fast.cli.options import backbone_changes
from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.data.open import open_images
from hystar_fast.data.text_files import read_lines
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.device import on_device, select_device
from hystar_fast.methods.interface import Method, count_parameters
from hystar_fast.methods.suite import UNTRAINED, create_method, tiny_config
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.evaluate import Evaluation, KindResult, evaluate
from hystar_fast.retrieval.results_json import interval_info, run_info, skipped_info, write_json

RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class EvalSettings:
    """Settings of an evaluation.

    Attributes:
        output: folder for ``results.json``.
        adapter: the adapter folder of a trained method; used if `method` is None.
        method: the name of a method without training.
        backbone, weights: of `method`, by default the tiny backbone; or the new path of the adapter's backbone.
        data: see :func:`hystar_fast.data.open.open_images`.
        split: "val" or "test"; data without splits (folders, pairs, shards) is used as a whole.
        task, protocol: see :func:`hystar_fast.retrieval.evaluate.evaluate`.
        metrics: names, separated by commas; None for those of the protocol.
        gallery_style: for folders, shards and icons, the style of the gallery.
        categories: a file with one category a line; pictures of other categories are excluded.
        limit: at most so many pictures of each style.
        device: "auto", "cpu" or "cuda".
    """

    output: Path
    adapter: Path
    method: str | None = None
    backbone: str | None = None
    weights: str | None = None
    data: str = "emoji"
    split: str = "test"
    task: str | None = None
    protocol: str = "full"
    metrics: str | None = None
    gallery_style: str | None = None
    categories: Path | None = None
    limit: int | None = None
    device: str = "auto"


def run_evaluation(settings: EvalSettings, console: Console) -> dict[str, Any]:
    """Evaluate, print the table, write ``results.json`` and return its content.

    Raises:
        ValueError: a setting is out of range, the data set or the adapter cannot be read, or another command is
            writing the folder.
    """
    with lock_folder(settings.output):
        return _run_evaluation(settings, console)


def _run_evaluation(settings: EvalSettings, console: Console) -> dict[str, Any]:
    if settings.split not in ("val", "test"):
        raise ValueError(f"split must be 'val' or 'test', got {settings.split!r}")
    metrics = None
    if settings.metrics is not None:
        metrics = [Metric.parse(name.strip()) for name in settings.metrics.split(",")]
    images = open_images(settings.data, settings.split, gallery_style=settings.gallery_style)
    images = images.select(categories=_read_categories(settings.categories), limit=settings.limit)
    device = select_device(settings.device)
    method = _method(settings)
    start = time.perf_counter()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("embed", total=len(images.records))
        found = evaluate(
            on_device(method, device),
            images,
            task=settings.task,
            protocol=settings.protocol,
            metrics=metrics,
            progress=lambda done: progress.advance(task, done),
        )
    seconds = round(time.perf_counter() - start, 2)
    results = _results(method, found, settings, device, seconds)
    write_json(settings.output / RESULTS_FILE, results)  # before anything that a terminal may refuse
    console.print(result_table(method, found))
    if not images.has_splits:
        console.print(
            f"{images.name} has no splits: --split {settings.split} is the whole data set, and an adapter may have "
            "been trained on part of it",
        )
    for line in _omissions(found):
        console.print(line)
    console.print(f"wrote {settings.output / RESULTS_FILE}")
    return results


def result_table(method: Method, found: Evaluation) -> Table:
    """Return a table with a row for each kind of query and a column for each metric with its interval, in per cent."""
    gallery, count = found.gallery
    backbone = "" if method.config is None else f" ({method.config.backbone})"
    title = f"{method.name}{backbone} on {found.images.name}, task {found.task}; gallery {gallery}, n={count}"
    title += f"\n{found.protocol}\nper cent [95 % bootstrap interval over queries]"
    table = Table(title=title, title_justify="left", header_style="bold", padding=(0, 0))
    table.add_column("query", no_wrap=True)
    table.add_column("n", justify="right")
    for metric in found.kinds[0].values if found.kinds else ():
        table.add_column(metric, justify="right")
    for result in found.kinds:
        cells = ("–" if value is None else str(value) for value in result.values.values())
        table.add_row(result.kind, str(result.n), *cells)
    return table


def _method(settings: EvalSettings) -> Method:
    changes: dict[str, Any] = backbone_changes(settings.backbone, settings.weights)
    if settings.method is None:
        return load_method(settings.adapter, **changes)
    if settings.method not in UNTRAINED:
        raise ValueError(f"method must be a method without training, {UNTRAINED}, got {settings.method!r}")
    return create_method(settings.method, replace(tiny_config(), **changes))


def _read_categories(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        return [line for _, line in read_lines(path)]
    except (OSError, ValueError) as error:
        raise ValueError(f"categories must be a text file with one category a line: {error}") from error


def _omissions(found: Evaluation) -> list[str]:
    lines = []
    if found.skipped:
        first, total = found.skipped[0], len(found.images.records)
        lines.append(f"skipped {len(found.skipped)} of {total} pictures, the first: {first.path}: {first.reason}")
    unanswerable = sum(result.unanswerable for result in found.kinds)
    if unanswerable:
        lines.append(f"{unanswerable} queries have no relevant item in the gallery and are excluded from the means")
    return lines


def _results(
    method: Method, found: Evaluation, settings: EvalSettings, device: torch.device, seconds: float
) -> dict[str, Any]:
    counts, images = count_parameters(method), found.images
    return {
        **run_info(),
        "method": method.name,
        "adapter": None if settings.method is not None else str(settings.adapter),
        "config": None if method.config is None else method.config.to_dict(),
        "fingerprints": dict(method.fingerprints),
        "parameters": {"trainable": sum(counts.values()), **counts},
        "data": {
            "name": images.name,
            "source": settings.data,
            "split": images.split_label(settings.split),
            "limit": settings.limit,
        },
        "task": found.task,
        "protocol": found.protocol,
        "gallery": {"what": found.gallery[0], "n": found.gallery[1]},
        "intervals": "95 %, percentile bootstrap over queries, 2000 resamples",
        "ties": "count against the query",
        "queries": {result.kind: _values(result) for result in found.kinds},
        "skipped": skipped_info(found.skipped, len(images.records)),
        "device": str(device),
        "seconds": seconds,
    }


def _values(result: KindResult) -> dict[str, Any]:
    values = {name: None if found is None else interval_info(found) for name, found in result.values.items()}
    return {"n": result.n, "unanswerable": result.unanswerable, **values}
