"""``hystar-fast compare``: methods tuned with one budget, trained with several seeds, and set beside each other."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hystar_fast.cli.compare_table import compare_note, compare_tables, summarise
from hystar_fast.cli.jobs import run_jobs
from hystar_fast.cli.report import about, check_output, commit, earlier, is_done, write_json
from hystar_fast.cli.source import USUAL, Parts, Source
from hystar_fast.cli.tune import tune
from hystar_fast.methods.adapter_files import save_method
from hystar_fast.methods.interface import count_parameters
from hystar_fast.methods.recipes import TUNING_SEEDS
from hystar_fast.methods.variants import COMPARED, Variant, create_variant
from hystar_fast.retrieval.asked import Asked

RESULTS_FILE, TUNING_FILE, ADAPTERS = "compare.json", "tuning.json", "adapters"
_NOT_IN_NAMES = re.compile(r"[^\w+=.-]")


@dataclass(frozen=True)
class CompareSettings:
    """What is compared, and how long everything trains.

    Attributes:
        output: folder for ``tuning.json``, ``compare.json`` and the adapters.
        methods: names from `COMPARED` or of variants (see :mod:`hystar_fast.methods.variants`); the differences are
            from "hystar", where it is among them.
        steps: training steps of every trial and of every run; None for the data's.
        seeds: of the runs on the test split.
        tuning_seeds: of the trials on the validation split.
        source: the data, the backbone and the protocol.
        test_data: other data that Tables 2 and 3 ask the adapters about; None for the test part of `source`.
        tune_variants: whether a variant is tuned by itself, or takes the rates of its method where it trains the same.
        jobs: trials and runs at a time, each in a process of its own.
    """

    output: Path
    methods: Sequence[str] = COMPARED
    steps: int | None = None
    seeds: Sequence[int] = TUNING_SEEDS
    tuning_seeds: Sequence[int] = TUNING_SEEDS
    source: Source = field(default_factory=Source)
    tune_variants: bool = True
    jobs: int = 1
    test_data: str | None = None

    def tuned_as(self, name: str) -> str:
        """The method or variant whose trials decide the rates of `name`."""
        variant = Variant.parse(name)
        alike = variant.grid() == Variant.parse(variant.method).grid()
        return variant.method if alike and not self.tune_variants else name


@dataclass(frozen=True)
class _Run:
    key: dict[str, Any]
    settings: CompareSettings
    steps: int


def run_compare(settings: CompareSettings, console: Console) -> dict[str, Any]:
    """Do what `compare` does and print the tables."""
    record = compare(settings, console)
    for table in compare_tables(record):
        console.print(table)
    console.print(compare_note(record), highlight=False, markup=False)
    if record["at_edge"]:
        console.print(f"Best at the edge of what was tried: {', '.join(record['at_edge'])}.", highlight=False)
    if record["diverged"]:
        console.print(f"Left out, as a run diverged: {', '.join(record['diverged'])}.", highlight=False)
    console.print(f"wrote {settings.output}/: {RESULTS_FILE}, {TUNING_FILE}, {ADAPTERS}/")
    return record


def compare(settings: CompareSettings, console: Console) -> dict[str, Any]:
    """Tune, train and evaluate, and return what ``compare.json`` holds.

    Every trained method gets the same number of settings, steps, pairs and seeds, and its setting is chosen on the
    validation concepts. Both files are written after every trial, and what they hold is not run again: a run that is
    stopped goes on where it was and loses at most the trial it was in.

    Raises:
        ValueError: an unknown method or no seed, an output that is a file, or files of other settings in it.
    """
    source = settings.source
    parts = source.parts()
    _check(settings, parts)
    steps = parts.steps(source.batch_size) if settings.steps is None else settings.steps
    record = _record(settings, parts, steps)
    trained = [name for name in settings.methods if Variant.parse(name).grid()]
    chosen: dict[str, dict[str, float]] = {}
    if trained:
        chosen = tune(
            settings.output / TUNING_FILE,
            console,
            grid={tuned: Variant.parse(tuned).grid(source.backbone) for tuned in map(settings.tuned_as, trained)},
            steps=steps,
            seeds=settings.tuning_seeds,
            source=source,
            jobs=settings.jobs,
        )
        chosen = {name: chosen[settings.tuned_as(name)] for name in trained}
    record["chosen"] = {**record["chosen"], **chosen}
    planned = [_key(name, seed, chosen) for name in settings.methods for seed in _seeds(name, settings.seeds)]
    new = [_Run(key, settings, steps) for key in planned if not is_done(key, record["runs"])]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        overall = progress.add_task("runs", total=len(new))
        for run, asked in run_jobs(_run, new, settings.jobs):
            record["runs"].append(run)
            if asked is not None:
                record["asked"] = joined_asked(record, asked)
            write_json(settings.output / RESULTS_FILE, record)
            progress.advance(overall)
            console.print(f"{run['method']}, seed {run['seed']}: {run['seconds']} s", highlight=False)
    grids = {name: Variant.parse(settings.tuned_as(name)).grid(source.backbone) for name in chosen}
    record["at_edge"] = sorted(name for name, rates in chosen.items() if at_edge(rates, grids[name]))
    kept = [run for key in planned for run in record["runs"] if key.items() <= run.items()]
    record["diverged"] = sorted({run["method"] for run in kept if "diverged" in run})
    kept = [run for run in kept if run["method"] not in record["diverged"]]
    record["summary"] = summarise(
        kept, parts.queries(asked_in(record)), parts.headline, list(record["queries"]), parts.cutoffs
    )
    write_json(settings.output / RESULTS_FILE, record)
    return record


def adapter_folder(output: Path, name: str, seed: int) -> Path:
    """Where a comparison keeps the adapter of one run."""
    return output / ADAPTERS / f"{_NOT_IN_NAMES.sub('_', name)}-{seed}"


def asked_in(record: Mapping[str, Any]) -> Asked | None:
    """Which queries the ranks of a ``compare.json`` belong to, where the file says it."""
    return Asked.from_dict(record["asked"]) if "asked" in record else None


def joined_asked(record: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of the queries once a run has `asked` them.

    Raises:
        ValueError: they are not those of earlier runs.
    """
    new, before = Asked.from_dict(asked), asked_in(record)
    return (new if before is None else new.joined(before)).to_dict()


