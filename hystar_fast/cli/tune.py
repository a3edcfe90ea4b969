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
from hystar_fast.cli.report import about, earlier, is_done, recalls, write_json
from hystar_fast.methods.recipes import DEMO_STEPS, GRID, TUNING_SEEDS, demo_config
from hystar_fast.methods.suite import hystar_size
from hystar_fast.methods.variants import Variant, create_variant
from hystar_fast.models.config import HystarConfig
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.retrieval.protocol import HARD_STYLES, load_split
from hystar_fast.train.loop import train
from hystar_fast.train.recipe import Recipe

Grid = Mapping[str, Sequence[dict[str, float]]]


@dataclass(frozen=True)
class _Trial:
    key: dict[str, Any]
    config: HystarConfig
    size: int
    steps: int
    limit: int | None


def tune(
    output: Path,
    console: Console,
    *,
    grid: Grid | None = None,
    steps: int = DEMO_STEPS,
    seeds: Sequence[int] = TUNING_SEEDS,
    pretrained: str | None = "packaged",
    limit: int | None = None,
    jobs: int = 1,
) -> dict[str, dict[str, float]]:
    """Try every setting of the grid with every seed and return the best setting of each method.

    The best has the largest mean R@1 of the hard styles over the validation gallery, averaged over the seeds; R@5
    decides between equals. The file is written after every trial; trials that it holds already are not run again.

    Args:
        output: JSON file of all trials.
        console: where progress and the choice are printed.
        grid: the settings of each method or variant; by default those of the demo's.
        steps, pretrained, limit: as for the demo.
        seeds: of the training order and of what is drawn at random; every setting runs once with each.
        jobs: trials at a time.

    Raises:
        ValueError: no seeds, or `output` holds something else than trials of these settings.
    """
    if not seeds:
        raise ValueError("seeds must name at least one seed")
    grid = GRID if grid is None else grid
    config = demo_config(pretrained)
    size = hystar_size(config)
    setting: dict[str, Any] = {
        "config": config.to_dict(),
        "what": f"largest mean R@1 of {', '.join(HARD_STYLES)} on the validation concepts; R@5 between equals",
        "gallery": len(load_split("val", limit=limit)),
        "training_concepts": len(load_split("train", limit=limit)),
        "steps": steps,
        "seeds": list(seeds),
    }
    kept = earlier(output, setting, "trials", holding="trials", place="file")
    record: dict[str, Any] = {**about(), **setting, **kept}
    keys = [
        {"method": name, "learning_rates": rates, "seed": seed}
        for seed in seeds
        for name in grid
        for rates in grid[name]
    ]
    new = [_Trial(key, config, size, steps, limit) for key in keys if not is_done(key, record["trials"])]
    for trial in track(run_jobs(_try, new, jobs), description="trials", total=len(new), console=console):
        record["trials"].append(trial)
        write_json(output, record)
        name, rates, seed = trial["method"], trial["learning_rates"], trial["seed"]
        console.print(f"{name} {rates} seed {seed}: {_score([trial])} in {trial['seconds']} s", highlight=False)
    for name, settings in grid.items():
        record["chosen"][name] = max(settings, key=lambda rates: _score(_of(record["trials"], name, rates)))
    write_json(output, record)
    console.print(f"CHOSEN = {record['chosen']}", highlight=False)
    return dict(record["chosen"])


def _try(trial: _Trial) -> dict[str, Any]:
    name, rates, seed = trial.key["method"], trial.key["learning_rates"], trial.key["seed"]
    start = time.perf_counter()
    method = create_variant(name, trial.config, seed=seed, parameters=trial.size)
    found: dict[str, Any] = dict(trial.key)
    try:
        recipe = Recipe(rates, steps=trial.steps, seed=seed, styles=Variant.parse(name).styles)
        losses = train(method, load_split("train", limit=trial.limit), recipe)
        validated = evaluate(method, load_split("val", limit=trial.limit))
        found |= {"recall": recalls(validated)["all"], "loss": round(losses[-1], 4)}
    except FloatingPointError as error:
        found["diverged"] = str(error)
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def _of(trials: list[dict[str, Any]], name: str, rates: dict[str, float]) -> list[dict[str, Any]]:
    return [trial for trial in trials if trial["method"] == name and trial["learning_rates"] == rates]


def _score(trials: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean R@1 and R@5 of the hard styles over the seeds; a trial that diverged rules its setting out."""
    if any("recall" not in trial for trial in trials):
        return (-1.0, -1.0)
    hard = [trial["recall"]["hard_mean"] for trial in trials]
    return fmean(row["R@1"]["value"] for row in hard), fmean(row["R@5"]["value"] for row in hard)
