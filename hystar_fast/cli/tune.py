"""Tuning: the same number of trials for every trained method, judged on the validation concepts alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from hystar_fast.cli.report import machine, recalls, source, write_json
from hystar_fast.methods.interface import count_parameters
from hystar_fast.methods.recipes import DEMO_STEPS, GRID, demo_config
from hystar_fast.methods.suite import TRAINED, create_hystar, create_method
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.retrieval.protocol import HARD_STYLES, load_split
from hystar_fast.train.loop import Recipe, train


def tune(
    output: Path,
    console: Console,
    *,
    steps: int = DEMO_STEPS,
    seed: int = 0,
    pretrained: str | None = "packaged",
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """Try every setting of the grid and return the best of each method; the file is written after every trial.

    The best has the largest mean R@1 of the hard styles over the validation gallery; R@5 decides between equals.

    Args:
        output: JSON file of all trials.
        console: where progress and the choice are printed.
        steps, seed, pretrained, limit: as for the demo.
    """
    training = load_split("train", limit=limit)
    validation = load_split("val", limit=limit)
    config = demo_config(pretrained)
    size = sum(count_parameters(create_hystar(config, seed=seed)).values())
    record: dict[str, Any] = {
        **source(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "config": config.to_dict(),
        "what": f"largest mean R@1 of {', '.join(HARD_STYLES)} on the validation concepts; R@5 between equals",
        "gallery": len(validation),
        "training_concepts": len(training),
        "steps": steps,
        "seed": seed,
        "trials": [],
        "chosen": {},
    }
    trials = [(name, rates) for name in TRAINED for rates in GRID[name]]
    for name, rates in track(trials, description="trials", console=console):
        start = time.perf_counter()
        method = create_method(name, config, seed=seed, parameters=size)
        trial: dict[str, Any] = {"method": name, "learning_rates": rates}
        try:
            losses = train(method, training, Recipe(rates, steps=steps, seed=seed))
            trial |= {"recall": recalls(evaluate(method, validation))["all"], "loss": round(losses[-1], 4)}
        except FloatingPointError as error:
            trial["diverged"] = str(error)
        trial["seconds"] = round(time.perf_counter() - start, 1)
        record["trials"].append(trial)
        write_json(output, record)
        console.print(f"{name} {rates}: {_score(trial)} in {trial['seconds']} s", highlight=False)
    for name in TRAINED:
        best = max((t for t in record["trials"] if t["method"] == name), key=_score)
        record["chosen"][name] = best["learning_rates"]
    write_json(output, record)
    console.print(f"CHOSEN = {record['chosen']}", highlight=False)
    return dict(record["chosen"])


def _score(trial: dict[str, Any]) -> tuple[float, float]:
    if "recall" not in trial:
        return (-1.0, -1.0)
    hard = trial["recall"]["hard_mean"]
    return hard["R@1"]["value"], hard["R@5"]["value"]
