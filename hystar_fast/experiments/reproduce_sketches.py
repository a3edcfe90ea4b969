"""``experiments reproduce ma_sbir:table1 --data folders:DIR``: MA-SBIR and its controls on a copy of the sketches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import open_images
from hystar_fast.experiments.comparison_tables import table_of_methods
from hystar_fast.experiments.embedded_runs import figure_cell
from hystar_fast.experiments.experiment_settings import ExperimentSettings
from hystar_fast.experiments.published_tables import PublishedTable
from hystar_fast.experiments.reproduce_published import figure
from hystar_fast.experiments.row_training import data_changes, folder_name, train_row
from hystar_fast.experiments.sketch_tables import SketchTable, sketch_table, split_of
from hystar_fast.methods.conversion import MEAN_SHIFT
from hystar_fast.methods.device import on_device
from hystar_fast.methods.interface import Method
from hystar_fast.methods.suite import create_method
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.embed import Embedded
from hystar_fast.retrieval.evaluate import ORIGINAL, evaluate, row_name
from hystar_fast.retrieval.modality_means import modality_means
from hystar_fast.retrieval.results_json import interval_info, run_info, write_json
from hystar_fast.terminal.console import Console

_WARMUP = 20  # with `steps`, one of so many is of warm-up
_FROZEN, _MEANS = "frozen", "mean shift"


def run_sketch_table(
    table: PublishedTable, source: str, settings: ExperimentSettings, console: Console, *, steps: int | None = None
) -> dict[str, Any]:
    """Train the rows of a table on a data set of sketches and photos, and print ours beside the paper's figures.

    The published split whose unseen categories the data set has is used. Beside the paper's rows stand the frozen
    backbone and queries that are moved by the means of the seen pictures, before and after each training.

    Args:
        table: one that `sketch_table` knows.
        source: the data set, of one style of queries.
        settings: of the experiment: the backbone, the first seed, the output folder and the device.
        console: where to.
        steps: of each training; None for those of the shipped settings.

    Returns:
        The content of ``<paper>-table<n>-sketches.json``.

    Raises:
        ValueError: a table without such runs, a data set without a published split or with several styles of queries,
            or another command is writing the folder.
    """
    how = sketch_table(table)
    if how is None:
        raise ValueError(f"table must be one of MA-SBIR's that run on sketches, got {table.paper}:table{table.number}")
    whole, config = open_images(source), settings.config()
    split, columns = split_of(table, whole)
    seen, part = split.training(whole), split.unseen_part(whole)
    if len(whole.query_styles) != 1:
        raise ValueError(f"data must have one style of queries, got {', '.join(whole.query_styles) or 'none'}")
    sizes = split.sizes(whole, how.published)
    for line in sizes:
        console.print(line)
    with lock_folder(settings.output):
        frozen = create_method("frozen", config)
        frozen.style_means = modality_means(on_device(frozen, settings.device()), seen)
        measured = _measure(on_device(frozen, settings.device()), part, how, columns)
        entries = [{"row": name, "ours": measured[way]} for name, way in _ways(_FROZEN)]
        done: dict[tuple[str, ...], dict[str, Any]] = {}
        rows: list[dict[str, Any]] = []
        for row, values in table.rows.items():
            entry: dict[str, Any] = {"row": row, "paper": dict(zip(table.columns, values, strict=True))}
            rows.append(entry)
            if row not in how.rows:
                entry["missing"] = table.reason(row)
                continue
            changes, way = how.rows[row]
            if changes not in done:
                method = _trained(how, row, changes, split.name, source, settings, console, steps)
                done[changes] = _measure(on_device(method, settings.device()), part, how, columns)
                entries.append({"row": f"{row}, {_MEANS}", "ours": done[changes][MEAN_SHIFT]})
            entry["settings"], entry["ours"] = list(changes), done[changes].get(way, done[changes][ORIGINAL])
        result = {
            **run_info(),
            "table": f"{table.paper}:table{table.number}",
            "paper": table.source,
            "paper_note": table.note,
            "data": {"name": whole.name, "source": source, "split": split.name, "sizes": list(sizes)},
            "columns": list(columns),
            "task": how.task,
            "config": config.to_dict(),
            "training": how.config,
            "steps": steps,
            "seed": settings.seeds[0],
            "rows": rows,
            "beside": entries,
        }
        path = settings.output / f"{table.paper}-table{table.number}-sketches.json"
        write_json(path, result)
    _show(table, how, result, console)
    console.print(f"wrote {path}\n")
    return result


def _ways(name: str) -> tuple[tuple[str, str], ...]:
    return (name, ORIGINAL), (f"{name}, {_MEANS}", MEAN_SHIFT)


def _definitions(how: SketchTable, columns: Sequence[str]) -> dict[str, tuple[Metric, ...]]:
    """Return column -> its definitions here."""
    return {column: how.columns[column.split()[-1]] for column in columns}


def _measure(method: Method, part: ImageSet, how: SketchTable, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return way -> definition -> the mean over queries with its interval, in per cent; of "all" too, within."""
    metrics = [metric for found in _definitions(how, columns).values() for metric in found]
    (style,) = part.query_styles
    found: dict[str, dict[str, Any]] = {}
    embedded: dict[str, Embedded] = {}
    for task in (how.task, *(["instance"] if how.task != "category" else [])):
        for result in evaluate(method, part, task=task, metrics=metrics, embedded=embedded).kinds:
            for way in (ORIGINAL, *method.conversions()):
                if result.kind == row_name(style, way):
                    end = "" if task == how.task else " of all"
                    values = {f"{name}{end}": interval_info(v) for name, v in result.values.items() if v is not None}
                    found.setdefault(way, {}).update(values)
    return found


