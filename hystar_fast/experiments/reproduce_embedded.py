"""``experiments reproduce acnet:table2 --data emoji``: the ablations of other papers on the embedded drawings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.data.image_set import ImageSet
from hystar_fast.experiments import acnet_runs, fgan_runs, ma_sbir_runs, tki_runs
from hystar_fast.experiments.comparison_tables import table_of_methods
from hystar_fast.experiments.embedded_runs import (
    chance,
    figure_cell,
    frozen,
    over_seeds,
    unseen_parts,
)
from hystar_fast.experiments.published_tables import PublishedTable
from hystar_fast.experiments.reproduce_published import figure
from hystar_fast.experiments.row_training import folder_name, train_row
from hystar_fast.methods.conversion import CONVERTED, MEAN_SHIFT
from hystar_fast.methods.interface import Method
from hystar_fast.methods.step_trained import RunTooShort
from hystar_fast.retrieval.evaluate import ORIGINAL
from hystar_fast.retrieval.results_json import run_info, write_json
from hystar_fast.terminal.console import Console

Measures = Callable[[Method, ImageSet], Mapping[str, Tensor]]
_CONTROLS = {"frozen": ORIGINAL, "frozen, mean shift": MEAN_SHIFT}


@dataclass(frozen=True)
class Embedded:
    """How the runs of a paper are made and measured on the embedded drawings.

    Attributes:
        config: the shipped settings; each row changes some.
        data: what is searched, for the record.
        parts: the data sets, by name; the first is shown.
        figures: what is measured of each query, by name, between 0 and 1.
        shown: those of `figures` in the printed table.
        published: how the shown columns of the paper begin.
        frozen: rows that are the packaged CLIP without training.
        steps: the settings that ``--steps`` changes.
        rows: those that are measured in another way than by `figures`.
        beside: rows that the paper does not have, of the packaged CLIP without training.
        controls: further ones, which train: name -> what each changes of `config`.
        has_seeds: whether a row is trained with every seed; else with the first.
        chance: what random rankings give in per cent, and of which figure that is.
    """

    config: str
    data: str
    parts: Callable[[], Mapping[str, ImageSet]]
    figures: Measures
    shown: tuple[str, ...]
    published: str
    frozen: tuple[str, ...] = ()
    steps: tuple[str, ...] = ("optim.steps",)
    rows: Mapping[str, Measures] = field(default_factory=dict)
    beside: Mapping[str, Measures] = field(default_factory=dict)
    controls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_seeds: bool = False
    chance: tuple[Callable[[ImageSet], float], str] = (chance, "mAP@all")


def _fgan_figures(method: Method, images: ImageSet) -> dict[str, Tensor]:
    found = fgan_runs.figures(method, images)
    ways = {"RE": "regions", "LD": "labels", "JR": "joint"}
    return {f"{short} {name}": found[way][name] for short, way in ways.items() for name in fgan_runs.FIGURES}


EMBEDDED = {
    "acnet": Embedded(
        "acnet-emoji",
        "emoji: sketches of the unseen subgroups find drawings of their subgroup; the image tower of the packaged CLIP "
        "takes the place of ResNet-50",
        acnet_runs.acnet_parts,
        acnet_runs.acnet_figures,
        ("mAP@all", "mAP@all:interpolated", "R@1"),
        "S ",
    ),
    "fgan": Embedded(
        "fgan-emoji",
        "emoji:keywords, concepts of the unseen subgroups, pictures and texts, mean of both directions",
        lambda: unseen_parts(fgan_runs.SOURCE),
        _fgan_figures,
        ("RE mAP@all", "LD mAP@all", "JR mAP@all", "JR R@1"),
        "P ",
    ),
    "ma_sbir": Embedded(
        "ma-sbir-emoji",
        "emoji: outlines and sketches of the unseen subgroups find drawings of their subgroup; converted queries, and "
        "original ones where no vector is trained; the packaged CLIP takes the place of OpenAI's",
        lambda: unseen_parts(ma_sbir_runs.SOURCE),
        ma_sbir_runs.figures_by(CONVERTED),
        ("mAP@all", "mAP@all, original", "mAP@all, mean shift", "R@1"),
        "S ",
        beside={row: ma_sbir_runs.figures_by(way) for row, way in _CONTROLS.items()},
    ),
    "tki": Embedded(
        "tki-emoji",
        "emoji: drawings of every hard style find drawings of the gallery of the same subgroup; names alone train, and "
        "the packaged CLIP takes the place of OpenAI's",
        tki_runs.tki_parts,
        tki_runs.tki_figures,
        ("mAP@all", "mAP@200:capped", "R@1"),
        "Avg ",
        frozen=("neither",),
        steps=tki_runs.STEPS,
        controls={**tki_runs.EUCLIDEAN, **tki_runs.WCCN},
        has_seeds=True,
    ),
}
_FINE = Embedded(
    "ma-sbir-fine-emoji",
    "emoji: outlines and sketches of the unseen subgroups find the drawing of their concept, Acc@k among those of its "
    "subgroup and of all; the packaged CLIP takes the place of OpenAI's",
    ma_sbir_runs.fine_parts,
    ma_sbir_runs.figures_by(ORIGINAL, ma_sbir_runs.FINE_FIGURES),
    ("Acc@1", "Acc@5", "Acc@1 of all", "Acc@1, mean shift"),
    "Acc",
    rows={"Ours [converted]": ma_sbir_runs.figures_by(CONVERTED, ma_sbir_runs.FINE_FIGURES)},
    beside={row: ma_sbir_runs.figures_by(way, ma_sbir_runs.FINE_FIGURES) for row, way in _CONTROLS.items()},
    chance=(ma_sbir_runs.chance_within, "Acc@1"),
)
OTHERWISE = {("ma_sbir", 3): _FINE, ("ma_sbir", 7): _FINE}  # tables of another variant than the paper's others


def how_of(table: PublishedTable) -> Embedded:
    """Return how the rows of a table run on the embedded drawings."""
    return OTHERWISE.get((table.paper, table.number), EMBEDDED[table.paper])


def run_embedded(
    tables: Sequence[PublishedTable],
    output: Path,
    console: Console,
    *,
    steps: int | None = None,
    seeds: Sequence[int] = (0,),
) -> dict[str, dict[str, Any]]:
    """Train the rows of tables on the embedded drawings, and print ours beside the paper's figures.

    Args:
        tables: each must have settings of its rows.
        output: the folder, which gets ``<paper>-table<n>-emoji.json``. A row that an equal run has left there is not
            trained again.
        console: where to.
        steps: of each row; None for those of the shipped settings.
        seeds: of the runs of each row; where a paper's `Embedded` has none, the first alone.

    Returns:
        "acnet:table2" -> the content of its file.

    Raises:
        ValueError: a table without rows that can run, before anything is trained; or another command is writing the
            folder.
    """
    for table in tables:
        if not table.settings:
            raise ValueError(f"data must be left out for {_name(table)}, none of whose rows runs on these drawings")
    with lock_folder(output):
        return {_name(table): _run(table, output, console, steps, seeds) for table in tables}


def _name(table: PublishedTable) -> str:
    return f"{table.paper}:table{table.number}"


def _run(
    table: PublishedTable, output: Path, console: Console, steps: int | None, seeds: Sequence[int]
) -> dict[str, Any]:
    how = how_of(table)
    used = [*seeds] if how.has_seeds else [seeds[0]]
    parts, chance_of = how.parts(), f"chance of {how.chance[1]}"
    runs = output / (how.config if (table.paper, table.number) in OTHERWISE else table.paper)

    def ours(row: str, changes: Sequence[str]) -> dict[str, Any]:
        """Return a row's settings and figures, or why it has none."""
        try:
            methods = [_trained(how, row, changes, runs, console, steps, seed) for seed in used]
        except (ModuleNotFoundError, RunTooShort) as error:  # a loss of an optional package, or too few --steps
            return {"missing": str(error)}
        return {"settings": list(changes), "ours": _figures(how.rows.get(row, how.figures), methods, parts)}

    rows: list[dict[str, Any]] = []
    for row, values in table.rows.items():
        entry: dict[str, Any] = {"row": row, "paper": dict(zip(table.columns, values, strict=True))}
        rows.append(entry)
        if row in how.frozen:
            entry |= {"settings": [], "ours": _figures(how.figures, [frozen()], parts)}
        elif row in table.settings:
            entry |= ours(row, table.settings[row])
        else:
            entry["missing"] = table.reason(row)
    bare = frozen() if how.beside else None  # one, as its means are measured once
    beside = [] if bare is None else [{"row": row, "ours": _figures(w, [bare], parts)} for row, w in how.beside.items()]
    beside += [{"row": row, **ours(row, changes)} for row, changes in how.controls.items()]
    result = {
        **run_info(),
        "table": _name(table),
        "paper": table.source,
        "paper_note": table.note,
        "data": how.data,
        "steps": steps,
        "seeds": used,
        chance_of: {part: round(how.chance[0](images), 2) for part, images in parts.items()},
        "sizes": {part: len(images.gallery) for part, images in parts.items()},
        "rows": rows,
        "beside": beside,
    }
    path = output / f"{table.paper}-table{table.number}-emoji.json"
    write_json(path, result)
    _show(result, table, console)
    console.print(f"wrote {path}\n")
    return result


