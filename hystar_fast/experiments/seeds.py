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
from hystar_fast.retrieval.results_json import interval_info, to_percent

REFERENCE, HEADLINE = "hystar", "headline"
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


def recall_info(ranks: Ranks, headline: Sequence[str], cutoffs: Mapping[str, int]) -> dict[str, Any]:
    """Return the recalls of one run by kind of query and over the headline kinds, in per cent with intervals."""
    groups = {**{kind: [kind] for kind in ranks.by_kind}, HEADLINE: list(headline)}
    return {
        group: {
            name: interval_info(found) for name, k in cutoffs.items() if (found := ranks.recall(kinds, k)) is not None
        }
        for group, kinds in groups.items()
    }


def summarise(
    runs: Sequence[Mapping[str, Any]],
    ids: QueryIds,
    headline: Sequence[str],
    cutoffs: Mapping[str, int],
    reference: str = REFERENCE,
) -> dict[str, Any]:
    """Summarise runs by method: recalls by kind of query over the seeds, and the paired difference from a reference.

    Args:
        runs: with "method", "seed", "parameters", "learning_rates" and "ranks".
        ids: of their queries.
        headline: the kinds of query whose mean is the headline.
        cutoffs: name of a recall -> the rank that it looks at.
        reference: a method.

    Returns:
        method -> {"parameters", "learning_rates", "seeds", "recall": {part: {kind: {"R@k": ...}}}, "difference": {part:
        ...}} in per cent. The parts are "all" and, if there are any, "unseen" categories. A difference is this method
        minus the reference.
    """
    by_method = runs_by_method(runs, ids)
    found: dict[str, Any] = {}
    for run in runs:
        entry = found.setdefault(
            run["method"], {"parameters": run["parameters"], "learning_rates": run["learning_rates"], "seeds": []}
        )
        entry["seeds"].append(run["seed"])
    parts = ("all", "unseen") if bool(ids.unseen.any()) else ("all",)
    groups = {HEADLINE: tuple(headline), **{kind: (kind,) for kind in ids.by_kind}}
    for name, method_runs in by_method.items():
        found[name]["recall"] = {part: _recalls(method_runs, groups, cutoffs, part == "unseen") for part in parts}
        if reference in by_method and name != reference:
            differences = {part: _difference(by_method, name, reference, headline, part == "unseen") for part in parts}
            found[name]["difference"] = {part: value for part, value in differences.items() if value is not None}
    return found


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


def _recalls(
    runs: Runs, groups: Mapping[str, Sequence[str]], cutoffs: Mapping[str, int], unseen_only: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for group, kinds in groups.items():
        spreads = {name: spread_over_seeds(runs, kinds, k, unseen_only=unseen_only) for name, k in cutoffs.items()}
        kept = {
            name: {
                **interval_info(spread.interval),
                "deviation": None if spread.deviation is None else to_percent(spread.deviation),
            }
            for name, spread in spreads.items()
            if spread is not None
        }
        if kept:
            found[group] = kept
    return found


def _difference(
    runs: Mapping[str, Runs], name: str, reference: str, headline: Sequence[str], unseen_only: bool
) -> dict[str, float | int] | None:
    found = difference_over_seeds(runs[name], runs[reference], headline, unseen_only=unseen_only)
    return None if found is None else interval_info(found)
