"""``experiments compare``: tune methods with one budget, train them with several seeds, and compare them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.experiments.comparison_tables import comparison_note, comparison_tables
from hystar_fast.experiments.experiment_settings import ExperimentSettings
from hystar_fast.experiments.jobs import run_jobs
from hystar_fast.experiments.learning_rates import Rates, groups_at_edge
from hystar_fast.experiments.records import is_done, merge_query_ids, query_ids, read_earlier
from hystar_fast.experiments.seeds import summarise
from hystar_fast.experiments.splits import (
    ADAPTERS,
    Splits,
    adapter_folder,
    evaluate_method,
    open_splits,
    train_method,
)
from hystar_fast.experiments.tune import TUNING_FILE, tune
from hystar_fast.experiments.variants import Variant, create_variant
from hystar_fast.methods.adapter_files import save_method
from hystar_fast.methods.interface import count_parameters
from hystar_fast.methods.suite import METHODS
from hystar_fast.models.config import HystarConfig
from hystar_fast.retrieval.ranks import QueryIds
from hystar_fast.retrieval.results_json import commit, run_info, write_json
from hystar_fast.terminal.console import Console
from hystar_fast.terminal.progress import Progress

RESULTS_FILE = "compare.json"
_TRAINING_STYLES = re.compile(r"\+styles=[^+]*")


@dataclass(frozen=True)
class _Run:
    key: dict[str, Any]
    settings: ExperimentSettings


def run_compare(settings: ExperimentSettings, console: Console) -> dict[str, Any]:
    """Compare the methods of the settings and print the tables.

    Raises:
        ValueError: as for `compare`, or a variant that changes nothing.
    """
    for name in settings.training.methods:
        _check_changes(name, settings)
    record = compare(settings, console)
    for table in comparison_tables(record):
        console.print(table)
    console.print(comparison_note(record))
    if record["at_edge"]:
        console.print(f"Best rate at the edge of its grid: {', '.join(record['at_edge'])}.")
    if record["diverged"]:
        console.print(f"Excluded because a run diverged: {', '.join(record['diverged'])}.")
    console.print(f"wrote {settings.output}/: {RESULTS_FILE}, {TUNING_FILE}, {ADAPTERS}/")
    return record


def compare(settings: ExperimentSettings, console: Console, methods: Sequence[str] = ()) -> dict[str, Any]:
    """Tune, train and evaluate methods, and return the content of ``compare.json``.

    Every trained method has the same number of settings, steps, pairs and seeds, and its setting is selected on the
    validation part. Both files are written after every trial or run, and their content is not computed again: a stopped
    comparison continues where it was.

    Args:
        settings: of the experiment.
        console: prints the progress.
        methods: names of methods or variants, instead of those of the settings.

    Raises:
        ValueError: an unknown or repeated method, or an output folder with results of other settings or that another
            command is writing.
    """
    with lock_folder(settings.output):
        return _compare(settings, console, methods)


def _compare(settings: ExperimentSettings, console: Console, methods: Sequence[str]) -> dict[str, Any]:
    names = tuple(methods) or tuple(settings.training.methods) or METHODS
    splits = open_splits(settings)
    _check(names, settings, splits.styles)
    identity = {"settings": settings.identity()}
    path = settings.output / RESULTS_FILE
    record: dict[str, Any] = {
        **run_info(),
        **identity,
        "data": splits.info(),
        "ties": "count against the query",
        "intervals": "95 %, percentile bootstrap over queries of the mean over seeds, 2000 resamples",
        "chosen": {},
        **read_earlier(path, identity, "runs"),
    }
    chosen = _tuned(names, settings, console)
    record["chosen"] = {**record["chosen"], **chosen}
    keys = [
        {"method": name, "seed": seed, "learning_rates": chosen.get(name, {})}
        for name in names
        for seed in (settings.seeds if Variant.parse(name).is_tuned else settings.seeds[:1])
    ]
    new = [_Run(key, settings) for key in keys if not is_done(key, record["runs"])]
    with Progress(console) as progress:
        task = progress.add_task("runs", total=len(new))
        for run, ids in run_jobs(_run, new, settings.run.jobs):
            record["runs"].append(run)
            if ids is not None:
                record["query_ids"] = merge_query_ids(record, ids)
            write_json(path, record)
            progress.advance(task)
            console.print(f"{run['method']}, seed {run['seed']}: {run['seconds']} s")
    kept = [run for key in keys for run in record["runs"] if key.items() <= run.items()]
    record["diverged"] = sorted({run["method"] for run in kept if "diverged" in run})
    kept = [run for run in kept if run["method"] not in record["diverged"]]
    record["at_edge"] = sorted(name for name, rates in chosen.items() if groups_at_edge(rates, _grid(name, settings)))
    record["summary"] = _summary(kept, query_ids(record), splits) if kept else {}
    write_json(path, record)
    return record


def _summary(runs: Sequence[Mapping[str, Any]], ids: QueryIds, splits: Splits) -> dict[str, Any]:
    """Summarise runs; if the queries are displaced, "registered" is a part of its own beside "all" and "unseen"."""
    found = summarise(runs, ids, splits.headline, splits.cutoffs)
    if splits.registered is not None:
        others = [{**run, "ranks": run["registered"]} for run in runs]
        for name, entry in summarise(others, ids, splits.headline, splits.cutoffs).items():
            for what in ("recall", "difference"):
                if what in entry and "all" in entry[what]:
                    found[name][what]["registered"] = entry[what]["all"]
    return found


def _check(names: Sequence[str], settings: ExperimentSettings, styles: Sequence[str]) -> None:
    for name in names:
        variant = Variant.parse(name)
        unknown = [style for style in variant.styles or () if style not in styles]
        if unknown:
            raise ValueError(f"styles must be some of {(*styles,)} with - between, got {unknown[0]!r} in {name!r}")
        if _config_of(name, settings).lacks_style_weights:
            raise ValueError(
                f"style_pretrained must be a torchvision weights name or a file for style=vgg, got none in {name!r}"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"methods must be different names, got {', '.join(names)}")


def _config_of(name: str, settings: ExperimentSettings) -> HystarConfig:
    try:
        return replace(settings.config(), **Variant.parse(name).changes)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error) if name in str(error) else f"{name!r}: {error}") from error


def _check_changes(name: str, settings: ExperimentSettings) -> None:
    variant = Variant.parse(name)
    same = _config_of(name, settings) == settings.config() and variant.loss in (None, "style_nce")
    if same and variant.styles is None and not variant.is_shuffled and name != variant.method:
        raise ValueError(
            f"training.methods must change a setting after each +, got {name!r}, the same as {variant.method!r}"
        )


def _tuned(names: Sequence[str], settings: ExperimentSettings, console: Console) -> dict[str, Rates]:
    """Return the chosen rates of every method that has rates."""
    tuned = [name for name in names if Variant.parse(name).is_tuned]
    if not tuned:
        return {}
    chosen = tune(settings, console, {_tuned_as(name, settings): _grid(name, settings) for name in tuned})
    return {name: chosen[_tuned_as(name, settings)] for name in tuned}


def _tuned_as(name: str, settings: ExperimentSettings) -> str:
    """Return the method or variant whose trials select the rates of `name`.

    A variant with other training styles is not tuned: validation has the styles that it must not see.
    """
    name = _TRAINING_STYLES.sub("", name)
    variant = Variant.parse(name)
    same_grid = variant.grid() == Variant.parse(variant.method).grid()
    return variant.method if same_grid and not settings.training.tune_variants else name


def _grid(name: str, settings: ExperimentSettings) -> list[Rates]:
    return Variant.parse(_tuned_as(name, settings)).grid(settings.model.backbone)


def _run(run: _Run) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """Train and test one method; return its entry and the query ids, without tensors, for another process."""
    name, seed, rates = run.key["method"], run.key["seed"], run.key["learning_rates"]
    method = create_variant(name, run.settings.config(), seed=seed)
    counts = count_parameters(method)
    found: dict[str, Any] = {**run.key, "commit": commit(), "parameters": {"trainable": sum(counts.values()), **counts}}
    start = time.perf_counter()
    try:
        if Variant.parse(name).is_trained:
            losses = train_method(method, name, rates, run.settings, seed)
            if losses:
                found["loss"] = round(losses[-1], 4)
            save_method(method, adapter_folder(run.settings.output, name, seed))
        ranks, registered = evaluate_method(method, run.settings)
    except FloatingPointError as error:
        if not rates:
            raise
        return {**found, "diverged": str(error), "seconds": round(time.perf_counter() - start, 1)}, None
    found["ranks"] = {kind: values.tolist() for kind, values in ranks.by_kind.items()}
    if registered is not None:
        found["registered"] = {kind: values.tolist() for kind, values in registered.by_kind.items()}
    return {**found, "seconds": round(time.perf_counter() - start, 1)}, ranks.ids.to_dict()
