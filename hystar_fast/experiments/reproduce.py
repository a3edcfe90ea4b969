"""``experiments reproduce``: the rows of the paper's tables on the embedded drawings or on other data.

Ours and the paper's figures have separate columns and are never subtracted: data and protocol differ, unless the data
is DSR and the protocol is batch24. Both sides have a column with the difference from the table's reference row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.experiments.compare import compare
from hystar_fast.experiments.comparison_tables import interval_cell, recall_cell, table_of_methods
from hystar_fast.experiments.experiment_settings import ExperimentSettings
from hystar_fast.experiments.few_shot import has_chosen, run_few_shot
from hystar_fast.experiments.model_sizes import ROWS, computation
from hystar_fast.experiments.paper_tables import BATCH24, PaperTable, paper_table
from hystar_fast.experiments.records import query_ids
from hystar_fast.experiments.seeds import HEADLINE, summarise
from hystar_fast.experiments.splits import open_splits
from hystar_fast.experiments.table_rows import EXTRACTORS, TEXT_PROMPTS, Base, Plan, plan
from hystar_fast.experiments.tasks import CATEGORY, CLASSIFY, JOINT, evaluate_task
from hystar_fast.experiments.timing import BATCH, REPEATS, Cost, embedding_times
from hystar_fast.experiments.tune import TUNING_FILE
from hystar_fast.experiments.variants import create_variant
from hystar_fast.methods.suite import create_method
from hystar_fast.retrieval.results_json import run_info, set_aside, write_json
from hystar_fast.terminal.console import Console

COMPUTATION, FEW_SHOT = 5, 11
_CLASS_DATA = ("ImageNet", "SUN397")  # of Table 11

Cells = Callable[[Mapping[str, Any]], tuple[str, ...]]


def run_reproduce(numbers: list[int], settings: ExperimentSettings, console: Console) -> dict[int, dict[str, Any]]:
    """Run tables one after the other; each is printed and written to ``table<n>.json``.

    All tables share the output folder, so a run that two tables need is computed once.

    Raises:
        ValueError: a number without a table, or settings that `compare` rejects.
    """
    with lock_folder(settings.output):
        return _run_reproduce(numbers, settings, console)


def _run_reproduce(numbers: list[int], settings: ExperimentSettings, console: Console) -> dict[int, dict[str, Any]]:
    results = {}
    for paper in [paper_table(number) for number in numbers]:
        if paper.number == COMPUTATION:
            found = _computation(settings, paper, console)
        elif paper.number == FEW_SHOT:
            found = _few_shot(settings, paper, console)
        else:
            found = _retrieval(settings, paper, console)
        head = {
            "table": paper.number,
            "subject": paper.subject,
            "paper": _paper_source(paper),
            "paper_note": paper.note,
        }
        results[paper.number] = {**run_info(), **head, **found}
        path = settings.output / f"table{paper.number}.json"
        kept = set_aside(path, results[paper.number], ("ours",))
        write_json(path, results[paper.number])
        _show(results[paper.number], paper, console)
        if kept is not None:
            console.print(f"kept the table of an earlier run: {kept}")
        console.print(f"wrote {path}\n")
    return results


def _paper_source(paper: PaperTable) -> str:
    columns = [column.removesuffix(" R@1") for column in paper.headline_columns]
    figure = "accuracy" if paper.number == 3 else "R@1"
    return (f"{figure}, mean of {', '.join(columns)}: " if columns else "") + paper.source


def _retrieval(settings: ExperimentSettings, paper: PaperTable, console: Console) -> dict[str, Any]:
    model = settings.model
    planned = plan(paper.number, Base.of(settings.config()), vgg=model.vgg, dinov2=model.dinov2)
    runs = {**planned.runs, **planned.extra} if planned.runs else {}
    rows: list[dict[str, Any]] = []
    for name, values in paper.rows.items():
        row: dict[str, Any] = {"row": name, "paper": dict(zip(paper.columns, values, strict=True))}
        mean, reference = paper.headline(name), paper.headline(planned.reference)
        if mean is not None and reference is not None:
            row |= {"paper_mean": round(mean, 1), "paper_difference": round(mean - reference, 1)}
        rows.append(row)
    rows += [{"row": name, "paper": {}} for name in planned.extra]
    result: dict[str, Any] = {"reference": planned.reference, "note": planned.note, "rows": rows}
    if not runs:
        return result | {"rows": [{**row, "missing": planned.missing[row["row"]]} for row in rows]}
    methods = tuple(dict.fromkeys(runs.values()))
    record = compare(settings, console, methods)
    found = evaluate_task(planned.task, settings, record, console) if planned.task else record
    summary = _summary(found, record, planned, settings)
    for row in rows:
        name = row["row"]
        if name in planned.missing:
            row["missing"] = planned.missing[name]
        elif runs[name] not in summary:
            row["missing"] = "its training diverged here"
        else:
            row |= {"run": runs[name], **summary[runs[name]]}
    result |= {"ours": _our_figures(settings, paper, planned, found), "note": _note(settings, planned, found)}
    if paper.number == EXTRACTORS:
        timed = {run: partial(create_variant, run, settings.config()) for run in sorted(methods)}
        costs = embedding_times(timed, settings.device(), console)
        result["timed"] = {"device": settings.device().type, "batch": BATCH, "turns": REPEATS}
        result["milliseconds"] = {run: asdict(cost) for run, cost in costs.items()}
    return result


def _summary(
    found: Mapping[str, Any], record: Mapping[str, Any], planned: Plan, settings: ExperimentSettings
) -> dict[str, Any]:
    """Summarise the runs of a table with differences from its reference row."""
    splits = open_splits(settings)
    parameters = {run["method"]: run["parameters"] for run in record["runs"]}
    kept = [
        {**run, "parameters": parameters[run["method"]]}
        for run in found["runs"]
        if run["method"] in found["summary"]
        and run["seed"] in found["summary"][run["method"]]["seeds"]
        and run["learning_rates"] == found["summary"][run["method"]]["learning_rates"]
    ]
    headline = found["headline"] if planned.task else splits.headline
    cutoffs = splits.cutoffs if planned.task in ("", JOINT) else {"R@1": 1, "R@5": 5}
    return summarise(kept, query_ids(found), headline, cutoffs, planned.runs[planned.reference])


def _our_figures(settings: ExperimentSettings, paper: PaperTable, planned: Plan, found: Mapping[str, Any]) -> str:
    """Describe our figures, and say if they may be compared with the paper's."""
    splits, task = open_splits(settings), planned.task
    headline = found["headline"] if task else splits.headline
    data = found["data"] if task else splits.test.name
    gallery = found["gallery"] if task else len(splits.test.gallery)
    in_batches = settings.data.protocol == BATCH24 and task in ("", JOINT)
    where = "ranked within batches of 24" if in_batches else f"full gallery of {gallery}"
    figure = "accuracy" if task == CLASSIFY else "R@1"
    where += ", displaced queries" * (splits.registered is not None)
    ours = f"{figure}, mean of {', '.join(headline)}: {data}, {where}; ± over seeds, [95 % interval over queries]"
    ours += f"; backbone {settings.model.backbone}"
    if in_batches and paper.protocol == BATCH24 and data == paper.data and not settings.data.limit:
        ours += "; data and protocol are the paper's, so the two may be compared"
    return ours


