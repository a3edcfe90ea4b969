"""``hystar-fast reproduce``: the rows of a table on the embedded drawings or on other data, beside the paper's figures.

Ours and the paper's are never in one column and never subtracted from each other: unless the data are DSR and the
protocol is batch24, which is then said, data and protocol differ. What can always be compared is what each says of its
own rows, so both have a column "less the reference".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from hystar_fast.cli.compare import TUNING_FILE, CompareSettings, compare
from hystar_fast.cli.compare_table import bounded, recall_cell
from hystar_fast.cli.compare_tasks import CATEGORY, CLASSIFY, JOINT, evaluate_task
from hystar_fast.cli.computation import ROWS, computation
from hystar_fast.cli.few_shot import FewShotSettings, has_chosen, run_few_shot
from hystar_fast.cli.report import USUAL_CUTOFFS, about, interval, write_json
from hystar_fast.cli.reproduce_rows import EXTRACTORS, TEXT_PROMPTS, Base, Plan, plan
from hystar_fast.cli.results import chosen_runs, queries_in
from hystar_fast.cli.timing import BATCH, REPEATS, embedding_times
from hystar_fast.cli.verdicts import headline_mean, headline_of, verdict
from hystar_fast.data.paper_tables import BATCH24, TABLES, PaperTable, paper_table
from hystar_fast.methods.suite import create_method
from hystar_fast.methods.variants import create_variant
from hystar_fast.retrieval.evaluate_images import PROTOCOLS
from hystar_fast.retrieval.protocol import HARD_STYLES
from hystar_fast.retrieval.seeds import paired_difference, runs_by_method

COMPUTATION, FEW_SHOT = 5, 11
_CLASS_DATA = ("ImageNet", "SUN397")  # of Table 11


@dataclass(frozen=True)
class ReproduceSettings:
    """What is reproduced.

    Attributes:
        tables: numbers of the paper's tables.
        compare: how the rows are tuned, trained and evaluated; all tables share its folder, so that a row that two
            tables have runs once.
        vgg: weights of VGG-16, for Table 10 and FreestyleRet.
        dinov2: weights of DINOv2, for Table 10.
        few_shot_steps: training steps of Table 11.
        classes: data of Table 11, see :func:`hystar_fast.data.classes.open_classes`.
    """

    tables: Sequence[int]
    compare: CompareSettings
    vgg: str | None = None
    dinov2: str | None = None
    few_shot_steps: int = 60
    classes: str = "emoji:subgroup"


def run_reproduce(settings: ReproduceSettings, console: Console) -> dict[int, dict[str, Any]]:
    """Run the tables one after the other; each is printed and written to ``table<n>.json`` as it is done.

    Raises:
        ValueError: a number that is no table's, or what `compare` refuses.
    """
    papers = [paper_table(number) for number in settings.tables]
    results = {}
    for paper in papers:
        if paper.number == COMPUTATION:
            found = _computation(settings, paper, console)
        elif paper.number == FEW_SHOT:
            found = _few_shot(settings, paper, console)
        else:
            found = _retrieval(settings, paper, console)
        results[paper.number] = {
            **about(),
            "table": paper.number,
            "paper": headline_of(paper) + paper.source,
            "note": paper.note,
            **found,
        }
        path = settings.compare.output / f"table{paper.number}.json"
        write_json(path, results[paper.number])
        _show(results[paper.number], console)
        console.print(f"wrote {path}\n")
    return results


def _retrieval(settings: ReproduceSettings, paper: PaperTable, console: Console) -> dict[str, Any]:
    base = Base.of(settings.compare.source.config())
    planned = plan(paper.number, base, vgg=settings.vgg, dinov2=settings.dinov2)
    known = {**planned.runs, **{name: run for name, (run, _) in planned.extra.items()}}
    summary: dict[str, Any] = {}
    record: dict[str, Any] = {}
    asked: dict[str, Any] = {}
    ours, here, runs = "", planned.here, list[str]()
    if planned.runs:
        runs = list(known.values())
        record = compare(replace(settings.compare, methods=tuple(dict.fromkeys(runs))), console)
        found = evaluate_task(planned.task, settings.compare, record, console) if planned.task else record
        summary = found["summary"]
        ours = _ours(settings, paper, planned.task, found, record)
        here = "; ".join(filter(None, (_besides(settings, planned, found), planned.here)))
        source, of_source = settings.compare.source, planned.task in ("", JOINT)
        asked = {
            "protocol": PROTOCOLS[source.protocol if of_source else "full"],
            "cutoffs": dict(source.parts().cutoffs if of_source else USUAL_CUTOFFS),
        }
    rows = []
    for name, values in paper.rows.items():
        row: dict[str, Any] = {"row": name, "paper": dict(zip(paper.columns, values, strict=True))}
        mean, reference = headline_mean(paper, name), headline_mean(paper, planned.reference)
        if mean is not None and reference is not None:
            row |= {"paper_mean": round(mean, 1), "paper_difference": round(mean - reference, 1)}
        if name in planned.missing:
            row["missing"] = planned.missing[name]
        else:
            row |= _found(planned.runs[name], summary, name != planned.reference)
        if "difference" in row:
            row["verdict"] = verdict(row["paper_difference"], row["difference"]["low"], row["difference"]["high"])
        rows.append(row)
    for name, (run, than) in planned.extra.items():
        row = {"row": name, "paper": {}, **_found(run, summary, than == planned.reference)}
        if than != planned.reference and "recall" in row and known[than] in summary:
            row |= {"than": than, "difference": _between(run, known[than], record)}
        rows.append(row)
    result: dict[str, Any] = {
        "ours": ours,
        "reference": planned.reference,
        "here": here,
        "task": planned.task,
        **asked,
        "rows": rows,
    }
    if paper.number == EXTRACTORS:
        source = settings.compare.source
        timed = {run: partial(create_variant, run, source.config()) for run in sorted(set(runs))}
        costs = embedding_times(timed, source.place(), console)
        result["timed"] = {"device": source.place().type, "batch": BATCH, "turns": REPEATS}
        result["milliseconds"] = {run: asdict(cost) for run, cost in costs.items()}
    return result


def _between(run: str, other: str, record: Mapping[str, Any]) -> dict[str, float | int]:
    """The paired difference of two runs of the comparison."""
    evaluations = runs_by_method(chosen_runs(record), queries_in(record))
    found = paired_difference(evaluations[run], evaluations[other], record.get("headline", HARD_STYLES))
    assert found is not None
    return interval(found)


def _found(run: str, summary: dict[str, Any], compared: bool) -> dict[str, Any]:
    """What a run has shown, and its difference from the reference where it is `compared` with it."""
    if run not in summary:
        return {"missing": "its training diverged here"}
    entry = summary[run]
    row = {"run": run, "recall": entry["recall"]["all"], "parameters": entry["parameters"]}
    row |= {"seeds": entry["seeds"], "learning_rates": entry["learning_rates"]}
    found = entry.get("difference", {}).get("all")
    return row if found is None or not compared else {**row, "difference": found}


def _ours(
    settings: ReproduceSettings, paper: PaperTable, task: str, found: dict[str, Any], record: dict[str, Any]
) -> str:
    """What our figures are of, and whether they may be compared with the paper's."""
    source = settings.compare.source
    data = found.get("data", "emoji")
    batches = source.protocol == BATCH24 and task in ("", "joint")
    gallery = found["gallery"] if task else record["gallery"]["n"]
    headline = found.get("headline", source.parts().headline)
    ours = f"{'accuracy' if task == 'classify' else 'R@1'}, mean of {', '.join(headline)}: "
    ours += "embedded drawings" if data == "emoji" else data
    ours += ", ranked within batches of 24" if batches else f", full gallery of {gallery}"
    ours += f", {record['steps']} steps of training; ± over seeds, [95 % interval over concepts]"
    ours += f"; backbone {source.backbone}"
    if batches and paper.protocol == BATCH24 and data == paper.data and source.limit is None:
        ours += "; data and protocol are the paper's, so the two may be compared"
    return ours


