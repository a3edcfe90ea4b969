"""Tuning: the same number of trials for every trained method, evaluated on the validation part."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.experiments.experiment_settings import ExperimentSettings
from hystar_fast.experiments.jobs import run_jobs
from hystar_fast.experiments.learning_rates import Rates
from hystar_fast.experiments.records import is_done, read_earlier
from hystar_fast.experiments.seeds import recall_info
from hystar_fast.experiments.splits import USUAL_CUTOFFS, open_splits, train_method, validate_method
from hystar_fast.experiments.variants import Variant, create_variant
from hystar_fast.methods.suite import DEMO_TRAINED
from hystar_fast.retrieval.results_json import commit, run_info, write_json
from hystar_fast.terminal.console import Console
from hystar_fast.terminal.progress import Progress

TUNING_FILE = "tuning.json"
Grid = Mapping[str, Sequence[Rates]]


@dataclass(frozen=True)
class _Trial:
    key: dict[str, Any]
    settings: ExperimentSettings


def tune(settings: ExperimentSettings, console: Console, grid: Grid | None = None) -> dict[str, Rates]:
    """Try every setting of the grid with every tuning seed, and return the best setting of each method.

    The best setting has the largest mean R@1 of the headline styles over the validation gallery, averaged over the
    seeds; R@5 breaks ties. ``tuning.json`` is written after every trial, and its trials are not run again.

    Args:
        settings: of the experiment.
        console: prints the progress and the chosen rates.
        grid: the settings of each method or variant; by default those of `settings.training.methods` or, if there are
            none, of the demo's trained methods.

    Raises:
        ValueError: the output folder holds trials of other settings, or another command is writing it.
    """
    with lock_folder(settings.output):
        return _tune(settings, console, grid)


def _tune(settings: ExperimentSettings, console: Console, grid: Grid | None) -> dict[str, Rates]:
    if grid is None:
        names = settings.training.methods or DEMO_TRAINED
        grid = {name: rates for name in names if (rates := Variant.parse(name).grid(settings.model.backbone))}
    seeds = range(settings.training.tuning_seeds)
    identity = {"settings": settings.identity(with_protocol=False), "seeds": list(seeds)}
    path = settings.output / TUNING_FILE
    record: dict[str, Any] = {**run_info(), **identity, **read_earlier(path, identity, "trials")}
    record["data"] = open_splits(settings).info()
    keys = [
        {"method": name, "learning_rates": rates, "seed": seed}
        for seed in seeds
        for name in grid
        for rates in grid[name]
    ]
    new = [_Trial(key, settings) for key in keys if not is_done(key, record["trials"])]
    results = run_jobs(_run_trial, new, settings.run.jobs)
    with Progress(console) as progress:
        for trial in progress.track(results, total=len(new), description="trials"):
            record["trials"].append(trial)
            write_json(path, record)
            name, rates, seed = trial["method"], trial["learning_rates"], trial["seed"]
            console.print(f"{name} {rates} seed {seed}: {_shown(trial)} in {trial['seconds']} s")
    chosen = {
        name: max(rates, key=lambda setting: _score(_trials_of(record["trials"], name, setting)))
        for name, rates in grid.items()
    }
    record["chosen"] = {**record.get("chosen", {}), **chosen}
    write_json(path, record)
    console.print(f"chosen learning rates: {chosen}")
    return chosen


def _run_trial(trial: _Trial) -> dict[str, Any]:
    name, rates, seed = trial.key["method"], trial.key["learning_rates"], trial.key["seed"]
    start = time.perf_counter()
    method = create_variant(name, trial.settings.config(), seed=seed)
    found: dict[str, Any] = {**trial.key, "commit": commit()}
    try:
        losses = train_method(method, name, rates, trial.settings, seed)
        ranks = validate_method(method, trial.settings)
        headline = [style for style in open_splits(trial.settings).headline if style in ranks.by_kind]
        found |= {"recall": recall_info(ranks, headline, USUAL_CUTOFFS), "loss": round(losses[-1], 4)}
    except FloatingPointError as error:
        found["diverged"] = str(error)
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def _shown(trial: Mapping[str, Any]) -> str:
    """Return the headline's R@1 with its interval and R@5, or that the trial diverged."""
    if "recall" not in trial:
        return "diverged"
    first, fifth = (trial["recall"]["headline"][name] for name in ("R@1", "R@5"))
    return f"R@1 {first['value']:.1f} [{first['low']:.1f}, {first['high']:.1f}], R@5 {fifth['value']:.1f}"


def _trials_of(trials: list[dict[str, Any]], name: str, rates: Rates) -> list[dict[str, Any]]:
    return [trial for trial in trials if trial["method"] == name and trial["learning_rates"] == rates]


def _score(trials: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the mean R@1 and R@5 of the headline over the seeds; a diverged trial excludes its setting."""
    if any("recall" not in trial for trial in trials):
        return (-1.0, -1.0)
    found = [trial["recall"]["headline"] for trial in trials]
    return fmean(row["R@1"]["value"] for row in found), fmean(row["R@5"]["value"] for row in found)