def _trained(
    how: SketchTable,
    row: str,
    changes: Sequence[str],
    split: str,
    source: str,
    settings: ExperimentSettings,
    console: Console,
    steps: int | None,
) -> Method:
    given = [
        *data_changes(settings, source, settings.seeds[0]),
        f"data.unseen={split}",
        *([f"optim.steps={steps}", f"optim.warmup={steps // _WARMUP}"] if steps else []),
    ]
    folder = settings.output / f"{how.config}-{split}" / (folder_name(" ".join(changes)) or "full")
    return train_row(row, how.config, [*changes, *given], folder, console)


def _show(table: PublishedTable, how: SketchTable, result: dict[str, Any], console: Console) -> None:
    columns, data = result["columns"], result["data"]
    ours = [str(metric) for found in _definitions(how, columns).values() for metric in found]
    ours += [f"{name} of all" for name in ours] if how.task != "category" else []
    title = f"{table.paper}, Table {table.number}: the paper's figures, {table.unit}, and ours on {data['name']}"
    shown = table_of_methods(title, [*(f"paper {column}" for column in columns), *ours], "row")
    for entry in (*result["rows"], *result["beside"]):
        paper = [figure(entry.get("paper", {}).get(column), table.unit) for column in columns]
        cells = [figure_cell(entry.get("ours", {}).get(name)) for name in ours]
        shown.add_row(entry["row"], *paper, *cells)
    console.print(shown)
    console.print(f"paper: {table.source}")
    backbone = f"{result['config']['backbone']}, weights {result['config']['pretrained'] or 'random'}"
    console.print(
        f"ours: {backbone}; trained from {how.config}, split {data['split']}, one seed; per cent [95 % interval over "
        "queries]; every sketch of the unseen categories asks, every photo of them answers"
    )
    if how.task != "category":
        console.print("R@k: Acc@k among the photos of the category; of all: among those of all unseen categories")
    if table.note:
        console.print(f"paper note: {table.note}")
    copied = [entry["row"] for entry in result["rows"] if "missing" in entry]
    if copied:
        console.print(f"not run: {', '.join(copied)}: other methods, whose figures the paper took from their papers")