def _besides(settings: ReproduceSettings, planned: Plan, found: Mapping[str, Any]) -> str:
    """What is asked of the adapters here that the paper does not ask."""
    if found.get("data", "emoji") == "emoji":
        return planned.on_emoji
    trained_on = planned.task in (CATEGORY, CLASSIFY) and settings.compare.test_data is None
    return "the categories are those of the training data, in styles that were trained on" * trained_on


def _computation(settings: ReproduceSettings, paper: PaperTable, console: Console) -> dict[str, Any]:
    config = settings.compare.source.config()
    if config.backbone != "tiny" and config.pretrained == "packaged":
        config = replace(config, pretrained=None)  # times do not depend on the weights
    device = settings.compare.source.place()
    timed = {row: partial(create_method, name, config) for row, name in ROWS.items()}
    found = computation(embedding_times(timed, device, console))
    rows = [{**row, "paper": dict(zip(paper.columns, paper.rows[row["row"]], strict=True))} for row in found]
    ours = f"parameters counted on CLIP ViT-L/14; milliseconds a picture of {config.backbone}, in batches of {BATCH}"
    ours += f" on {device.type}, Hystar's style being {config.style}"
    unused = next(row["with_unused_parts"] for row in found if row["row"] == "FreestyleRet")
    here = "FreestyleRet's parameters here are those that compute something; with the parts that its public code holds "
    here += f"and never uses it has {unused['parameters'] / 1e6:.1f} M, {unused['added_share']:.2f} % more than CLIP. "
    here += "(IA)³ rescales keys, values and inner activations of the image tower; the paper does not say what it "
    here += "rescales, and a scale of every output of every linear layer of both towers would be 0.07 %"
    return {"backbone": config.backbone, "device": device.type, "ours": ours, "here": here, "rows": rows}


