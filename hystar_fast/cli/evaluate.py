"""``hystar-fast eval``: a saved adapter, or a method by name, on a data set."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hystar_fast.cli.options import moved
from hystar_fast.cli.report import about, check_output, interval, left_out, write_json
from hystar_fast.data.open import open_images
from hystar_fast.data.records import ImageSet
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.interface import Method, count_parameters
from hystar_fast.methods.on_device import chosen_device, placed
from hystar_fast.methods.recipes import demo_config
from hystar_fast.methods.suite import UNTRAINED, create_method
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.evaluate_images import Report, Row, evaluate_images

RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class EvalSettings:
    """What is evaluated, on what, and how.

    Attributes:
        output: folder for ``results.json``.
        adapter: the folder of a trained method's adapter; used unless `method` is given.
        method: a method that needs no training, by name.
        backbone, weights: of `method` (None for the packaged one; "random"), or where the adapter's are now (None for
            where it says); weights that are not those it was trained on are refused.
        data: see :func:`hystar_fast.data.open.open_images`.
        split: "val" or "test"; of data without splits (folders, pairs, shards) both are all of it.
        task, protocol: see :func:`hystar_fast.retrieval.evaluate_images.evaluate_images`.
        metrics: names, separated by commas; None for those of the protocol.
        gallery_style: for style folders, the one that answers.
        categories: a file with one category a line; the others are left out.
        limit: use only so many pictures of each style.
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
    """Evaluate, print the table, write ``results.json``; returns what is in it.

    Raises:
        ValueError: something in the settings, the data set or the adapter that cannot be used.
    """
    if settings.split not in ("val", "test"):
        raise ValueError(f"split must be 'val' or 'test', got {settings.split!r}")
    check_output(settings.output)
    metrics = None
    if settings.metrics is not None:
        metrics = [Metric.parse(name.strip()) for name in settings.metrics.split(",")]
    images = open_images(settings.data, settings.split, gallery_style=settings.gallery_style)
    images = images.select(categories=_listed(settings.categories), limit=settings.limit)
    device = chosen_device(settings.device)
    method = _method(settings)
    began = time.perf_counter()
    report = _evaluate(placed(method, device), images, settings, metrics, console)
    console.print(report_table(method, report))
    if not images.splits:
        console.print(
            f"{images.name} has no splits: --split {settings.split} is all of its pictures, and an adapter may have "
            "been trained on part of them",
            highlight=False,
        )
    for line in _omissions(report):
        console.print(line, highlight=False, markup=False)
    split = images.asked_split(settings.split)
    results = _results(method, report, settings, split, device, round(time.perf_counter() - began, 2))
    write_json(settings.output / RESULTS_FILE, results)
    console.print(f"wrote {settings.output / RESULTS_FILE}")
    return results


def report_table(method: Method, report: Report) -> Table:
    """A row a kind of query with each metric and its interval in per cent; backbone and protocol are in the title."""
    what, count = report.answers
    backbone = "" if method.config is None else f" ({method.config.backbone})"
    title = f"{method.name}{backbone} on {report.data}, task {report.task}; gallery {what}, n={count}"
    title += f"\n{report.protocol}\nper cent [95 % bootstrap interval over queries]"
    table = Table(title=title, title_justify="left", header_style="bold", padding=(0, 0))
    table.add_column("query", no_wrap=True)
    table.add_column("n", justify="right")
    for metric in report.rows[0].values if report.rows else ():
        table.add_column(metric, justify="right")
    for row in report.rows:
        table.add_row(
            row.queries, str(row.n), *("–" if v is None else str(v).replace("[", "\\[") for v in row.values.values())
        )
    return table


def _evaluate(
    method: Method, images: ImageSet, settings: EvalSettings, metrics: list[Metric] | None, console: Console
) -> Report:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"embed {images.name}", total=len(images.records))
        return evaluate_images(
            method,
            images,
            task=settings.task,
            protocol=settings.protocol,
            metrics=metrics,
            progress=lambda done: progress.advance(task, done),
        )


def _method(settings: EvalSettings) -> Method:
    given: dict[str, Any] = moved(settings.backbone, settings.weights)
    if settings.method is None:
        return load_method(settings.adapter, **given)
    if settings.method not in UNTRAINED:
        raise ValueError(f"method must be one that needs no training, {UNTRAINED}, got {settings.method!r}")
    return create_method(settings.method, replace(demo_config(), **given))


def _listed(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"categories must be a text file with one category a line: {error}") from error


def _omissions(report: Report) -> list[str]:
    lines = []
    if report.skipped:
        first = report.skipped[0]
        lines.append(
            f"skipped {len(report.skipped)} of {report.pictures} pictures, the first: {first.path}: {first.reason}"
        )
    without = sum(row.unanswerable for row in report.rows)
    if without:
        lines.append(f"{without} queries have nothing right in the gallery and are in no mean")
    return lines


def _results(
    method: Method, report: Report, settings: EvalSettings, split: str, device: torch.device, seconds: float
) -> dict[str, Any]:
    counts = count_parameters(method)
    return {
        **about(),
        "method": method.name,
        "adapter": None if settings.method is not None else str(settings.adapter),
        "config": None if method.config is None else method.config.to_dict(),
        "fingerprints": dict(method.fingerprints),
        "parameters": {"trainable": sum(counts.values()), **counts},
        "data": {"name": report.data, "source": settings.data, "split": split, "limit": settings.limit},
        "task": report.task,
        "protocol": report.protocol,
        "gallery": {"what": report.answers[0], "n": report.answers[1]},
        "intervals": "95 %, percentile bootstrap over queries, 2000 resamples",
        "ties": "count against the query",
        "queries": {row.queries: _values(row) for row in report.rows},
        "skipped": left_out(report.skipped, report.pictures),
        "device": str(device),
        "seconds": seconds,
    }


def _values(row: Row) -> dict[str, Any]:
    values = {name: None if found is None else interval(found) for name, found in row.values.items()}
    return {"n": row.n, "unanswerable": row.unanswerable, **values}
