"""Several runs of one method: the mean over seeds, the deviation over seeds, and an interval over the queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

import torch
from torch import Tensor

from hystar_fast.retrieval.metrics import Interval, bootstrap_mean
from hystar_fast.retrieval.ranks import QueryIds, Ranks

Runs = Sequence[Ranks] | Mapping[int, Ranks]
"""The runs of one method: by seed, or a list if the method does not depend on a seed."""


@dataclass(frozen=True)
class Spread:
    """A recall of several runs.

    Attributes:
        interval: the mean over the runs, and its 95 % interval from resampling the queries; the runs are not resampled,
            so the interval shows the effect of the choice of queries, not of the seeds.
        deviation: standard deviation over the runs (n - 1); None for one run.
        runs: how many.
    """

    interval: Interval
    deviation: float | None
    runs: int


def spread_over_seeds(runs: Runs, kinds: Sequence[str], k: int = 1, *, unseen_only: bool = False) -> Spread | None:
    """Return the mean R@k over kinds of query and runs; None if a kind has no ranks.

    Raises:
        ValueError: there is no run, or two runs have different queries.
    """
    hits = _hits(runs, kinds, k, unseen_only)
    if hits is None:
        return None
    values = [table.nanmean(dim=1).mean().item() for table in hits]
    return Spread(bootstrap_mean(hits.mean(0)), stdev(values) if len(values) > 1 else None, len(values))


def difference_over_seeds(
    ours: Runs, other: Runs, kinds: Sequence[str], k: int = 1, *, unseen_only: bool = False
) -> Interval | None:
    """Return the paired difference of two methods' mean R@k over their seeds; queries are resampled.

    If both methods have runs by seed, the runs of their common seeds are compared.

    Raises:
        ValueError: there is no run, no common seed, or two runs have different queries.
    """
    if isinstance(ours, Mapping) and isinstance(other, Mapping):
        common = [seed for seed in ours if seed in other]
        if not common:
            raise ValueError(f"two methods must have a seed in common, got {[*ours]} and {[*other]}")
        ours, other = ([runs[seed] for seed in common] for runs in (ours, other))
    a, b = _hits(ours, kinds, k, unseen_only), _hits(other, kinds, k, unseen_only)
    if a is None or b is None:
        return None
    _check_same(torch.stack([a[0], b[0]]))
    return bootstrap_mean(a.mean(0) - b.mean(0))


def runs_by_method(runs: Sequence[Mapping[str, Any]], ids: QueryIds) -> dict[str, Runs]:
    """Group runs by method, from entries with "method", "seed", "learning_rates" and "ranks".

    Runs without learning rates were not trained and do not depend on a seed.
    """
    trained = {run["method"] for run in runs if run["learning_rates"]}
    found: dict[str, dict[int, Ranks]] = {}
    for run in runs:
        ranks = {kind: torch.tensor(values, dtype=torch.int64) for kind, values in run["ranks"].items()}
        found.setdefault(run["method"], {})[run["seed"]] = Ranks(ids, ranks)
    return {name: by_seed if name in trained else list(by_seed.values()) for name, by_seed in found.items()}


def _hits(runs: Runs, kinds: Sequence[str], k: int, unseen_only: bool) -> Tensor | None:
    """Return [runs, kinds, queries]; None if a run has no ranks of a kind."""
    if not runs:
        raise ValueError("runs must hold at least one run")
    every = list(runs.values() if isinstance(runs, Mapping) else runs)
    tables = [run.hits(kinds, k, unseen_only=unseen_only) for run in every]
    found = [table for table in tables if table is not None]
    if len(found) < len(tables) or not found[0].shape[1]:
        return None
    if any(table.shape != found[0].shape for table in found):
        raise ValueError("runs must have the same queries, got different ones")
    hits = torch.stack(found)
    _check_same(hits)
    return None if bool(hits[0].isnan().all(dim=1).any()) else hits


def _check_same(hits: Tensor) -> None:
    if not bool((hits.isnan() == hits[0].isnan()).all()):
        raise ValueError("runs must have the same queries, got different ones")