def _few_shot(settings: ReproduceSettings, paper: PaperTable, console: Console) -> dict[str, Any]:
    tuning = settings.compare.output / TUNING_FILE
    chosen = FewShotSettings(
        settings.compare.output / "few_shot",
        data=settings.classes,
        methods=("frozen", "hystar"),
        config=settings.compare.source.config(),
        tuning=tuning if has_chosen(tuning, settings.compare.source.config(), ("hystar",)) else None,
        seeds=settings.compare.seeds,
        steps=settings.few_shot_steps,
        limit=settings.compare.source.limit,
        device=str(settings.compare.source.place()),
    )
    found = run_few_shot(chosen, console)
    about = found["data"]
    rows: list[dict[str, Any]] = [{"row": "CLIP, zero-shot", "paper": {}, "few_shot": found["methods"]["frozen"]}]
    for name, values in paper.rows.items():
        row: dict[str, Any] = {"row": name, "paper": dict(zip(paper.columns, values, strict=True))}
        rows.append(
            row
            | ({"missing": TEXT_PROMPTS[name]} if name in TEXT_PROMPTS else {"few_shot": found["methods"]["hystar"]})
        )
    ours = f"{about['name']}, {about['base']} base and {about['new']} new classes, {about['shots']} shots"
    return {
        "ours": ours,
        "here": "the paper does not say how Hystar is trained on classes (see docs/comparing.md); its learning rates "
        f"here: {found['methods']['hystar']['rates_from']}",
        "columns": next((name for name in _CLASS_DATA if name.lower() in about["name"].lower()), "Average"),
        "rows": rows,
    }


def _show(result: dict[str, Any], console: Console) -> None:
    number = result["table"]
    title = f"Table {number}: {paper_table(number).what}"
    cells: Callable[[dict[str, Any] | None], tuple[str, ...]]
    cells = {COMPUTATION: _computation_cells, FEW_SHOT: _few_shot_cells(result)}.get(number, _retrieval_cells)
    if all("missing" in row for row in result["rows"]):
        cells = _paper_cells(result)
    table = _table(title, cells(None))
    for row in result["rows"]:
        table.add_row(row["row"], *cells(row))
    console.print(table)
    if cells is _retrieval_cells:
        console.print(_by_query(result))
        console.print(_papers_own(result))
    for heading in ("ours", "paper", "here", "note"):
        if result[heading]:
            console.print(f"{heading}: {result[heading]}", highlight=False, markup=False)
    for row in result["rows"]:
        if "than" in row:
            console.print(f"{row['row']}: less {row['than']}", highlight=False, markup=False)
    if "milliseconds" in result:
        costs = (
            f"{name} {ms['median']:.2f} [{ms['low']:.2f}, {ms['high']:.2f}]"
            for name, ms in result["milliseconds"].items()
        )
        console.print(
            f"ms a picture here, median [fastest, slowest]: {'; '.join(costs)}", highlight=False, markup=False
        )
    for why in dict.fromkeys(row["missing"] for row in result["rows"] if "missing" in row):
        names = ", ".join(row["row"] for row in result["rows"] if row.get("missing") == why)
        console.print(f"not run: {names}: {why}", highlight=False, markup=False)


