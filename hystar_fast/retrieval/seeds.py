"""Several runs of one method: the mean over seeds, how far seeds lie apart, and an interval over the queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any, Protocol

import torch
from torch import Tensor

from hystar_fast.retrieval.evaluate import Evaluation
from hystar_fast.retrieval.metrics import Interval, bootstrap_mean
from hystar_fast.retrieval.protocol import HARD_STYLES


class Queries(Protocol):
    """The queries that ranks on record belong to, numbered by the things they ask for."""

    def __len__(self) -> int: ...

    @property
    def unseen(self) -> Tensor:
        """bool: the things of a kind that nothing was trained on."""

    def rows(self, style: str) -> Tensor:
        """int64: the things asked for in `style`, in the order of the ranks."""


Runs = Sequence[Evaluation] | Mapping[int, Evaluation]
"""The runs of one method: by seed, or in a list where no seed decides anything, as without training."""


@dataclass(frozen=True)
class Spread:
    """A recall of several runs.

    Attributes:
        interval: the mean over the runs, and its 95 % interval from resampling the concepts; the runs are kept, so it
            says how much the choice of concepts matters, and nothing of the seeds.
        deviation: standard deviation over the runs (n - 1), which says how much the seed matters; None for one run.
        runs: how many.
    """

    interval: Interval
    deviation: float | None
    runs: int


def over_seeds(
    runs: Runs, styles: Sequence[str] = HARD_STYLES, k: int = 1, *, unseen_only: bool = False
) -> Spread | None:
    """The mean R@k over `styles` and runs; None if a style is not asked or not answered.

    Raises:
        ValueError: there is no run, or two runs did not ask the same queries.
    """
    hits = _hits(runs, styles, k, unseen_only)
    if hits is None:
        return None
    values = [table.nanmean(dim=1).mean().item() for table in hits]
    return Spread(bootstrap_mean(hits.mean(0)), stdev(values) if len(values) > 1 else None, len(values))


def paired_difference(
    ours: Runs,
    other: Runs,
    styles: Sequence[str] = HARD_STYLES,
    k: int = 1,
    *,
    unseen_only: bool = False,
    other_styles: Sequence[str] | None = None,
) -> Interval | None:
    """The difference of two methods' mean R@k over their seeds on the same queries, concepts being resampled.

    With `other_styles` the second is asked in those: as many as `styles`, or one for all of them, over the concepts
    that are asked for in both.

    Where both have runs by seed, those of the seeds that both have are compared: a seed decides the order of training
    and what is drawn at random for either.

    Raises:
        ValueError: there is no run, no seed that both have, or two runs did not ask the same queries.
    """
    if isinstance(ours, Mapping) and isinstance(other, Mapping):
        common = [seed for seed in ours if seed in other]
        if not common:
            raise ValueError(f"two methods need a seed in common, got {[*ours]} and {[*other]}")
        ours, other = ([runs[seed] for seed in common] for runs in (ours, other))
    a, b = _hits(ours, styles, k, unseen_only), _hits(other, other_styles or styles, k, unseen_only)
    if a is None or b is None:
        return None
    if other_styles is None:
        _check_same(torch.stack([a[0], b[0]]))
    return bootstrap_mean(a.mean(0) - b.mean(0))


def all_of(runs: Runs) -> list[Evaluation]:
    """The runs, whatever their seeds."""
    return list(runs.values() if isinstance(runs, Mapping) else runs)


def recorded_ranks(evaluation: Evaluation) -> dict[str, list[int]]:
    """The ranks of an evaluation as JSON-able lists; `restored` turns them back."""
    return {style: ranks.tolist() for style, ranks in evaluation.ranks.items()}


def restored(ranks: Mapping[str, Sequence[int]], concepts: Queries) -> Evaluation:
    """An evaluation without embeddings from its recorded ranks on the same concepts.

    Raises:
        ValueError: the ranks are not of these concepts.
    """
    rows = {style: concepts.rows(style) for style in ranks}
    for style, found in ranks.items():
        if len(found) != len(rows[style]):
            raise ValueError(f"ranks must be of these concepts: {style} has {len(found)}, needs {len(rows[style])}")
    tensors = {style: torch.tensor(list(found), dtype=torch.int64) for style, found in ranks.items()}
    return Evaluation(torch.empty(len(concepts), 0), rows, {}, tensors, concepts.unseen)


def runs_by_method(runs: Sequence[Mapping[str, Any]], queries: Queries) -> dict[str, Runs]:
    """Method or variant -> its runs, from entries with "method", "seed", "learning_rates" and "ranks".

    Those without learning rates were not trained, and no seed decides anything.
    """
    trained = {run["method"] for run in runs if run["learning_rates"]}
    found: dict[str, dict[int, Evaluation]] = {}
    for run in runs:
        found.setdefault(run["method"], {})[run["seed"]] = restored(run["ranks"], queries)
    return {name: by_seed if name in trained else all_of(by_seed) for name, by_seed in found.items()}


def _hits(runs: Runs, styles: Sequence[str], k: int, unseen_only: bool) -> Tensor | None:
    """[runs, styles, concepts]."""
    if not runs:
        raise ValueError("needs at least one run")
    tables = [run.hits(styles, k, unseen_only=unseen_only) for run in all_of(runs)]
    found = [table for table in tables if table is not None]
    if len(found) < len(tables) or not found[0].shape[1]:
        return None
    if any(table.shape != found[0].shape for table in found):
        raise ValueError("runs must be evaluated on the same queries, got different ones")
    hits = torch.stack(found)
    _check_same(hits)
    return None if bool(hits[0].isnan().all(dim=1).any()) else hits


def _check_same(hits: Tensor) -> None:
    if not bool((hits.isnan() == hits[0].isnan()).all()):
        raise ValueError("runs must be evaluated on the same queries, got different ones")
