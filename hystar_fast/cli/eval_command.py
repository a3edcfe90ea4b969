"""``hystar-fast eval``: evaluate a saved adapter, or a method without training, on a data set."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from hystar_fast.cli.eval_codes import CodeSettings, fit_codes, training_part
from hystar_fast.cli.eval_parts import SPLITS, choose_part, choose_unseen, support_part
from hystar_fast.cli.open_method import open_method
from hystar_fast.cli.options import backbone_changes, find_adapter
from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.data.open import open_images
from hystar_fast.data.text_files import read_lines
from hystar_fast.methods.device import on_device, select_device
from hystar_fast.methods.fgan.fgan_method import choose_retrieval
from hystar_fast.methods.interface import Method, count_parameters
from hystar_fast.methods.suite import network_name, uses_backbone
from hystar_fast.retrieval.crossmodal import CROSSMODAL, evaluate_crossmodal
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.embed import Embedded
from hystar_fast.retrieval.evaluate import DEFAULT_METRICS, Evaluation, KindResult, evaluate
from hystar_fast.retrieval.evaluate_codes import code_results
from hystar_fast.retrieval.results_json import interval_info, run_info, set_aside, skipped_info, to_percent, write_json
from hystar_fast.retrieval.within_category import WITHIN
from hystar_fast.terminal.console import Console, create_table
from hystar_fast.terminal.progress import Progress

RESULTS_FILE = "results.json"
CHANCE = "chance of mAP@all"
# Results with other values of these are of another evaluation.
_IDENTITY = (
    "method",
    "adapter",
    "network",
    "config",
    "settings",
    "fingerprints",
    "data",
    "metrics",
    "task",
    "protocol",
    "codes",
    "support",
    "retrieval",
)


@dataclass(frozen=True)
class EvalSettings:
    """Settings of an evaluation.

    Attributes:
        output: folder for ``results.json``.
        adapter: the adapter folder of a trained method; None for `method`, or else for what `train` or `demo` wrote.
        method: the name of a method without training.
        backbone, weights: of a method without training, by default the tiny backbone; or the new path of the adapter's.
        data: see :func:`hystar_fast.data.open.open_images`.
        split: see :func:`hystar_fast.cli.eval_parts.choose_part`.
        task, protocol: see :func:`hystar_fast.retrieval.evaluate.evaluate`; also "crossmodal", see
            :func:`hystar_fast.retrieval.crossmodal.evaluate_crossmodal`.
        support: for "crossmodal", the split of the galleries; None for that of the queries.
        metrics: names, separated by commas; None for those of the protocol.
        gallery_style: for folders, shards and icons, the style of the gallery.
        unseen, generalised: see :class:`hystar_fast.data.unseen.CategorySplit`; the task is then "category" by default.
        categories: a file with one category a line; pictures of other categories are excluded.
        limit: at most so many pictures of each style.
        retrieval: of FGAN, "joint", "regions" or "labels"; None for the one of its settings.
        codes: binary codes to evaluate beside the embeddings; None for none.
        device: "auto", "cpu" or "cuda".
    """

    output: Path
    adapter: Path | None = None
    method: str | None = None
    backbone: str | None = None
    weights: str | None = None
    data: str = "emoji"
    split: str | None = None
    task: str | None = None
    support: str | None = None
    protocol: str = "full"
    metrics: str | None = None
    gallery_style: str | None = None
    unseen: str | None = None
    generalised: str | None = None
    categories: Path | None = None
    limit: int | None = None
    retrieval: str | None = None
    codes: CodeSettings | None = None
    device: str = "auto"


def run_evaluation(settings: EvalSettings, console: Console) -> dict[str, Any]:
    """Evaluate, print the table, write ``results.json`` and return its content.

    The results of an earlier evaluation with other settings are kept under another name, which is printed.

    Raises:
        ValueError: a setting is out of range, the data set or the adapter cannot be read, no query can be answered, or
            another command is writing the folder.
    """
    if settings.adapter is not None and settings.method is not None:
        raise ValueError("method must be left out if --adapter is given, got both: evaluate one, then the other")
    if settings.split not in (None, *SPLITS):
        raise ValueError(f"split must be one of {SPLITS}, got {settings.split!r}")
    if settings.generalised is not None and settings.unseen is None:
        raise ValueError("generalised must be left out unless unseen is given, whose gallery it adds seen pictures to")
    if settings.codes is not None and (
        settings.task in ("classify", WITHIN, CROSSMODAL) or settings.protocol != "full"
    ):
        raise ValueError(
            f"bits must be left out for tasks 'classify', {WITHIN!r} and {CROSSMODAL!r} and protocol 'batch24', which "
            "have no codes"
        )
    if settings.task == CROSSMODAL and settings.protocol != "full":
        raise ValueError(f"protocol must be 'full' for task {CROSSMODAL!r}, got {settings.protocol!r}")
    if settings.support is not None and settings.task != CROSSMODAL:
        raise ValueError(f"support must be left out unless the task is {CROSSMODAL!r}, got {settings.support!r}")
    with lock_folder(settings.output):
        return _run_evaluation(settings, console)


def _run_evaluation(settings: EvalSettings, console: Console) -> dict[str, Any]:
    device = select_device(settings.device)
    metrics = None if settings.metrics is None else _read_metrics(settings.metrics)
    categories = _read_categories(settings.categories)
    adapter, found_at = (None, "") if settings.method is not None else find_adapter(settings.adapter)
    whole = open_images(settings.data, settings.split or "test", gallery_style=settings.gallery_style)
    if settings.unseen is None:
        part = choose_part(whole, settings.data, settings.split, adapter)
    else:
        part = choose_unseen(whole, settings.data, settings.split, adapter, settings.unseen, settings.generalised)
    images = part.images.select(categories=categories, limit=settings.limit)
    if found_at:
        console.print(found_at)
    if not images.has_splits:
        console.print(f"read {whole.summary}")
    method = open_method(adapter, settings.method, backbone_changes(settings.backbone, settings.weights), console)
    if settings.retrieval is not None:
        choose_retrieval(method, settings.retrieval)
    console.log_to(settings.output)
    placed, embedded, codes_line = on_device(method, device), dict[str, Embedded](), ""
    codes, training = settings.codes, None
    if codes is not None and codes.needs_training:
        training = training_part(whole, settings.data, settings.gallery_style, settings.unseen, adapter)
    support = support_part(whole, settings.data, settings.support, settings.unseen, adapter)
    start = time.perf_counter()
    with Progress(console, transient=True) as progress:
        task = progress.add_task("embed", total=len(images.records))
        if settings.task == CROSSMODAL:
            found = evaluate_crossmodal(
                placed, images, support, metrics=metrics, progress=lambda done: progress.advance(task, done)
            )
        else:
            found = evaluate(
                placed,
                images,
                task=settings.task or (None if settings.unseen is None else "category"),
                protocol=settings.protocol,
                metrics=metrics,
                embedded=embedded,
                progress=lambda done: progress.advance(task, done),
            )
        if codes is not None:
            quantise, codes_line = fit_codes(codes, placed, training, settings.limit)
            added = code_results(found, embedded, metrics or DEFAULT_METRICS, quantise)
            found = replace(found, kinds=(*found.kinds, *added))
    seconds = round(time.perf_counter() - start, 2)
    if not any(result.n for result in found.kinds):
        raise ValueError(f"data must have a query that can be answered, got none: {'; '.join(_omissions(found))}")
    results = _results(method, found, settings, adapter, part.label, device, seconds)
    kept = set_aside(settings.output / RESULTS_FILE, results, _IDENTITY)
    write_json(settings.output / RESULTS_FILE, results)  # before anything that a terminal may refuse
    console.print(result_table(method, found, settings.data))
    for line in (part.line, codes_line, *_omissions(found)):
        if line:
            console.print(line)
    if kept is not None:
        console.print(f"kept the results of an earlier evaluation: {kept}")
    console.print(f"wrote {settings.output / RESULTS_FILE}")
    return results


def result_table(method: Method, found: Evaluation, source: str) -> Table:
    """Return a table with a row for each kind of query and a column for each metric with its interval, in per cent."""
    gallery, count = found.gallery
    network = network_name(method)
    shown = f"{method.name} ({network})" if network else method.name
    name = source if found.images.name == source else f"{found.images.name} ({source})"
    title = f"{shown} on {name}, task {found.task}; gallery {gallery}, n={count}"
    title += f"\n{found.protocol}\nper cent [95 % bootstrap interval over queries]"
    if any(metric.startswith("R@") for metric in found.kinds[0].values):
        title += "\nR@k: queries with a right picture among the first k"
    metrics = (*found.kinds[0].values,)
    chance = (CHANCE,) if has_chance(metrics) else ()
    table = create_table("query", "n", *metrics, *chance, title=title, right=("n", *metrics, *chance))
    for result in found.kinds:
        cells = ["-" if value is None else str(value) for value in result.values.values()]
        if chance:
            cells.append("-" if result.chance is None else f"{100 * result.chance:.1f}")
        table.add_row(result.kind, str(result.n), *cells)
    return table


def has_chance(metrics: Iterable[str]) -> bool:
    """Return whether the chance level of mAP@all belongs beside metrics of these names."""
    return any(name.startswith("mAP@all") for name in metrics)


def _read_metrics(names: str) -> list[Metric]:
    chosen = [name.strip() for name in names.split(",")]
    if not all(chosen):
        raise ValueError(f"metrics must be names with commas between, such as R@1,mAP@all, got {names!r}")
    return [Metric.parse(name) for name in chosen]


def _read_categories(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        names = [line for _, line in read_lines(path)]
    except (OSError, ValueError) as error:
        raise ValueError(f"categories must be a text file with one category a line: {error}") from error
    if not names:
        raise ValueError(f"categories must be a text file with one category a line, got {path} without any")
    return names


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
    method: Method,
    found: Evaluation,
    settings: EvalSettings,
    adapter: Path | None,
    split: str,
    device: torch.device,
    seconds: float,
) -> dict[str, Any]:
    counts, images = count_parameters(method), found.images
    config = method.config if uses_backbone(method.name, method.settings) else None  # its names would be untrue
    return {
        **run_info(),
        "method": method.name,
        "adapter": None if adapter is None else str(adapter),
        "network": network_name(method) or None,
        "config": None if config is None else config.to_dict(),
        "settings": dict(method.settings),
        "fingerprints": dict(method.fingerprints),
        "parameters": {"trainable": sum(counts.values()), **counts},
        "data": {
            "name": images.name,
            "source": settings.data,
            "split": split,
            "limit": settings.limit,
            "categories": None if settings.categories is None else str(settings.categories),
            **({} if settings.unseen is None else {"unseen": settings.unseen, "generalised": settings.generalised}),
        },
        "metrics": [*found.kinds[0].values],
        "task": found.task,
        "protocol": found.protocol,
        **({} if settings.support is None else {"support": settings.support}),
        **({} if settings.retrieval is None else {"retrieval": settings.retrieval}),
        **({} if settings.codes is None else {"codes": asdict(settings.codes)}),
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
    chance = {CHANCE: None if result.chance is None else to_percent(result.chance)} if has_chance(values) else {}
    return {"n": result.n, "unanswerable": result.unanswerable, **values, **chance}