def _table(title: str, headings: Iterable[str]) -> Table:
    """Columns of figures beside the names of the rows."""
    table = Table(title=title, title_justify="left", header_style="bold", padding=(0, 0))
    table.add_column("row", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _by_query(result: dict[str, Any]) -> Table:
    """Our R@1 in every kind of query, and how many parameters train."""
    found = [row for row in result["rows"] if "recall" in row]
    kinds = list(dict.fromkeys(kind for row in found for kind in row["recall"] if kind != "hard_mean"))
    table = _table("ours, by query", (*kinds, "trained"))
    for row in found:
        cells = (recall_cell(row["recall"].get(kind), "\n") for kind in kinds)
        table.add_row(row["row"], *cells, f"{row['parameters']['trainable']:,}")
    return table


def _papers_own(result: dict[str, Any]) -> Table:
    """Every figure that the paper prints in this table."""
    rows = [row for row in result["rows"] if row["paper"]]
    table = _table("the paper's figures", rows[0]["paper"])
    for row in rows:
        table.add_row(row["row"], *(_figure(value) for value in row["paper"].values()))
    return table


def _paper_cells(result: dict[str, Any]) -> Callable[[dict[str, Any] | None], tuple[str, ...]]:
    columns = list(result["rows"][0]["paper"])
    return lambda row: tuple(f"paper: {c}" if row is None else _figure(row["paper"][c]) for c in columns)


def _figure(value: float | None, form: str = "g") -> str:
    return "–" if value is None else f"{value:{form}}"


def _retrieval_cells(row: dict[str, Any] | None) -> tuple[str, ...]:
    if row is None:
        return ("ours", "less reference", "paper", "less reference", "the paper's order")
    paper = _figure(row.get("paper_mean"), ".1f"), _figure(row.get("paper_difference"), "+.1f")
    if "missing" in row:
        return ("–", "–", *paper, "not run")
    difference = row.get("difference")
    less = "reference" if difference is None else bounded(difference, "+.1f")
    return (recall_cell(row["recall"].get("hard_mean")), less, *paper, row.get("verdict", "–"))


def _computation_cells(row: dict[str, Any] | None) -> tuple[str, ...]:
    if row is None:
        return tuple(f"{who}: {what}" for what in ("M", "% more", "ms", "% slower") for who in ("ours", "paper"))
    shown = [_figure(value) for value in row["paper"].values()]
    ours = (row["parameters"] / 1e6, ".1f"), (row["added_share"], ".2f"), (row["milliseconds"], ".2f")
    cells = [*(_figure(*pair) for pair in ours), _figure(row["time_increase"], ".0f")]
    return tuple(cell for pair in zip(cells, shown, strict=True) for cell in pair)


def _few_shot_cells(result: dict[str, Any]) -> Callable[[dict[str, Any] | None], tuple[str, ...]]:
    data, parts = result.get("columns", "Average"), ("base", "new", "H")

    def cells(row: dict[str, Any] | None) -> tuple[str, ...]:
        if row is None:
            return (*(f"ours: {part}" for part in parts), *(f"paper, {data} {part}" for part in parts))
        ours = [bounded(row["few_shot"][part], ".1f") if "few_shot" in row else "–" for part in parts]
        headings = (f"{data} {part[0].upper()}{part[1:]}" for part in parts)
        return (*ours, *(_figure(row["paper"].get(heading), ".2f") for heading in headings))

    return cells


def table_numbers(names: Sequence[str]) -> list[int]:
    """Numbers of ``table1``, ``1`` or ``all``.

    Raises:
        ValueError: another word.

    Example:
        >>> table_numbers(["table4", "14"])
        [4, 14]
    """
    if list(names) == ["all"]:
        return list(TABLES)
    found = []
    for name in names:
        digits = name.removeprefix("table")
        if not digits.isdigit() or int(digits) not in TABLES:
            raise ValueError(f"tables must be table{TABLES[0]} to table{TABLES[-1]}, or all, got {name!r}")
        found.append(int(digits))
    return found
