"""The work of ``hystar-fast domains``: the matrix of every metric, and the definitions that fit a table."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from hystar_fast.cli.eval_parts import SPLITS, choose_part
from hystar_fast.cli.open_method import open_method
from hystar_fast.cli.options import backbone_changes, find_adapter
from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.images import ResizeTo
from hystar_fast.data.open import open_images
from hystar_fast.experiments.domain_tables import LARGEST, domain_table, identified, identify, rows_of
from hystar_fast.methods.device import on_device, select_device
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.domains import DomainMatrix, evaluate_domains
from hystar_fast.retrieval.metrics import Interval
from hystar_fast.retrieval.results_json import interval_info, run_info, set_aside, skipped_info, to_percent, write_json
from hystar_fast.terminal.console import Console, create_table
from hystar_fast.terminal.progress import Progress

FRAMINGS = ("crop", "squash")
MATRIX_FILE, IDENTIFY_FILE = "domains.json", "identify.json"
_IDENTITY = ("method", "adapter", "config", "data", "styles", "metrics")


@dataclass(frozen=True)
class DomainSettings:
    """The options of `domains` by name; those of `eval` mean the same."""

    output: Path
    adapter: Path | None
    method: str | None
    backbone: str | None
    weights: str | None
    data: str
    split: str | None
    metrics: str
    styles: tuple[str, ...]
    limit: int | None
    device: str


def run_domains(settings: DomainSettings, console: Console) -> dict[str, Any]:
    """Print the matrix of every metric, write ``domains.json`` and return its content.

    Raises:
        ValueError: the data, a metric or a domain is wrong, or another command is writing the folder.
    """
    metrics = [Metric.parse(name.strip()) for name in settings.metrics.split(",")]
    with lock_folder(settings.output):
        adapter, found_at = (None, "") if settings.method is not None else find_adapter(settings.adapter)
        images, label, line = _open(settings, adapter)
        if found_at:
            console.print(found_at)
        method = open_method(adapter, settings.method, backbone_changes(settings.backbone, settings.weights), console)
        console.log_to(settings.output)
        placed = on_device(method, select_device(settings.device))
        with _progress(console, images, settings.styles) as advance:
            matrix = evaluate_domains(placed, images, metrics, styles=settings.styles, progress=advance)
        pairs: dict[str, dict[str, Any]] = {
            f"{asks} → {answers}": {"n": len(found.counts), "gallery": found.gallery}
            for (asks, answers), found in matrix.measured.items()
        }
        for metric in metrics:
            intervals = {pair: matrix.interval(*pair, metric) for pair in matrix.measured}
            console.print(_table(f"{method.name} on {images.name}: {metric}", matrix, metric, intervals))
            for (asks, answers), interval in intervals.items():
                pairs[f"{asks} → {answers}"][str(metric)] = None if interval is None else interval_info(interval)
        console.print(
            "per cent [95 % bootstrap interval over queries]; a row asks, a column answers, and pictures of the same "
            "category are relevant"
        )
        if line:
            console.print(line)
        if matrix.skipped:
            first = matrix.skipped[0]
            console.print(f"skipped {len(matrix.skipped)} pictures, the first: {first.path}: {first.reason}")
        results = {
            **run_info(),
            "method": method.name,
            "adapter": None if adapter is None else str(adapter),
            "config": None if method.config is None else method.config.to_dict(),
            "data": _data(images, settings, label),
            "styles": list(matrix.styles),
            "metrics": [str(metric) for metric in metrics],
            "intervals": "95 %, percentile bootstrap over queries, 2000 resamples",
            "pairs": pairs,
            "averages": {
                asks: {str(metric): _per_cent(matrix.average(asks, metric)) for metric in metrics}
                for asks in matrix.styles
            },
            "skipped": skipped_info(matrix.skipped, len(images.records)),
        }
        path = settings.output / MATRIX_FILE
        kept = set_aside(path, results, _IDENTITY)
        write_json(path, results)
    if kept is not None:
        console.print(f"kept the results of an earlier evaluation: {kept}")
    console.print(f"wrote {path}")
    return results


def run_identify(name: str, settings: DomainSettings, console: Console) -> dict[str, Any]:
    """Print how far the frozen CLIP is from a table under every definition, and which one, if any, is the table's.

    Raises:
        ValueError: another table, other domains than its own, or another command is writing the folder.
    """
    table = domain_table(name)
    with lock_folder(settings.output):
        images, label, _ = _open(settings, None)
        rows_of(table, images)
        method = open_method(None, "frozen", backbone_changes(settings.backbone, settings.weights), console)
        console.log_to(settings.output)
        framings = {framing: on_device(framed, select_device(settings.device)) for framing, framed in _framed(method)}
        with _progress(console, images, (), times=len(framings)) as advance:
            fits = identify(table, images, framings, advance)
        shown = create_table("metric", "framing", "difference", right=("difference",))
        for fit in (fit for kind in fits.values() for fit in kind):
            shown.add_row(str(fit.metric), fit.framing, f"{fit.difference:.2f}")
        console.print(shown)
        chosen, config = identified(fits), method.config
        backbone = "" if config is None else config.backbone
        console.print(f"root mean square difference in points of the frozen {backbone} on {images.name} to the figures")
        console.print(f"of CLIP in {table.source}")
        if chosen is None:
            console.print(f"none identified: no pair of definitions of one framing is within {LARGEST} points")
        else:
            console.print(f"identified: {chosen[0].metric} and {chosen[1].metric}, framing {chosen[0].framing}")
        results = {
            **run_info(),
            "table": name,
            "config": None if config is None else config.to_dict(),
            "data": _data(images, settings, label),
            "differences": [{**asdict(fit), "metric": str(fit.metric)} for kind in fits.values() for fit in kind],
            "identified": None if chosen is None else [str(fit.metric) for fit in chosen],
            "framing": None if chosen is None else chosen[0].framing,
        }
        path = settings.output / IDENTIFY_FILE
        kept = set_aside(path, results, ("table", "config", "data"))
        write_json(path, results)
    if kept is not None:
        console.print(f"kept the results of an earlier evaluation: {kept}")
    console.print(f"wrote {path}")
    return results


def _framed(method: Method) -> Iterator[tuple[str, Method]]:
    """Yield the method with every way to make a picture square."""
    for framing in FRAMINGS:
        framed = copy.copy(method)
        if not isinstance(method.resize, ResizeTo):
            raise ValueError(
                f"backbone must resize by a rule to be framed otherwise, got {type(method.resize).__name__}"
            )
        framed.resize = replace(method.resize, fit=framing)
        yield framing, framed


def _open(settings: DomainSettings, adapter: Path | None) -> tuple[ImageSet, str, str]:
    """Return the pictures, their split as results name it, and a line about them."""
    if settings.split not in (None, *SPLITS):
        raise ValueError(f"split must be one of {SPLITS}, got {settings.split!r}")
    whole = open_images(settings.data, settings.split or "test")
    if whole.has_splits:
        return whole.select(limit=settings.limit), settings.split or "test", ""
    part = choose_part(whole, settings.data, settings.split, adapter)
    return part.images.select(limit=settings.limit), part.label, f"read {whole.summary}; {part.line}"


def _data(images: ImageSet, settings: DomainSettings, label: str) -> dict[str, Any]:
    return {"name": images.name, "source": settings.data, "split": label, "limit": settings.limit}


@contextmanager
def _progress(
    console: Console, images: ImageSet, styles: tuple[str, ...], times: int = 1
) -> Iterator[Callable[[int], object]]:
    pictures = sum(len(images.of_style(style)) for style in images.styles if not styles or style in styles)
    with Progress(console, transient=True) as progress:
        task = progress.add_task("embed", total=times * pictures)
        yield lambda done: progress.advance(task, done)


def _table(
    title: str, matrix: DomainMatrix, metric: Metric, intervals: Mapping[tuple[str, str], Interval | None]
) -> Table:
    columns = (*matrix.styles, "mean")
    table = create_table("query", *columns, title=title, right=columns)
    for asks in matrix.styles:
        cells = []
        for answers in matrix.styles:
            interval = intervals.get((asks, answers))
            cells.append("–" if interval is None else str(interval))
        mean = _per_cent(matrix.average(asks, metric))
        table.add_row(asks, *cells, "–" if mean is None else f"{mean:.1f}")
    return table


def _per_cent(value: float | None) -> float | None:
    return None if value is None else to_percent(value)
