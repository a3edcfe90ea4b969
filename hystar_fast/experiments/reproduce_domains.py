"""``experiments reproduce tki:table3 --data pacs:DIR``: pairs of domains, by a frozen CLIP, TKI and its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import open_images
from hystar_fast.experiments.comparison_tables import table_of_methods
from hystar_fast.experiments.domain_tables import place_of, rows_of
from hystar_fast.experiments.embedded_runs import deviation, figure_cell, over_seeds
from hystar_fast.experiments.experiment_settings import ExperimentSettings
from hystar_fast.experiments.published_tables import PublishedTable
from hystar_fast.experiments.row_training import data_changes, folder_name, train_row
from hystar_fast.experiments.tki_runs import EUCLIDEAN, STEPS, WCCN
from hystar_fast.methods.device import on_device
from hystar_fast.methods.interface import Method
from hystar_fast.methods.suite import create_method
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.domains import DomainMatrix, evaluate_domains
from hystar_fast.retrieval.results_json import run_info, to_percent, write_json
from hystar_fast.terminal.console import Console

CONFIG = "tki-literal"
# the paper's column -> the definitions that it may be of
DEFINITIONS = {"mAP": ("mAP@200:capped", "mAP@200:capped:interpolated"), "Prec": ("Prec@200:k",)}
# what trains -> what it changes of `CONFIG`
TRAINED = {"TKI": (), "TKI, start=clip": ("tki.start=clip",), **EUCLIDEAN, **WCCN}
_FROZEN = "CLIP"
_METRICS = [Metric.parse(name) for names in DEFINITIONS.values() for name in names]


def run_domain_table(
    table: PublishedTable, source: str, settings: ExperimentSettings, console: Console, *, steps: int | None = None
) -> dict[str, Any]:
    """Search every domain of a data set by every other one, and print ours beside the paper's figures.

    CLIP is the frozen backbone of the settings. TKI and its controls (`TRAINED`) are trained on it from the settings
    ``tki-literal``, on the names of the classes, each with every seed of the settings. A run that an equal call has
    left in the output folder is not trained again.

    Args:
        table: of `domain_table`.
        source: a data set of its domains.
        settings: of the experiment: the backbone, the seeds, the output folder and the device.
        console: where to.
        steps: of each stage of TKI; None for those of its settings.

    Returns:
        The content of ``<paper>-table<n>-<data set>.json``.

    Raises:
        ValueError: other domains than the table's, a backbone that cannot be used, or another command is writing the
            folder.
    """
    images, config = open_images(source), settings.config()
    rows, place = rows_of(table, images), place_of(images).lower()
    with lock_folder(settings.output):
        found = {_FROZEN: [_measure(create_method("frozen", config), images, settings)]}
        for name in TRAINED:
            found[name] = []
            for seed in settings.seeds:
                method = _trained(name, seed, f"{table.paper}-{place}", source, settings, console, steps)
                found[name].append(_measure(method, images, settings))
        entries = []
        for row, values in table.rows.items():
            pair = rows.get(row)
            ours = {} if pair is None else {name: _figures(runs, *pair) for name, runs in found.items()}
            entries.append({"row": row, "paper": dict(zip(table.columns, values, strict=True)), "ours": ours})
        result = {
            **run_info(),
            "table": f"{table.paper}:table{table.number}",
            "paper": table.source,
            "paper_note": table.note,
            "data": {"name": images.name, "source": source},
            "config": config.to_dict(),
            "training": {name: [CONFIG, *changes] for name, changes in TRAINED.items()},
            "steps": steps,
            "seeds": [*settings.seeds],
            "rows": entries,
        }
        path = settings.output / f"{table.paper}-table{table.number}-{place}.json"
        write_json(path, result)
    for kind, names in DEFINITIONS.items():
        for metric in names:
            _show(kind, metric, table, result, console)
    _explain(table, result, console)
    console.print(f"wrote {path}\n")
    return result


def _measure(method: Method, images: ImageSet, settings: ExperimentSettings) -> DomainMatrix:
    return evaluate_domains(on_device(method, settings.device()), images, _METRICS)


def _trained(
    name: str,
    seed: int,
    folder: str,
    source: str,
    settings: ExperimentSettings,
    console: Console,
    steps: int | None,
) -> Method:
    changes = [
        *data_changes(settings, source, seed),
        *([f"{stage}={steps}" for stage in STEPS] if steps else []),
        *TRAINED[name],
    ]
    where = settings.output / folder / folder_name(f"{name}-{seed}")
    return train_row(f"{name}, seed {seed}", CONFIG, changes, where, console)


def _figures(runs: Sequence[DomainMatrix], asks: str, answers: str | None) -> dict[str, Any]:
    """Return metric -> what `over_seeds` finds, or the same without an interval of the plain mean over domains."""
    found: dict[str, Any] = {}
    for metric in _METRICS:
        if answers is None:
            means = [mean for run in runs if (mean := run.average(asks, metric)) is not None]
            found[str(metric)] = {"value": to_percent(sum(means) / len(means)), **deviation(means)} if means else None
        else:
            is_answered = runs[0].mean(asks, answers, metric) is not None
            values = [run.measured[asks, answers].values[metric] for run in runs]
            found[str(metric)] = over_seeds(values) if is_answered else None
    return found


def _show(kind: str, metric: str, table: PublishedTable, result: Mapping[str, Any], console: Console) -> None:
    """Print one definition: the paper's columns that it may be of, each before ours, and the controls."""
    names = [_FROZEN, *TRAINED]
    columns = [heading for name in names for heading in (*(f"paper {one}" for one in _column(name, kind, table)), name)]
    title = f"{table.paper}, Table {table.number}: the paper's {kind}, and ours as {metric} on {result['data']['name']}"
    shown = table_of_methods(title, columns, "row")
    for entry in result["rows"]:
        if entry["ours"]:
            cells = []
            for name in names:
                cells += [f"{entry['paper'][column]:.2f}" for column in _column(name, kind, table)]
                cells.append(figure_cell(entry["ours"][name][metric], 2))
            shown.add_row(entry["row"], *cells)
    console.print(shown)


def _column(name: str, kind: str, table: PublishedTable) -> list[str]:
    """Return the paper's column of a method; none of a control."""
    return [column for column in table.columns if column == f"{name} {kind}"]


def _explain(table: PublishedTable, result: dict[str, Any], console: Console) -> None:
    backbone = f"{result['config']['backbone']}, weights {result['config']['pretrained'] or 'random'}"
    count = len(result["seeds"])
    console.print(f"paper: {table.source}")
    console.print(
        f"ours: {backbone}; TKI from {CONFIG} and its controls, names alone; mean of {count} seed{'s' * (count > 1)}, "
        "± the standard deviation over seeds; per cent [95 % interval over queries]; every picture of a domain asks "
        "and every picture of another one answers"
    )
    console.print(
        "start=clip: the head begins as CLIP itself; geometry=euclidean: as many parameters, no hyperbolic layer; "
        "wccn: a closed form, trained in its style words alone"
    )
    console.print(
        "mAP@200:capped divides by min(200, relevant), interpolated takes the best precision at the same or a higher "
        "recall, Prec@200:k divides by 200; hystar-fast domains --identify tells which is the paper's"
    )
    console.print(f"paper note: {table.note}")
    missing = [entry["row"] for entry in result["rows"] if not entry["ours"]]
    console.print(f"not run: {', '.join(missing)}: other data than {result['data']['name']}")