def _figures(measures: Measures, methods: Sequence[Method], parts: Mapping[str, ImageSet]) -> dict[str, Any]:
    """Return part -> figure -> what `over_seeds` finds of the runs of a row."""
    found: dict[str, Any] = {}
    for part, images in parts.items():
        measured = [measures(method, images) for method in methods]
        found[part] = {name: over_seeds([run[name] for run in measured]) for name in measured[0]}
    return found


def _trained(
    how: Embedded, row: str, changes: Sequence[str], output: Path, console: Console, steps: int | None, seed: int
) -> Method:
    name = (folder_name(" ".join(changes)) or "full") + (f"-{seed}" if seed else "")
    own = [*([f"{key}={steps}" for key in how.steps] if steps else []), *changes, f"run.seed={seed}"]
    return train_row(f"{row}, seed {seed}" if how.has_seeds else row, how.config, own, output / name, console)


def _show(result: dict[str, Any], table: PublishedTable, console: Console) -> None:
    how = how_of(table)
    columns = [column for column in table.columns if column.startswith(how.published)]
    title = f"{table.paper}, Table {table.number}: the paper's figures, {table.unit}, and ours on the embedded drawings"
    shown = table_of_methods(title, [*columns, *(f"ours {name}" for name in how.shown)], "row")
    part = next(iter(result["sizes"]))
    for row in (*result["rows"], *result["beside"]):
        ours = ["–"] * len(how.shown)
        if "ours" in row:
            ours = [figure_cell(row["ours"][part][name]) for name in how.shown]
        paper = row.get("paper", {})
        shown.add_row(row["row"], *(figure(paper.get(column), table.unit) for column in columns), *ours)
    console.print(shown)
    console.print(f"paper: {table.source}")
    chance_of = f"chance of {how.chance[1]}"
    console.print(
        f"ours: {result['data']}; per cent [95 % interval over queries], {_seeds(result['seeds'])}; "
        f"{result['sizes'][part]} drawings in the gallery, {chance_of} {result[chance_of][part]}"
    )
    for row in (*result["rows"], *result["beside"]):
        if "missing" in row:
            console.print(f"not run: {row['row']}: {row['missing']}")


def _seeds(seeds: Sequence[int]) -> str:
    return "one seed" if len(seeds) == 1 else f"mean of {len(seeds)} seeds, ± the standard deviation over them"