def _check(settings: CompareSettings, parts: Parts) -> None:
    if not settings.methods:
        raise ValueError(f"methods must be some of {COMPARED}, got none")
    for name in settings.methods:
        variant = Variant.parse(name)
        unknown = [style for style in variant.styles or () if style not in parts.styles]
        if unknown:
            raise ValueError(f"styles must be some of {parts.styles} with - between, got {unknown[0]!r} in {name!r}")
        if replace(settings.source.config(), **variant.changes).lacks_style_weights:
            raise ValueError(f"{name} needs weights of VGG: +style_pretrained=<a torchvision weights name or a file>")
    if len(set(settings.methods)) < len(settings.methods):
        raise ValueError(f"methods must not repeat a name, got {', '.join(settings.methods)}")
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        raise ValueError(f"seeds must be one or more different ones, got {list(settings.seeds)}")
    check_output(settings.output)


def _seeds(name: str, seeds: Sequence[int]) -> Sequence[int]:
    """What draws nothing at random and trains nothing runs once."""
    return seeds if Variant.parse(name).grid() else seeds[:1]


def at_edge(rates: Mapping[str, float], tried: Sequence[Mapping[str, float]]) -> list[str]:
    """The parameter groups whose rate is the lowest or highest of those tried, so that a better one may lie outside."""
    found = []
    for group, rate in rates.items():
        values = [trial[group] for trial in tried]
        if len(set(values)) > 1 and rate in (min(values), max(values)):
            found.append(group)
    return found


def _key(name: str, seed: int, chosen: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {"method": name, "seed": seed, "learning_rates": chosen.get(name, {})}


def _record(settings: CompareSettings, parts: Parts, steps: int) -> dict[str, Any]:
    """The head of the file and the runs that an earlier call left in it."""
    setting: dict[str, Any] = {
        "config": settings.source.config().to_dict(),
        "steps": steps,
        "limit": settings.source.limit,
        **parts.setting(),
        **settings.source.options(),
    }
    method = {
        "ties": "count against the query",
        "intervals": "95 %, percentile bootstrap over concepts of the mean over seeds, 2000 resamples",
        "spread": "standard deviation over seeds",
    }
    path = settings.output / RESULTS_FILE
    kept = earlier(path, setting, "runs", holding="comparison", place="folder", usual=USUAL)
    return {**about(), **method, **setting, **kept, "summary": {}}


def _run(run: _Run) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A run and the queries it was asked, without tensors: they travel between processes."""
    name, seed, rates = run.key["method"], run.key["seed"], run.key["learning_rates"]
    source = run.settings.source
    parts, device = source.parts(), source.place()
    method = create_variant(name, source.config(), seed=seed)
    counts = count_parameters(method)
    found: dict[str, Any] = {**run.key, "commit": commit(), "parameters": {"trainable": sum(counts.values()), **counts}}
    began = time.perf_counter()
    if rates:
        styles = Variant.parse(name).styles or parts.styles
        try:
            losses = parts.train(method, parts.recipe(rates, run.steps, seed, styles, source.batch_size), device)
        except FloatingPointError as error:
            return {**found, "diverged": str(error), "seconds": round(time.perf_counter() - began, 1)}, None
        found["loss"] = round(losses[-1], 4) if losses else None
        save_method(method, adapter_folder(run.settings.output, name, seed))
    ranks, asked = parts.test(method, device)
    found |= {"ranks": ranks, "seconds": round(time.perf_counter() - began, 1)}
    return found, None if asked is None else asked.to_dict()