def _note(settings: ExperimentSettings, planned: Plan, found: Mapping[str, Any]) -> str:
    notes = [planned.note]
    if settings.data.source == "emoji":
        notes.append(planned.emoji_note)
    elif planned.task in (CATEGORY, CLASSIFY) and not settings.data.test:
        notes.append("the categories are those of the training data, in styles that were trained on")
    return "; ".join(filter(None, notes))


def _computation(settings: ExperimentSettings, paper: PaperTable, console: Console) -> dict[str, Any]:
    config = settings.config()
    if config.backbone != "tiny" and config.pretrained == "packaged":
        config = replace(config, pretrained=None)  # times do not depend on the weights
    device = settings.device()
    times: dict[str, Cost] = embedding_times(
        {row: partial(create_method, name, config) for row, name in ROWS.items()}, device, console
    )
    rows = [
        {**row, "paper": dict(zip(paper.columns, paper.rows[row["row"]], strict=True))} for row in computation(times)
    ]
    unused = next(row["with_unused_parts"] for row in rows if row["row"] == "FreestyleRet")
    return {
        "ours": "parameters counted on CLIP ViT-L/14; milliseconds a picture of "
        f"{config.backbone} in batches of {BATCH} on {device.type}, with the style {config.style} for Hystar",
        "note": "FreestyleRet without the parts that its public code never uses; with them it has "
        f"{unused['parameters'] / 1e6:.1f} M, {unused['added_share']:.2f} % more than CLIP. (IA)³ scales keys, "
        "values and inner activations of the image tower; the paper does not say what it scales",
        "backbone": config.backbone,
        "device": device.type,
        "rows": rows,
    }


