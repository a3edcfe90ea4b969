"""Tuning: the same number of trials for every trained method, judged on the validation concepts alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import track

from hystar_fast.cli.jobs import run_jobs
from hystar_fast.cli.report import about, commit, earlier, is_done, write_json
from hystar_fast.cli.source import USUAL, Source
from hystar_fast.methods.recipes import TUNING_SEEDS
from hystar_fast.methods.suite import TRAINED
from hystar_fast.methods.variants import Variant, create_variant

Grid = Mapping[str, Sequence[dict[str, float]]]


@dataclass(frozen=True)
class _Trial:
    key: dict[str, Any]
    source: Source
    steps: int


def tune(
    output: Path,
    console: Console,
    *,
    grid: Grid | None = None,
    steps: int | None = None,
    seeds: Sequence[int] = TUNING_SEEDS,
    source: Source | None = None,
    jobs: int = 1,
) -> dict[str, dict[str, float]]:
    """Try every setting of the grid with every seed and return the best setting of each method.

    The best has the largest mean R@1 of the headline's styles over the validation gallery, averaged over the seeds;
    R@5 decides between equals. The file is written after every trial; trials that it holds already are not run again.

    Args:
        output: JSON file of all trials.
        console: where progress and the choice are printed.
        grid: the settings of each method or variant; by default those of the demo's methods.
        steps: training steps of every trial; None for the data's.
        seeds: of the training order and of what is drawn at random; every setting runs once with each.
        source: the data and the backbone; by default the demo's.
        jobs: trials at a time.

    Raises:
        ValueError: no seeds, or `output` holds something else than trials of these settings.
    """
    if not seeds:
        raise ValueError("seeds must name at least one seed")
    source = source or Source()
    grid = {name: Variant.parse(name).grid(source.backbone) for name in TRAINED} if grid is None else grid
    config, parts = source.config(), source.parts()
    steps = parts.steps(source.batch_size) if steps is None else steps
    setting: dict[str, Any] = {
        "config": config.to_dict(),
        **parts.tuning_setting(),
        "steps": steps,
        "seeds": list(seeds),
        **source.options(),
    }
    setting.pop("protocol", None)  # of the test part alone
    kept = earlier(output, setting, "trials", holding="trials", place="file", usual=USUAL)
    record: dict[str, Any] = {**about(), **setting, **kept}
    keys = [
        {"method": name, "learning_rates": rates, "seed": seed}
        for seed in seeds
        for name in grid
        for rates in grid[name]
    ]
    new = [_Trial(key, source, steps) for key in keys if not is_done(key, record["trials"])]
    for trial in track(run_jobs(_try, new, jobs), description="trials", total=len(new), console=console):
        record["trials"].append(trial)
        write_json(output, record)
        name, rates, seed = trial["method"], trial["learning_rates"], trial["seed"]
        said = f"{name} {rates} seed {seed}: {_said(trial)} in {trial['seconds']} s"
        console.print(said, highlight=False, markup=False)
    for name, settings in grid.items():
        record["chosen"][name] = max(settings, key=lambda rates: _score(_of(record["trials"], name, rates)))
    write_json(output, record)
    console.print(f"CHOSEN = {record['chosen']}", highlight=False)
    return dict(record["chosen"])


def _try(trial: _Trial) -> dict[str, Any]:
    name, rates, seed = trial.key["method"], trial.key["learning_rates"], trial.key["seed"]
    start = time.perf_counter()
    parts, device = trial.source.parts(), trial.source.place()
    method = create_variant(name, trial.source.config(), seed=seed)
    found: dict[str, Any] = {**trial.key, "commit": commit()}
    try:
        styles = Variant.parse(name).styles or parts.styles
        losses = parts.train(method, parts.recipe(rates, trial.steps, seed, styles, trial.source.batch_size), device)
        found |= {"recall": parts.validate(method, device), "loss": round(losses[-1], 4)}
    except FloatingPointError as error:
        found["diverged"] = str(error)
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def _said(trial: Mapping[str, Any]) -> str:
    """R@1 with its interval and R@5 of the headline, or that the trial diverged."""
    if "recall" not in trial:
        return "diverged"
    first, fifth = (trial["recall"]["hard_mean"][name] for name in ("R@1", "R@5"))
    return f"R@1 {first['value']:.1f} [{first['low']:.1f}, {first['high']:.1f}], R@5 {fifth['value']:.1f}"


def _of(trials: list[dict[str, Any]], name: str, rates: dict[str, float]) -> list[dict[str, Any]]:
    return [trial for trial in trials if trial["method"] == name and trial["learning_rates"] == rates]


def _score(trials: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean R@1 and R@5 of the headline over the seeds; a trial that diverged rules its setting out."""
    if any("recall" not in trial for trial in trials):
        return (-1.0, -1.0)
    hard = [trial["recall"]["hard_mean"] for trial in trials]
    return fmean(row["R@1"]["value"] for row in hard), fmean(row["R@5"]["value"] for row in hard)
