"""``experiments fewshot``: base-to-new classification with a few pictures a class (Table 11 of the paper)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from hystar_fast.data.classes import open_classes
from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.data.image_set import ImageSet, Skipped, read_images, spread_evenly
from hystar_fast.experiments.base_to_new import BaseToNew, accuracies, base_to_new, draw_shots, is_correct
from hystar_fast.experiments.class_training import train_on_classes
from hystar_fast.experiments.comparison_tables import interval_cell, table_of_methods
from hystar_fast.experiments.experiment_settings import ExperimentSettings
from hystar_fast.experiments.learning_rates import Rates, untuned_rates
from hystar_fast.methods.device import on_device
from hystar_fast.methods.interface import Method, count_parameters
from hystar_fast.methods.suite import FITTED, METHODS, create_method
from hystar_fast.models.config import HystarConfig
from hystar_fast.retrieval.embed import embed_records
from hystar_fast.retrieval.results_json import interval_info, read_json, run_info, set_aside, to_percent, write_json
from hystar_fast.retrieval.zero_shot import class_embeddings
from hystar_fast.terminal.console import Console
from hystar_fast.terminal.progress import Progress
from hystar_fast.train.recipe import Recipe

RESULTS_FILE = "few_shot.json"
# pixels and hog have no text, and the shift of means is between styles and not between classes
CLASSIFIERS = tuple(name for name in METHODS if name not in ("pixels", "hog", *FITTED))


def run_few_shot(settings: ExperimentSettings, console: Console, output: Path | None = None) -> dict[str, Any]:
    """Train on the base classes, classify both halves, print the table, and write and return the results.

    Args:
        settings: of the experiment; see [few_shot] and data.classes.
        console: prints the table.
        output: folder for ``few_shot.json``; by default that of the settings.

    Raises:
        ValueError: unknown methods, a bad tuning file, data without enough classes or readable pictures, or a folder
            that another command is writing.
    """
    folder = output or settings.output
    with lock_folder(folder):
        return _run_few_shot(settings, console, folder)


def _run_few_shot(settings: ExperimentSettings, console: Console, folder: Path) -> dict[str, Any]:
    chosen = settings.few_shot
    unknown = [name for name in chosen.methods if name not in CLASSIFIERS]
    if unknown or not chosen.methods:
        raise ValueError(f"few_shot.methods must be some of {CLASSIFIERS}, got {chosen.methods}")
    images = open_classes(settings.data.classes)
    if chosen.template:
        images = replace(images, templates=(chosen.template,))
    parts = base_to_new(images)
    if chosen.limit:
        tests = (tuple(spread_evenly(part, chosen.limit)) for part in (parts.base_test, parts.new_test))
        parts = BaseToNew(parts.base, parts.new, parts.training, *tests)
    rates = _rates(settings)
    results = _head(settings, images, parts)
    kept = set_aside(folder / RESULTS_FILE, results, ("config", "data", "templates", "steps"))
    if kept is not None:
        console.print(f"kept the results of an earlier run: {kept}")
    used = {name: rates[name] for name in chosen.methods if name in rates}
    for name, (setting, source) in used.items():
        console.print(f"learning rates of {name}: {setting} ({source})")
    skipped: list[Skipped] = list(images.skipped)
    runs = [(name, seed) for name in chosen.methods for seed in (settings.seeds if name in rates else [0])]
    with Progress(console, transient=True) as progress:
        task = progress.add_task("few-shot", total=len(runs))
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, seed in runs:
            progress.update(task, description=f"{name}, seed {seed}")
            start = time.perf_counter()
            method = create_method(name, settings.config(), seed=seed)
            entry = results["methods"].setdefault(name, {"parameters": sum(count_parameters(method).values())})
            if name in used:
                entry["learning_rates"], entry["rates_from"] = used[name]
                _train(method, images, parts, settings, used[name][0], seed, skipped)
            encoder = on_device(method, settings.device())
            found.setdefault(name, []).append(_classify(encoder, images, parts, skipped))
            entry.setdefault("seconds", []).append(round(time.perf_counter() - start, 1))
            entry |= _summary(found[name])
            results["skipped"] = len({entry.path for entry in skipped})
            write_json(folder / RESULTS_FILE, results)
            progress.advance(task)
    console.print(few_shot_table(results))
    if results["skipped"]:
        console.print(f"skipped {results['skipped']} unreadable pictures, the first: {skipped[0].path}")
    console.print(f"wrote {folder / RESULTS_FILE}")
    return results


def has_chosen(tuning: Path, settings: ExperimentSettings, methods: Sequence[str]) -> bool:
    """Return whether a ``tuning.json`` exists, is of this model and has learning rates for these methods."""
    try:
        record = read_json(tuning)
        same_model = record["settings"]["model"] == settings.identity()["model"]
        return bool(same_model and set(methods) <= set(record["chosen"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def few_shot_table(results: Mapping[str, Any]) -> Table:
    """Return a table with a row a method: base, new and H in per cent with their intervals, and H's deviation."""
    data = results["data"]
    title = f"{data['name']}: {data['shots']} shots, {data['base']} base and {data['new']} new classes; accuracy (%)"
    table = table_of_methods(title, ("trained", "base", "new", "H", "± H"))
    for name, entry in results["methods"].items():
        cells = [interval_cell(entry[part], ".1f") for part in ("base", "new", "H")]
        deviation = entry["deviation"]
        table.add_row(name, f"{entry['parameters']:,}", *cells, "–" if deviation is None else f"{deviation:.1f}")
    return table


