"""``experiments reproduce tki:table3 --data pacs:DIR``: pairs of domains, by a frozen CLIP and by TKI."""

from __future__ import annotations

from typing import Any

from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.data.open import open_images
from hystar_fast.experiments.comparison_tables import table_of_methods
from hystar_fast.experiments.domain_tables import rows_of
from hystar_fast.experiments.embedded_runs import run_folder, trained
from hystar_fast.experiments.experiment_settings import ExperimentSettings
from hystar_fast.experiments.published_tables import PublishedTable
from hystar_fast.methods.device import on_device
from hystar_fast.methods.interface import Method
from hystar_fast.methods.suite import create_method
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.domains import DomainMatrix, evaluate_domains
from hystar_fast.retrieval.results_json import interval_info, run_info, to_percent, write_json
from hystar_fast.terminal.console import Console
from hystar_fast.terminal.progress import Progress
from hystar_fast.train.settings import NONE_WORDS

CONFIG = "tki-literal"
# the paper's column -> the definitions that it may be of
DEFINITIONS = {"mAP": ("mAP@200:capped", "mAP@200:capped:interpolated"), "Prec": ("Prec@200:k",)}
_METRICS = [Metric.parse(name) for names in DEFINITIONS.values() for name in names]


def run_domain_table(
    table: PublishedTable, source: str, settings: ExperimentSettings, console: Console, *, steps: int | None = None
) -> dict[str, Any]:
    """Search every domain of a data set by every other one, and print ours beside the paper's figures.

    CLIP is the frozen backbone of the settings. TKI is trained on it from the settings ``tki-literal``, on the names of
    the classes.

    Args:
        table: of `domain_table`.
        source: a data set of its domains.
        settings: of the experiment: the backbone, the output folder and the device.
        console: where to.
        steps: of each stage of TKI; None for those of its settings.

    Returns:
        The content of ``<paper>-table<n>-domains.json``.

    Raises:
        ValueError: other domains than the table's, a backbone that cannot be used, or another command is writing the
            folder.
    """
    images, config = open_images(source), settings.config()
    rows = rows_of(table, images)
    with lock_folder(settings.output):
        changes = [
            f"model.backbone={config.backbone}",
            f"model.pretrained={config.pretrained or NONE_WORDS['model.pretrained']}",
            f"data.source={source}",
            f"run.seed={settings.seeds[0]}",
            f"run.device={settings.run.device}",
            *([f"tki.{stage}={steps}" for stage in ("steps_expansion", "steps_aggregation")] if steps else []),
        ]
        with Progress(console) as progress:
            task = progress.add_task("TKI", total=None)
            method = trained(
                CONFIG,
                changes,
                run_folder(settings.output / table.paper / "domains"),
                started=lambda total, _: progress.update(task, total=total),
                progress=lambda done, _: progress.update(task, completed=done),
            )
        searchers: dict[str, Method] = {"CLIP": create_method("frozen", config), "TKI": method}
        entries: list[dict[str, Any]] = [
            {"row": row, "paper": dict(zip(table.columns, values, strict=True)), "ours": {}}
            for row, values in table.rows.items()
        ]
        for name, searcher in searchers.items():
            matrix = evaluate_domains(on_device(searcher, settings.device()), images, _METRICS)
            for entry in entries:
                if entry["row"] in rows:
                    entry["ours"][name] = _figures(matrix, *rows[entry["row"]])
        result = {
            **run_info(),
            "table": f"{table.paper}:table{table.number}",
            "paper": table.source,
            "paper_note": table.note,
            "data": {"name": images.name, "source": source},
            "config": config.to_dict(),
            "steps": steps,
            "seed": settings.seeds[0],
            "rows": entries,
        }
        path = settings.output / f"{table.paper}-table{table.number}-domains.json"
        write_json(path, result)
    for name in searchers:
        _show(name, table, result, console)
    _explain(table, result, console)
    console.print(f"wrote {path}\n")
    return result


def _figures(matrix: DomainMatrix, asks: str, answers: str | None) -> dict[str, Any]:
    """Return metric -> the mean over queries with its interval, or the plain mean over domains, in per cent."""
    found: dict[str, Any] = {}
    for metric in _METRICS:
        if answers is None:
            mean = matrix.average(asks, metric)
            found[str(metric)] = None if mean is None else {"value": to_percent(mean)}
        else:
            interval = matrix.interval(asks, answers, metric)
            found[str(metric)] = None if interval is None else interval_info(interval)
    return found


def _show(name: str, table: PublishedTable, result: dict[str, Any], console: Console) -> None:
    """Print one method: every column of the paper, and ours under each of its definitions."""
    columns = [heading for kind, names in DEFINITIONS.items() for heading in (f"paper {kind}", *names)]
    title = f"{table.paper}, Table {table.number}, {name}: the paper's figures and ours on {result['data']['name']}"
    shown = table_of_methods(title, columns, "row")
    for entry in result["rows"]:
        if not entry["ours"]:
            continue
        cells = []
        for kind, names in DEFINITIONS.items():
            cells.append(f"{entry['paper'][f'{name} {kind}']:.2f}")
            for metric in names:
                value = entry["ours"][name][metric]
                interval = "" if value is None or "low" not in value else " [{low:.1f}, {high:.1f}]".format(**value)
                cells.append("–" if value is None else f"{value['value']:.2f}{interval}")
        shown.add_row(entry["row"], *cells)
    console.print(shown)


def _explain(table: PublishedTable, result: dict[str, Any], console: Console) -> None:
    backbone = f"{result['config']['backbone']}, weights {result['config']['pretrained'] or 'random'}"
    console.print(f"paper: {table.source}")
    console.print(
        f"ours: {backbone}; TKI from {CONFIG}, names alone, one seed; per cent [95 % interval over queries]; every "
        "picture of a domain asks and every picture of another one answers"
    )
    console.print(
        "mAP@200:capped divides by min(200, relevant), interpolated takes the best precision at the same or a higher "
        "recall, Prec@200:k divides by 200; hystar-fast domains --identify tells which is the paper's"
    )
    console.print(f"paper note: {table.note}")
    missing = [entry["row"] for entry in result["rows"] if not entry["ours"]]
    console.print(f"not run: {', '.join(missing)}: other data than {result['data']['name']}")