def _few_shot(settings: ExperimentSettings, paper: PaperTable, console: Console) -> dict[str, Any]:
    tuning = settings.output / TUNING_FILE
    chosen = replace(settings.few_shot, methods=["frozen", "hystar"])
    if not chosen.tuning and has_chosen(tuning, settings, ("hystar",)):
        chosen = replace(chosen, tuning=str(tuning))
    found = run_few_shot(replace(settings, few_shot=chosen), console, Path(settings.output) / "few_shot")
    data = found["data"]
    rows: list[dict[str, Any]] = [{"row": "CLIP, zero-shot", "paper": {}, "few_shot": found["methods"]["frozen"]}]
    for name, values in paper.rows.items():
        row: dict[str, Any] = {"row": name, "paper": dict(zip(paper.columns, values, strict=True))}
        ours = {"missing": TEXT_PROMPTS[name]} if name in TEXT_PROMPTS else {"few_shot": found["methods"]["hystar"]}
        rows.append(row | ours)
    return {
        "ours": f"{data['name']}, {data['base']} base and {data['new']} new classes, {data['shots']} shots",
        "note": "the paper does not say how Hystar is trained on classes (see docs/experiments.md); its learning rates "
        f"here: {found['methods']['hystar']['rates_from']}",
        "columns": next((name for name in _CLASS_DATA if name.lower() in data["name"].lower()), "Average"),
        "rows": rows,
    }


def _show(result: Mapping[str, Any], paper: PaperTable, console: Console) -> None:
    title = f"Table {paper.number}: {paper.subject}"
    ran = [row for row in result["rows"] if "missing" not in row]
    if not ran:
        pass
    elif paper.number == COMPUTATION:
        console.print(_table(title, result, _COMPUTATION_HEADINGS, _computation_cells))
    elif paper.number == FEW_SHOT:
        headings = [
            f"{side} {part}" for side in ("ours", f"paper, {result['columns']}") for part in ("base", "new", "H")
        ]
        console.print(_table(title, result, headings, partial(_few_shot_cells, result["columns"])))
    else:
        console.print(_table(title, result, ("ours", "minus reference", "paper", "minus reference"), _retrieval_cells))
        kinds = list(dict.fromkeys(kind for row in ran for kind in row["recall"]["all"] if kind != HEADLINE))
        by_kind = table_of_methods("ours, by query", (*kinds, "trained"), "row")
        for row in ran:
            cells = (recall_cell(row["recall"]["all"].get(kind), "\n") for kind in kinds)
            by_kind.add_row(row["row"], *cells, f"{row['parameters']['trainable']:,}")
        console.print(by_kind)
    papers = table_of_methods("the paper's figures" if ran else title, paper.columns, "row")
    for name, values in paper.rows.items():
        papers.add_row(name, *map(_figure, values))
    console.print(papers)
    for heading in ("ours", "paper", "note", "paper_note"):
        if result.get(heading):
            console.print(f"{heading.replace('_', ' ')}: {result[heading]}")
    for name, cost in result.get("milliseconds", {}).items():
        line = f"{name}: {cost['median']:.2f} ms a picture, fastest {cost['low']:.2f}, slowest {cost['high']:.2f}"
        console.print(line)
    for reason in dict.fromkeys(row["missing"] for row in result["rows"] if "missing" in row):
        names = ", ".join(row["row"] for row in result["rows"] if row.get("missing") == reason)
        console.print(f"not run: {names}: {reason}")


def _table(title: str, result: Mapping[str, Any], headings: Any, cells: Cells) -> Table:
    table = table_of_methods(title, headings, "row")
    for row in result["rows"]:
        table.add_row(row["row"], *cells(row))
    return table


def _figure(value: float | None, form: str = "g") -> str:
    return "–" if value is None else f"{value:{form}}"


def _retrieval_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    paper = _figure(row.get("paper_mean"), ".1f"), _figure(row.get("paper_difference"), "+.1f")
    if "missing" in row:
        return ("–", "–", *paper)
    difference = row.get("difference", {}).get("all")
    minus = "reference" if difference is None else interval_cell(difference, "+.1f")
    return (recall_cell(row["recall"]["all"].get(HEADLINE)), minus, *paper)


_COMPUTATION_HEADINGS = [f"{side}: {what}" for what in ("M", "% more", "ms", "% slower") for side in ("ours", "paper")]


def _computation_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    ours = (
        f"{row['parameters'] / 1e6:.1f}",
        f"{row['added_share']:.2f}",
        f"{row['milliseconds']:.2f}",
        f"{row['time_increase']:.0f}",
    )
    return tuple(cell for pair in zip(ours, map(_figure, row["paper"].values()), strict=True) for cell in pair)


def _few_shot_cells(column: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    ours = [interval_cell(row["few_shot"][part], ".1f") if "few_shot" in row else "–" for part in ("base", "new", "H")]
    paper = [_figure(row["paper"].get(f"{column} {part}"), ".2f") for part in ("Base", "New", "H")]
    return (*ours, *paper)