def _rates(settings: ExperimentSettings) -> dict[str, tuple[Rates, str]]:
    """Return the learning rates of each trained method, and where they come from."""
    rates = untuned_rates(settings.model.backbone)
    if not settings.few_shot.tuning:
        return rates
    path = Path(settings.few_shot.tuning)
    try:
        chosen = {str(k): dict(v) for k, v in read_json(path)["chosen"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"few_shot.tuning must be a tuning.json with chosen rates, got {path}: {error!r}") from error
    missing = [name for name in settings.few_shot.methods if name in rates and name not in chosen]
    if missing:
        raise ValueError(f"few_shot.tuning must have rates for {', '.join(missing)}, got none in {path}")
    return {name: (found, f"chosen in {path}") for name, found in chosen.items()}


def _train(
    method: Method,
    images: ImageSet,
    parts: BaseToNew,
    settings: ExperimentSettings,
    rates: Rates,
    seed: int,
    skipped: list[Skipped],
) -> None:
    shots = draw_shots(parts.training, settings.few_shot.shots, seed)
    read = list(read_images(images, shots, method.resize, skipped))
    rows = [row for batch, _ in read for row in batch]
    if not rows:
        raise ValueError(f"data.classes must have readable training pictures, got none in {images.name}")
    labels = torch.tensor([parts.base.index(str(shots[row].category)) for row in rows])
    pictures = torch.cat([batch for _, batch in read])
    recipe = Recipe(rates, steps=settings.few_shot.steps, batch_size=settings.training.batch_size, seed=seed)
    device: torch.device = settings.device()
    classes = class_embeddings(on_device(method, device), parts.base, images.templates)
    train_on_classes(method, pictures, labels, classes, recipe, device=device)


def _classify(method: Method, images: ImageSet, parts: BaseToNew, skipped: list[Skipped]) -> tuple[Tensor, Tensor]:
    """Return the correct test pictures of the base and of the new classes; unreadable images are excluded."""
    found = []
    for names, records in ((parts.base, parts.base_test), (parts.new, parts.new_test)):
        classes = class_embeddings(method, names, images.templates)
        tested = embed_records(method, images, records, skipped)
        if not tested.records:
            raise ValueError(f"data.classes must have readable test pictures, got none in {images.name}")
        wanted = torch.tensor([names.index(str(record.category)) for record in tested.records])
        found.append(is_correct(tested.vectors, classes, wanted))
    return found[0], found[1]


def _summary(runs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    base, new = (torch.stack([run[half] for run in runs]) for half in (0, 1))
    harmonic = [accuracies(*run).harmonic.value for run in runs]
    found = accuracies(base.mean(0), new.mean(0))
    return {
        "base": interval_info(found.base),
        "new": interval_info(found.new),
        "H": interval_info(found.harmonic),
        "deviation": to_percent(stdev(harmonic)) if len(harmonic) > 1 else None,
        "seeds": len(harmonic),
    }


def _head(settings: ExperimentSettings, images: ImageSet, parts: BaseToNew) -> dict[str, Any]:
    config: HystarConfig = settings.config()
    return {
        **run_info(),
        "config": config.to_dict(),
        "data": {
            "name": images.name,
            "shots": settings.few_shot.shots,
            "base": len(parts.base),
            "new": len(parts.new),
            "test_pictures": {"base": len(parts.base_test), "new": len(parts.new_test)},
        },
        "templates": list(images.templates),
        "steps": settings.few_shot.steps,
        "intervals": "95 %, percentile bootstrap over pictures of the mean over seeds, 2000 resamples",
        "H": "harmonic mean of the accuracies on base and new classes, each half among its own classes",
        "device": str(settings.device()),
        "methods": {},
    }
