"""``hystar-fast fewshot``: base-to-new classification with a few pictures a class (Table 11 of the paper)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import stdev
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from hystar_fast.cli.compare_table import bounded
from hystar_fast.cli.report import about, check_output, interval, write_json
from hystar_fast.data.classes import open_classes
from hystar_fast.data.records import ImageSet, Record, Skipped, read_images
from hystar_fast.methods.baselines import BASELINES
from hystar_fast.methods.interface import Method, count_parameters
from hystar_fast.methods.on_device import chosen_device, placed
from hystar_fast.methods.recipes import demo_config, untuned_rates
from hystar_fast.methods.suite import TRAINED, create_method
from hystar_fast.models.config import HystarConfig
from hystar_fast.retrieval.embedded import embed_records
from hystar_fast.retrieval.few_shot import SHOTS, Accuracies, BaseToNew, accuracies, base_to_new, draw_shots, right
from hystar_fast.retrieval.zero_shot import TEMPLATES, class_embeddings
from hystar_fast.train.few_shot import train_few_shot
from hystar_fast.train.recipe import Recipe

RESULTS_FILE = "few_shot.json"
CLASSIFIERS = ("frozen", *TRAINED, *BASELINES)
DEFAULT_METHODS = ("frozen", "static", "lora", "hystar")
FEW_SHOT_STEPS = 60
PLAIN = "{}"  # the captions of the tiny backbone's training are bare names


@dataclass(frozen=True)
class FewShotSettings:
    """What is classified, and how it is trained.

    Attributes:
        output: folder for ``few_shot.json``.
        data: see :func:`hystar_fast.data.classes.open_classes`.
        methods: names from `CLASSIFIERS`; "frozen" is zero-shot CLIP.
        config: the backbone, the style and the loss; by default the demo's.
        template: of the class names, with one {} for the name; by default `PLAIN` for the emoji and CLIP's for folders.
        shots: pictures a base class.
        seeds: of the shots and of the training.
        steps, batch_size: of the training.
        tuning: a ``tuning.json`` of `hystar-fast compare` whose learning rates are taken; else those of
            :func:`hystar_fast.methods.recipes.untuned_rates`.
        limit: test at most so many pictures of each half.
        device: "auto", "cpu" or "cuda".
    """

    output: Path
    data: str = "emoji:subgroup"
    methods: Sequence[str] = DEFAULT_METHODS
    config: HystarConfig = field(default_factory=demo_config)
    template: str | None = None
    shots: int = SHOTS
    seeds: Sequence[int] = (0, 1, 2)
    steps: int = FEW_SHOT_STEPS
    batch_size: int = 48
    tuning: Path | None = None
    limit: int | None = None
    device: str = "auto"


def run_few_shot(settings: FewShotSettings, console: Console) -> dict[str, Any]:
    """Train on the base classes, classify both halves, print the table, write and return the results.

    Raises:
        ValueError: something in the settings or the data that cannot be used.
    """
    unknown = [name for name in settings.methods if name not in CLASSIFIERS]
    if unknown or not settings.methods or not settings.seeds:
        raise ValueError(f"methods must be some of {CLASSIFIERS} and seeds at least one, got {settings.methods}")
    check_output(settings.output)
    device = chosen_device(settings.device)
    images = open_classes(settings.data)
    parts = base_to_new(images)
    if settings.limit is not None:
        parts = BaseToNew(
            parts.base, parts.new, parts.training, _spread(parts.base_test, settings), _spread(parts.new_test, settings)
        )
    chosen = _rates(settings)
    skipped: list[Skipped] = list(images.skipped)
    results = _header(settings, images, parts) | {"device": str(device)}
    if taken := _rates_taken(chosen, settings.methods):
        console.print(f"learning rates: {taken}", highlight=False, markup=False)
    with Progress(console=console, transient=True) as progress:
        runs = [
            (name, s) for name in settings.methods for s in (settings.seeds[:1] if name == "frozen" else settings.seeds)
        ]
        overall = progress.add_task("few-shot", total=len(runs))
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, seed in runs:
            progress.update(overall, description=f"{name}, seed {seed}")
            began = time.perf_counter()
            method = create_method(name, settings.config, seed=seed)
            entry = results["methods"].setdefault(name, {"parameters": sum(count_parameters(method).values())})
            if name in chosen:
                entry["learning_rates"], entry["rates_from"] = chosen[name]
                _train(method, images, parts, settings, chosen[name][0], seed, skipped, device)
            answering = placed(method, device)
            found.setdefault(name, []).append(_classify(answering, images, parts, settings, skipped))
            entry.setdefault("seconds", []).append(round(time.perf_counter() - began, 1))
            entry |= _summary(found[name])
            results["skipped"] = len({entry.path for entry in skipped})
            write_json(settings.output / RESULTS_FILE, results)
            progress.advance(overall)
    console.print(few_shot_table(results))
    if results["skipped"]:
        console.print(f"skipped {results['skipped']} pictures that cannot be read, the first: {skipped[0].path}")
    console.print(f"wrote {settings.output / RESULTS_FILE}")
    return results


def has_chosen(tuning: Path, config: HystarConfig, methods: Sequence[str]) -> bool:
    """Whether a ``tuning.json`` is there, is of this configuration and has learning rates for these methods."""
    try:
        record = json.loads(tuning.read_text(encoding="utf-8"))
        return bool(record["config"] == config.to_dict() and set(methods) <= set(record["chosen"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def few_shot_table(results: dict[str, Any]) -> Table:
    """A row a method: base, new and H in per cent with their intervals, and H's standard deviation over seeds."""
    about = results["data"]
    title = (
        f"{about['name']}: {about['shots']} shots, {about['base']} base and {about['new']} new classes; accuracy (%)"
    )
    table = Table(title=title, title_justify="left", header_style="bold", padding=(0, 0))
    table.add_column("method", no_wrap=True)
    for heading in ("trained", "base", "new", "H", "± H"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, entry in results["methods"].items():
        cells = [bounded(entry[part], ".1f") for part in ("base", "new", "H")]
        deviation = entry["deviation"]
        table.add_row(name, f"{entry['parameters']:,}", *cells, "–" if deviation is None else f"{deviation:.1f}")
    return table


def _spread(records: Sequence[Record], settings: FewShotSettings) -> tuple[Record, ...]:
    limit = min(len(records), settings.limit or len(records))
    return tuple(records[i * len(records) // limit] for i in range(limit))


def _rates_taken(chosen: Mapping[str, tuple[dict[str, float], str]], methods: Sequence[str]) -> str:
    """The learning rates of the methods that train, and where they come from; empty where none does."""
    taken: dict[str, list[str]] = {}
    for name in methods:
        if name in chosen:
            rates, why = chosen[name]
            shown = (f"{rate:g}" if group == name else f"{group} {rate:g}" for group, rate in rates.items())
            taken.setdefault(why, []).append(f"{name} {', '.join(shown)}")
    return "; ".join(f"{', '.join(shown)} ({why})" for why, shown in taken.items())


def _rates(settings: FewShotSettings) -> dict[str, tuple[dict[str, float], str]]:
    """The learning rates of each trained method, and where they come from."""
    rates, tuning = untuned_rates(settings.config.backbone), settings.tuning
    if tuning is None:
        return rates
    try:
        chosen = {str(k): dict(v) for k, v in json.loads(tuning.read_text(encoding="utf-8"))["chosen"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"tuning must be a tuning.json with what was chosen: {error!r}") from error
    missing = [name for name in settings.methods if name in rates and name not in chosen]
    if missing:
        raise ValueError(f"tuning {tuning} has chosen nothing for {', '.join(missing)}")
    return {name: (found, f"chosen in {tuning}") for name, found in chosen.items()}


def _train(
    method: Method,
    images: ImageSet,
    parts: BaseToNew,
    settings: FewShotSettings,
    rates: dict[str, float],
    seed: int,
    skipped: list[Skipped],
    device: torch.device,
) -> None:
    shots = draw_shots(parts.training, settings.shots, seed)
    read = list(read_images(images, shots, method.reader, skipped))
    rows = [row for batch, _ in read for row in batch]
    if not rows:
        raise ValueError(f"no training picture of {images.name} can be read")
    labels = torch.tensor([parts.base.index(str(shots[row].category)) for row in rows])
    recipe = Recipe(rates, steps=settings.steps, batch_size=settings.batch_size, seed=seed)
    classes = _classes(placed(method, device), parts.base, settings)
    train_few_shot(method, torch.cat([pictures for _, pictures in read]), labels, classes, recipe, device=device)


def _template(settings: FewShotSettings) -> str:
    return settings.template or (PLAIN if settings.data.startswith("emoji:") else TEMPLATES[0])


def _classes(method: Method, names: Sequence[str], settings: FewShotSettings) -> Tensor:
    return class_embeddings(method, names, (_template(settings),))


def _classify(
    method: Method, images: ImageSet, parts: BaseToNew, settings: FewShotSettings, skipped: list[Skipped]
) -> tuple[Tensor, Tensor]:
    """Which test pictures of the base and of the new classes are right; what cannot be read is in neither."""
    found = []
    for names, records in ((parts.base, parts.base_test), (parts.new, parts.new_test)):
        classes = _classes(method, names, settings)
        tested = embed_records(method, images, records, skipped)
        if not tested.records:
            raise ValueError(f"no test picture of {images.name} can be read")
        wanted = torch.tensor([names.index(str(record.category)) for record in tested.records])
        found.append(right(tested.vectors, classes, wanted))
    return found[0], found[1]


def _summary(runs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    base, new = (torch.stack([run[half] for run in runs]) for half in (0, 1))
    each = [accuracies(*run).harmonic.value for run in runs]
    found: Accuracies = accuracies(base.mean(0), new.mean(0))
    return {
        "base": interval(found.base),
        "new": interval(found.new),
        "H": interval(found.harmonic),
        "deviation": round(100 * stdev(each), 2) if len(each) > 1 else None,
        "seeds": len(each),
    }


def _header(settings: FewShotSettings, images: ImageSet, parts: BaseToNew) -> dict[str, Any]:
    return {
        **about(),
        "config": settings.config.to_dict(),
        "data": {
            "name": images.name,
            "shots": settings.shots,
            "base": len(parts.base),
            "new": len(parts.new),
            "test_pictures": {"base": len(parts.base_test), "new": len(parts.new_test)},
        },
        "template": _template(settings),
        "steps": settings.steps,
        "intervals": "95 %, percentile bootstrap over pictures of the mean over seeds, 2000 resamples",
        "H": "harmonic mean of the accuracies on base and new classes, each among its own",
        "methods": {},
    }
