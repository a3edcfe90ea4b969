"""Measure every system on one task: black and white drawings find the pictures of the embedded drawings.

    python bench/systems.py tune    # three settings of each system, one seed, judged on the validation concepts
                                    # of the subgroups that train
    python bench/systems.py         # the best setting of each with three seeds

All train on drawings and pictures of the training concepts of seen subgroups, TKI on their names alone. Runs are kept
in --runs; a second call makes only what is missing. Both write docs/results/systems.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from unseen_demo import cell_of

from hystar_fast.data.image_set import ImageSet, read_images
from hystar_fast.data.open import open_images
from hystar_fast.data.unseen import OWN, CategorySplit
from hystar_fast.experiments.embedded_runs import (
    chance,
    frozen,
    mean_over_seeds,
    measure_figures,
    run_folder,
    trained,
    unseen_parts,
)
from hystar_fast.experiments.ma_sbir_runs import training_drawings
from hystar_fast.methods.conversion import CONVERTED, MEAN_SHIFT
from hystar_fast.methods.interface import GALLERY, QUERY, Method, count_parameters
from hystar_fast.retrieval.embed import embed_records
from hystar_fast.retrieval.evaluate import ORIGINAL
from hystar_fast.retrieval.metrics import bootstrap_mean
from hystar_fast.retrieval.modality_means import modality_means
from hystar_fast.retrieval.results_json import interval_info, read_json, run_info, write_json

SOURCE, STYLE = "emoji", "sketch"
FROZEN = "frozen"
METRICS = {"category": ("mAP@all",), "instance": ("R@1",)}  # of the subgroup, and of the own concept
RESULTS = "systems.json"
_BATCH, _ROUNDS = 16, 7
Runs = Annotated[Path, typer.Option(help="Folder of the runs.")]
Steps = Annotated[int, typer.Option(help="Of each run; 0 for those of its settings.")]
Output = Annotated[Path, typer.Option(help="Folder of systems.json.")]
app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True)
class System:
    """A system and how it is trained and asked.

    Attributes:
        config: shipped settings; "" for what does not train.
        changes: of these.
        candidates: three more changes each, of which `tune` takes the best.
        way: how its queries are moved.
    """

    config: str = ""
    changes: tuple[str, ...] = ()
    candidates: tuple[tuple[str, ...], ...] = ()
    way: str = ORIGINAL


def _rates(key: str, *values: float) -> tuple[tuple[str, ...], ...]:
    return tuple((f"{key}={value}",) for value in values)


_DRAWN = f'data.styles=["{STYLE}"]'
_BESIDE = (_DRAWN, "data.validation=none", "run.validate_every=0")
_HYSTAR = ((3e-2, 1e-3), (6e-2, 1e-3), (6e-2, 3e-3))
SYSTEMS = {
    FROZEN: System(),
    "mean shift": System(way=MEAN_SHIFT),
    "static": System("emoji", (*_BESIDE, "model.method=static"), _rates("optim.static_lr", 3e-2, 6e-2, 0.12)),
    "lora": System("emoji", (*_BESIDE, "model.method=lora"), _rates("optim.learning_rate", 1.5e-3, 3e-3, 6e-3)),
    "hystar": System("emoji", _BESIDE, tuple((f"optim.static_lr={s}", f"optim.dynamic_lr={d}") for s, d in _HYSTAR)),
    "acnet": System("acnet-emoji", (), _rates("optim.learning_rate", 3e-6, 1e-5, 3e-5)),
    "fgan": System("fgan-emoji-sketch", (), _rates("optim.learning_rate", 1.5e-4, 5e-4, 1.5e-3)),
    "ma_sbir": System("ma-sbir-emoji", (_DRAWN,), _rates("optim.learning_rate", 1e-5, 3e-5, 1e-4), CONVERTED),
    "tki": System("tki-emoji", (), _rates("optim.learning_rate", 3e-5, 1e-4, 3e-4)),
}


def systems_parts() -> dict[str, ImageSet]:
    """Return "unseen", all concepts of unseen subgroups, and of the test split "seen", those of seen ones, and all."""
    test = open_images(SOURCE, "test")
    unseen = CategorySplit.of(OWN, test).unseen
    kept = tuple(record for record in test.records if record.category not in unseen)
    return {"unseen": unseen_parts(SOURCE)["unseen-all"], "seen": replace(test, records=kept), "test": test}


def tuning_part() -> ImageSet:
    """Return the validation concepts of seen subgroups; those of unseen ones are a part that is measured."""
    images = open_images(SOURCE, "val")
    return CategorySplit.of(OWN, images).training(images)


def measured(method: Method, images: ImageSet, way: str) -> dict[str, Tensor]:
    """Return figure -> its value for every drawing, [n] between 0 and 1.

    Args:
        method: the encoder; without means of its styles it gets those of the training drawings, if it is asked by them.
        images: drawings of `STYLE` ask for the gallery.
        way: how queries are moved.
    """
    queries = embed_records(method, images, images.of_style(STYLE), [], role=QUERY)
    gallery = embed_records(method, images, images.gallery, [], role=GALLERY)
    if way == MEAN_SHIFT and not method.style_means:
        method.style_means = modality_means(method, training_drawings((STYLE,)))
    if way != ORIGINAL:
        moved = method.conversions()[way](queries.vectors, STYLE, images.gallery_style)
        queries = replace(queries, vectors=moved)
    return measure_figures(queries, gallery, METRICS, method.similarity)


def _run(name: str, changes: tuple[str, ...], seed: int, runs: Path, steps: int) -> Method:
    system = SYSTEMS[name]
    if not system.config:
        return frozen()
    label = "".join(c if c.isalnum() or c in ".-" else "_" for c in " ".join((name, *changes, str(seed))))
    keys = ("tki.steps_expansion", "tki.steps_aggregation") if name == "tki" else ("optim.steps",)
    own = [*system.changes, *changes, f"run.seed={seed}", *(f"{key}={steps}" for key in keys if steps)]
    return trained(system.config, own, run_folder(runs / label))


@app.command()
def tune(runs: Runs = Path("runs/systems"), steps: Steps = 0, output: Output = Path("docs/results")) -> None:
    """Train three settings of each system with one seed, and write which is best on `tuning_part`."""
    images = tuning_part()
    trials: dict[str, dict[str, float]] = {}
    for name, system in SYSTEMS.items():
        for changes in system.candidates:
            values = measured(_run(name, changes, 0, runs, steps), images, system.way)
            trials.setdefault(name, {})[" ".join(changes)] = round(100 * values["mAP@all"].mean().item(), 2)
            typer.echo(f"{name} {' '.join(changes)}: mAP@all {trials[name][' '.join(changes)]}")
    chosen = {name: max(found, key=lambda changes: found[changes]) for name, found in trials.items()}
    found = run_info() | {"mAP@all on the validation concepts of seen subgroups": trials, "chosen": chosen}
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / RESULTS, {"tuning": found})


@torch.no_grad()
def query_milliseconds(methods: Mapping[str, Method], images: ImageSet) -> dict[str, float]:
    """Return the CPU milliseconds of embedding one drawing, in batches of 16: the median of seven rounds in turn."""
    records = images.of_style(STYLE)[:_BATCH]
    pixels = {name: next(iter(read_images(images, records, m.resize, [])))[1] for name, m in methods.items()}
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(_ROUNDS + 1):  # the first is not counted
        for name, method in methods.items():
            start = time.process_time()
            method.encode(pixels[name], QUERY)
            times[name].append(1000 * (time.process_time() - start) / len(records))
    return {name: round(statistics.median(found[1:]), 2) for name, found in times.items()}


@app.callback(invoke_without_command=True)
def compare(
    context: typer.Context,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    steps: Steps = 0,
    output: Output = Path("docs/results"),
    runs: Runs = Path("runs/systems"),
) -> None:
    """Train every system with the setting that `tune` chose, measure all, and write the figures."""
    if context.invoked_subcommand is not None:
        return
    tuning, parts = read_json(output / RESULTS)["tuning"], systems_parts()
    values: dict[str, dict[int, dict[str, dict[str, Tensor]]]] = {}
    rows: dict[str, dict[str, Any]] = {}
    methods: dict[str, Method] = {}
    for name, system in SYSTEMS.items():
        changes = tuple(tuning["chosen"].get(name, "").split())
        values[name] = {}
        for seed in range(seeds if system.config else 1):
            method = _run(name, changes, seed, runs, steps)
            values[name][seed] = {part: measured(method, images, system.way) for part, images in parts.items()}
            typer.echo(
                f"{name}, seed {seed}: mAP@all {100 * values[name][seed]['unseen']['mAP@all'].mean():.1f} of unseen"
            )
        methods[name] = method
        vector = embed_records(method, parts["seen"], parts["seen"].gallery[:1], []).vectors
        rows[name] = {
            "settings": list(changes),
            "trained parameters": sum(count_parameters(method).values()) if system.config else 0,
            "bytes of a picture in the index": 4 * vector.shape[1],
            **{part: _figures(values, name, part) for part in parts},
        }
    for name, spent in query_milliseconds(methods, parts["seen"]).items():
        rows[name]["CPU milliseconds of a query"] = spent
    result = {
        **run_info(),
        "seeds": seeds,
        "intervals": "95 %, paired bootstrap over queries of the mean over seeds",
        "sizes": {part: len(images.gallery) for part, images in parts.items()},
        "chance of mAP@all": {part: round(chance(images, images.of_style(STYLE)), 2) for part, images in parts.items()},
        "tuning": tuning,
        "rows": rows,
    }
    write_json(output / RESULTS, result)
    typer.echo("\n".join(table(result)))


def _figures(values: Mapping[str, Any], name: str, part: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for figure in (figure for names in METRICS.values() for figure in names):
        ours = mean_over_seeds(values[name], part, figure)
        found[figure] = interval_info(bootstrap_mean(ours))
        if name != FROZEN:
            found[f"{figure} - {FROZEN}"] = interval_info(
                bootstrap_mean(ours - mean_over_seeds(values[FROZEN], part, figure))
            )
    return found


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table of docs/systems.md."""
    shown: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "R@1 of the concept": lambda row: cell_of(row["test"]["R@1"]),
        "mAP, unseen subgroups": lambda row: cell_of(row["unseen"]["mAP@all"]),
        "minus frozen": lambda row: cell_of(row["unseen"].get(f"mAP@all - {FROZEN}")),
        "mAP, seen subgroups": lambda row: cell_of(row["seen"]["mAP@all"]),
        "trained": lambda row: f"{row['trained parameters']:,}",
        "ms a query": lambda row: f"{row['CPU milliseconds of a query']:.1f}",
        "bytes a picture": lambda row: f"{row['bytes of a picture in the index']:,}",
    }
    lines = [f"| system | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
    return lines + [
        f"| {name} | {' | '.join(cell(row) for cell in shown.values())} |" for name, row in result["rows"].items()
    ]


if __name__ == "__main__":
    app()
