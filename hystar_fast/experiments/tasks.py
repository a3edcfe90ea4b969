"""Evaluate the adapters of a comparison on other tasks than retrieval by one query: Tables 2, 3 and 7."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import open_images
from hystar_fast.experiments.experiment_settings import Data, ExperimentSettings
from hystar_fast.experiments.jobs import run_jobs
from hystar_fast.experiments.records import is_done, merge_query_ids, query_ids, read_earlier
from hystar_fast.experiments.seeds import summarise
from hystar_fast.experiments.splits import USUAL_CUTOFFS, open_splits, place_queries, protocol_label, trained_method
from hystar_fast.methods.device import on_device
from hystar_fast.retrieval.evaluate import TEXT, evaluate
from hystar_fast.retrieval.ranks import Ranks
from hystar_fast.retrieval.results_json import run_info, write_json
from hystar_fast.terminal.console import Console
from hystar_fast.terminal.progress import Progress

CATEGORY, CLASSIFY, JOINT = "category", "classify", "joint"
_SUFFIX = "+text, max"


@dataclass(frozen=True)
class _Job:
    key: dict[str, Any]
    task: str
    settings: ExperimentSettings


def evaluate_task(
    task: str, settings: ExperimentSettings, record: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """Evaluate the runs of a comparison on a task, and return the content of ``task-<task>.json``.

    "category": pictures of the query's category are relevant. "classify": the gallery is the names of the categories.
    "joint": a picture and its caption are one query, the larger similarity decides; also the captions alone. The first
    two use `settings.data.test` if it is given. Runs that the file holds are not evaluated again.

    Args:
        task: one of the three.
        settings: of the comparison; its folder has the adapters.
        record: the ``compare.json``.
        console: prints the progress.

    Raises:
        ValueError: the data has no queries for the task, or the folder holds evaluations of other settings.
    """
    images, splits = _images(task, settings), open_splits(settings)
    gallery = len({r.category for r in images.records if r.category}) if task == CLASSIFY else len(images.gallery)
    head = {
        "settings": settings.identity(),
        "task": task,
        "data": images.name,
        "protocol": protocol_label(
            splits.protocol if task == JOINT else "full",
            is_displaced=settings.data.displaced and images.is_registered,
        ),
        "gallery": gallery,
        "pictures": {style: len(images.of_style(style)) for style in images.styles},
    }
    path = settings.output / f"task-{task}.json"
    found: dict[str, Any] = {**run_info(), **head, **read_earlier(path, head, "runs")}
    keys = [
        {name: run[name] for name in ("method", "seed", "learning_rates")}
        for run in record["runs"]
        if run["method"] in record["summary"]
        and run["seed"] in settings.seeds
        and run["learning_rates"] == record["summary"][run["method"]]["learning_rates"]
    ]
    new = [_Job(key, task, settings) for key in keys if not is_done(key, found["runs"])]
    with Progress(console) as progress:
        results = run_jobs(_evaluate, new, settings.run.jobs)
        for entry, new_ids in progress.track(results, total=len(new), description=task):
            found["runs"].append(entry)
            found["query_ids"] = merge_query_ids(found, new_ids)
            write_json(path, found)
    kept = [
        {**run, "parameters": record["summary"][run["method"]]["parameters"]}
        for key in keys
        for run in found["runs"]
        if key.items() <= run.items()
    ]
    ids = query_ids(found)
    found["headline"] = [kind for kind in ids.by_kind if kind != TEXT]
    if task == JOINT:
        found["headline"] = [f"{style}{_SUFFIX}" for style in splits.headline]
    cutoffs = splits.cutoffs if task == JOINT else USUAL_CUTOFFS
    found["summary"] = summarise(kept, ids, found["headline"], cutoffs)
    write_json(path, found)
    return found


def _evaluate(job: _Job) -> tuple[dict[str, Any], dict[str, Any]]:
    images, settings = _images(job.task, job.settings), job.settings
    method = on_device(trained_method(job.key["method"], job.key["seed"], settings), settings.device())
    is_joint = job.task == JOINT
    found = evaluate(
        method,
        images,
        task="instance" if is_joint else job.task,
        protocol=settings.data.protocol if is_joint else "full",
    ).ranks
    ranks = {kind: r for kind, r in found.by_kind.items() if not is_joint or kind.endswith((TEXT, _SUFFIX))}
    if is_joint and not any(kind.endswith(_SUFFIX) for kind in ranks):
        raise ValueError(f"joint queries must have texts, got none from method {job.key['method']!r} or {images.name}")
    kept = Ranks(found.ids, ranks)
    entry = {**job.key, "ranks": {kind: values.tolist() for kind, values in kept.by_kind.items()}}
    ids = {**found.ids.to_dict(), "by_kind": {kind: found.ids.by_kind[kind].tolist() for kind in ranks}}
    return entry, ids


def _images(task: str, settings: ExperimentSettings) -> ImageSet:
    """Return the test data of a task."""
    if task == JOINT or not settings.data.test:
        return open_splits(settings).test
    return _opened(settings.data)


@lru_cache(maxsize=2)
def _opened(data: Data) -> ImageSet:
    return place_queries(open_images(data.test, "test").select(limit=data.limit or None), data)
