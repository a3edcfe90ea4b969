"""``experiments reproduce fgan:table4 --data emoji``: the ablations of FGAN's Table 4 on the embedded drawings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.experiments.comparison_tables import table_of_methods
from hystar_fast.experiments.fgan_runs import FIGURES, chance, figures, run_folder, trained, unseen_parts
from hystar_fast.experiments.published_tables import PublishedTable
from hystar_fast.experiments.reproduce_published import figure
from hystar_fast.retrieval.metrics import bootstrap_mean
from hystar_fast.retrieval.results_json import interval_info, run_info, write_json
from hystar_fast.terminal.console import Console

ABLATIONS = ("fgan", 4)
_WAYS = {"RE": "regions", "LD": "labels", "JR": "joint"}


def run_ablations(
    table: PublishedTable, output: Path, console: Console, *, steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train every row of the table on the embedded drawings, and print ours beside the paper's figures.

    Args:
        table: FGAN's Table 4.
        output: the folder; a row that an equal run has left there is not trained again.
        console: where to.
        steps: of each row; None for those of the shipped settings.
        seed: of every run.

    Returns:
        The content of ``fgan-table4-emoji.json``.

    Raises:
        ValueError: another command is writing the folder.
    """
    rows: list[dict[str, Any]] = []
    parts = unseen_parts()
    with lock_folder(output):
        for row, values in table.rows.items():
            option = table.settings.get(row, "")
            changes = [*([f"fgan.{option}"] if option else []), *([f"optim.steps={steps}"] if steps else [])]
            console.print(f"{row}{f' ({option})' if option else ''}")
            name = "".join(c if c.isalnum() else "_" for c in option) or "full"
            method = trained("fgan-emoji", [*changes, f"run.seed={seed}"], run_folder(output / "fgan" / name))
            ours = {}
            for part, images in parts.items():
                found = figures(method, images)
                ours[part] = {
                    short: {m: interval_info(bootstrap_mean(found[way][m])) for m in FIGURES}
                    for short, way in _WAYS.items()
                }
            paper = dict(zip(table.columns, values, strict=True))
            rows.append({"row": row, "setting": option, "paper": paper, "ours": ours})
        result = {
            **run_info(),
            "table": "fgan:table4",
            "paper": table.source,
            "paper_note": table.note,
            "data": "emoji:keywords, concepts of the unseen subgroups, pictures and texts, mean of both directions",
            "steps": steps,
            "seed": seed,
            "chance of mAP@all": {part: round(chance(images), 2) for part, images in parts.items()},
            "sizes": {part: len(images.gallery) for part, images in parts.items()},
            "rows": rows,
        }
        path = output / "fgan-table4-emoji.json"
        write_json(path, result)
    _show(result, table, console)
    console.print(f"wrote {path}")
    return result


def _show(result: dict[str, Any], table: PublishedTable, console: Console) -> None:
    pascal = [column for column in table.columns if column.startswith("P ")]
    ours = [f"ours {short}" for short in _WAYS]
    title = (
        "fgan, Table 4: the paper's mAP on Pascal Sentence as a share, and ours on the embedded drawings in per cent"
    )
    shown = table_of_methods(title, [*pascal, *ours, "ours R@1, JR"], "row")
    part = next(iter(result["sizes"]))
    for row in result["rows"]:
        found = row["ours"][part]
        cells = [f"{found[s]['mAP@all']['value']:.1f}" for s in _WAYS]
        shown.add_row(
            row["row"],
            *(figure(row["paper"][column], table.unit) for column in pascal),
            *cells,
            f"{found['JR']['R@1']['value']:.1f}",
        )
    console.print(shown)
    console.print(f"chance of ours: {result['chance of mAP@all'][part]} per cent; {result['sizes'][part]} concepts")
    console.print(f"paper: {table.source}")
