"""``experiments figure``: Figures 3 and 5 to 11 of the paper, on the embedded drawings or on other data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hystar_fast.data.emoji import load_emoji
from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.data.image_set import ImageSet, Record, Skipped, read_images
from hystar_fast.data.images import to_float
from hystar_fast.experiments.answer_sheets import SHEETS, draw_sheet
from hystar_fast.experiments.compare import compare
from hystar_fast.experiments.experiment_settings import ExperimentSettings
from hystar_fast.experiments.plots import PROJECTION_NAMES, PROJECTIONS, Cloud, Curve, draw_clouds, draw_sweep
from hystar_fast.experiments.splits import open_splits, place_queries, trained_method
from hystar_fast.methods.hystar_method import HystarMethod
from hystar_fast.methods.interface import QUERY, Method
from hystar_fast.retrieval.embed import embed_images, embed_records
from hystar_fast.terminal.console import Console

GAMMAS = (1, 10, 30, 50, 80, 120, 200, 500)  # Section G.1
LAMBDAS = (0.1, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)  # Section G.2
_METHODS = ("frozen", "freestyle", "hystar")
_CLASSES, _PICTURES = 9, 200  # of data other than the drawings, and of each style
_MIXED_STYLES = ("twemoji", "sketch")

Draw = Callable[[ExperimentSettings, Console, Path], None]


def run_figures(numbers: Sequence[int], settings: ExperimentSettings, console: Console) -> list[Path]:
    """Draw figures into ``figure<n>.png``; methods that the output folder does not hold are trained first.

    Raises:
        ValueError: a figure that is not available here, or settings that `compare` rejects.
    """
    unknown = [number for number in numbers if number not in FIGURES]
    if unknown:
        raise ValueError(f"figures must be some of {tuple(FIGURES)}, got {unknown[0]}")
    if settings.run.projection not in PROJECTIONS:
        raise ValueError(f"run.projection must be one of {PROJECTIONS}, got {settings.run.projection!r}")
    paths = []
    with lock_folder(settings.output):
        for number in numbers:
            path = settings.output / f"figure{number}.png"
            FIGURES[number](settings, console, path)
            console.print(f"wrote {path}")
            paths.append(path)
    return paths


def _draw_embeddings(settings: ExperimentSettings, console: Console, path: Path) -> None:
    """Draw Figure 3: queries by style and by class, in the frozen backbone, FreestyleRet and Hystar."""
    images = _sample(open_splits(settings).test, settings)
    compare(settings.with_training(seeds=1), console, _METHODS)
    queries = [record for style in images.query_styles for record in images.of_style(style)]
    rows: dict[str, dict[str, Cloud]] = {"style": {}, "class": {}}
    for name in _METHODS:
        found = embed_records(trained_method(name, 0, settings), images, queries, [], role=QUERY)
        if not found.records:
            raise ValueError(f"data.source must have readable query pictures, got none in {images.name}")
        rows["style"][name] = Cloud(found.vectors, [record.style for record in found.records])
        rows["class"][name] = Cloud(found.vectors, [record.category or "no category" for record in found.records])
    projection = settings.run.projection
    title = f"{_shown(images)}: image embeddings of all queries ({PROJECTION_NAMES[projection]})"
    draw_clouds(rows, path, title, projection=projection)


def _sample(images: ImageSet, settings: ExperimentSettings) -> ImageSet:
    """Return all drawings with their groups as categories, or as much of other data as a picture can show."""
    if images.name == "emoji":
        by_group = load_emoji("test", images.query_styles, category="group")
        return place_queries(by_group.select(limit=settings.data.limit or None), settings.data)
    counted = Counter(record.category for record in images.records if record.category is not None)
    largest = [name for name, _ in counted.most_common(_CLASSES)]
    return images.select(categories=largest or None, limit=_PICTURES)


def _draw_mixtures(settings: ExperimentSettings, console: Console, path: Path) -> None:
    """Draw Figure 5: middle-block features of two styles and of their mixture (the mean of two pictures)."""
    images = open_splits(settings).test
    styles = _MIXED_STYLES if images.name == "emoji" else images.query_styles[:2]
    pictured = [{r.instance: r for r in images.of_style(style) if r.instance is not None} for style in styles]
    both = [i for i in pictured[0] if all(i in found for found in pictured)][:_PICTURES] if len(styles) > 1 else []
    if not both:
        raise ValueError(
            f"data.source must have instances with queries in two styles for figure 5, got none in {images.name}"
        )
    compare(settings.with_training(seeds=1), console, ("hystar",))
    panels = {}
    for name in ("frozen", "hystar"):
        method = trained_method(name, 0, settings)
        one, two = (_pictures(method, images, [found[instance] for instance in both]) for found in pictured)
        parts = {styles[0]: one, styles[1]: two, "both, half each": (one + two) / 2}
        features = {label: _middle_features(method, pictures) for label, pictures in parts.items()}
        labels = [label for label, part in features.items() for _ in range(len(part))]
        panels[name] = Cloud(torch.cat(list(features.values())), labels)
    projection = settings.run.projection
    title = f"{_shown(images)}: features of the middle block ({PROJECTION_NAMES[projection]})"
    draw_clouds({"style": panels}, path, title, projection=projection)


def _pictures(method: Method, images: ImageSet, records: Sequence[Record]) -> Tensor:
    """Read all records as floating point [n, 3, H, W]; ValueError if one cannot be read."""
    skipped: list[Skipped] = []
    found = [pictures for _, pictures in read_images(images, records, method.resize, skipped)]
    if skipped:
        raise ValueError(f"query pictures must be readable, got {skipped[0].path}: {skipped[0].reason}")
    return to_float(torch.cat(found))


def _sweep(field: str, values: Sequence[float], symbol: str) -> Draw:
    """Return a function that draws Figure 6 or 7: R@1 of each headline style along one setting of StyleNCE."""

    def draw(settings: ExperimentSettings, console: Console, path: Path) -> None:
        default = getattr(settings.config(), field)
        names = ["hystar" if value == default else f"hystar+{field}={value:g}" for value in values]
        record = compare(settings.with_training(tune_variants=False), console, names)
        if record["diverged"]:
            raise ValueError(
                f"every run of a curve must converge, got diverged runs of {', '.join(record['diverged'])}"
            )
        rows = [record["summary"][name]["recall"]["all"] for name in names]
        data, seeds = record["data"], len(settings.seeds)
        curves = {style: _curve([row[style]["R@1"] for row in rows]) for style in data["headline"]}
        kind = data["protocol"].partition(":")[0]
        note = f"Mean of {seeds} seed{'s' * (seeds > 1)} with 95 % intervals; "
        note += f"{data['name']}, {kind} gallery of {data['gallery']['n']}."
        title = f"First answers that are right, by query style, along {symbol} of StyleNCE"
        draw_sweep(values, curves, path, f"{symbol} (logarithmic)", title, note, default=default)

    return draw


def _curve(rows: Sequence[dict[str, Any]]) -> Curve:
    return Curve(*([row[part] for row in rows] for part in ("value", "low", "high")))


def _sheet(number: int) -> Draw:
    """Return a function that draws one of Figures 8 to 11: the first answers of three methods."""

    def draw(settings: ExperimentSettings, console: Console, path: Path) -> None:
        compare(settings.with_training(seeds=1), console, _METHODS)
        draw_sheet(number, {name: trained_method(name, 0, settings) for name in _METHODS}, settings, path)

    return draw


@torch.no_grad()
def _middle_features(method: Method, images: Tensor) -> Tensor:
    """Return the mean token after the middle block [n, width] of the method's own encoder."""
    model: Any = method.modules[0]
    backbone = model.backbone if isinstance(method, HystarMethod) else model
    tower, next_block = backbone.tower, backbone.blocks[backbone.depth // 2]
    run_block, kept = tower.run_block, list[Tensor]()

    def record_input(block: Any, x: Tensor, *offsets: Any) -> Tensor:
        if block is next_block:
            kept.append(x.mean(dim=1))
        return run_block(block, x, *offsets)

    tower.run_block = record_input
    try:
        embed_images(method, images)
    finally:
        del tower.run_block
    return torch.cat(kept)


def _shown(images: ImageSet) -> str:
    return "Held-out drawings" if images.name == "emoji" else images.name


FIGURES: dict[int, Draw] = {
    3: _draw_embeddings,
    5: _draw_mixtures,
    6: _sweep("gamma", GAMMAS, "γ"),
    7: _sweep("lam", LAMBDAS, "λ"),
    **{number: _sheet(number) for number in SHEETS},
}
