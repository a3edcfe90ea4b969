"""``hystar-fast figure``: the paper's Figures 3 and 5 to 11 on the embedded drawings or on other data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from hystar_fast.cli.claims import GAMMAS, LAMBDAS
from hystar_fast.cli.compare import CompareSettings, adapter_folder, compare
from hystar_fast.cli.figure_sheets import SHEETS, draw_sheet
from hystar_fast.data.emoji import EmojiStyles
from hystar_fast.data.records import ImageSet, Record, Skipped, read_images
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.hystar import HystarMethod
from hystar_fast.methods.interface import Method
from hystar_fast.methods.suite import create_method
from hystar_fast.retrieval.embed import embed_images, to_float
from hystar_fast.retrieval.embedded import embed_records
from hystar_fast.retrieval.figures import PROJECTION_NAMES, PROJECTIONS, Cloud, Curve, draw_clouds, draw_sweep
from hystar_fast.retrieval.protocol import HARD_STYLES

_CLOUD_METHODS = ("frozen", "freestyle", "hystar")
_CLASSES, _PICTURES = 9, 200  # of other data, and of each style
_MIXED = ("twemoji", "sketch")


def run_figures(
    numbers: Sequence[int], settings: CompareSettings, console: Console, *, projection: str = "tsne"
) -> list[Path]:
    """Draw figures into ``figure<n>.png``; what they need is trained first, unless the folder holds it.

    Raises:
        ValueError: a figure that is not drawn here, or what `compare` refuses.
    """
    unknown = [number for number in numbers if number not in FIGURES]
    if unknown:
        raise ValueError(f"figures must be some of {tuple(FIGURES)}, got {unknown[0]}")
    if projection not in PROJECTIONS:
        raise ValueError(f"projection must be one of {PROJECTIONS}, got {projection!r}")
    paths = []
    for number in numbers:
        path = settings.output / f"figure{number}.png"
        FIGURES[number](settings, console, path, projection)
        console.print(f"wrote {path}")
        paths.append(path)
    return paths


def _embeddings(settings: CompareSettings, console: Console, path: Path, projection: str) -> None:
    """Figure 3: pictures that ask, by style and by class, in the frozen backbone, FreestyleRet and Hystar."""
    images = _some(settings.source.parts().images())
    compare(replace(settings, methods=_CLOUD_METHODS, seeds=settings.seeds[:1]), console)
    asked = [record for style in images.styles[1:] for record in images.of_style(style)]
    rows: dict[str, dict[str, Cloud]] = {"style": {}, "class": {}}
    for name in _CLOUD_METHODS:
        method = _trained(name, settings)
        found = embed_records(method, images, asked, [])
        if not found.records:
            raise ValueError(f"no picture of {images.name} that asks can be read")
        rows["style"][name] = Cloud(found.vectors, [record.style for record in found.records])
        rows["class"][name] = Cloud(found.vectors, [record.category or "no category" for record in found.records])
    note = f"{_shown(images)}, {PROJECTION_NAMES[projection]} of image embeddings"
    draw_clouds(rows, path, note, projection=projection)


def _some(images: ImageSet) -> ImageSet:
    """All of the embedded drawings, by their group; of other data as much as a picture can show."""
    if images.name == "emoji":
        drawings = EmojiStyles()
        groups = [drawings.concept(str(record.instance)).group.replace("-", " ") for record in images.records]
        found = [replace(record, category=group) for record, group in zip(images.records, groups, strict=True)]
        numbered = {(new.style, new.instance): old for new, old in zip(found, images.records, strict=True)}
        return replace(images, records=tuple(found), read=lambda r: images.read(numbered[r.style, r.instance]))
    counted = Counter(record.category for record in images.records if record.category is not None)
    largest = [name for name, _ in counted.most_common(_CLASSES)]
    return images.select(categories=largest or None, limit=_PICTURES)


def _mixtures(settings: CompareSettings, console: Console, path: Path, projection: str) -> None:
    """Figure 5: middle-block features of two styles and of their mixture, the mean of the two pictures."""
    images = settings.source.parts().images()
    styles = _MIXED if images.name == "emoji" else images.styles[1:3]
    things = [{r.instance: r for r in images.of_style(style) if r.instance is not None} for style in styles]
    both = [name for name in things[0] if all(name in found for found in things)][:_PICTURES] if len(styles) > 1 else []
    if not both:
        raise ValueError(f"figure 5 mixes two pictures of one thing, and {images.name} has none in two styles that ask")
    compare(replace(settings, methods=("hystar",), seeds=settings.seeds[:1]), console)
    panels = {}
    for name in ("frozen", "hystar"):
        method = _trained(name, settings)
        one, two = (_pictures(method, images, [found[thing] for thing in both]) for found in things)
        parts = {styles[0]: one, styles[1]: two, "both, half each": (one + two) / 2}
        found = {label: _middle_features(method, pictures) for label, pictures in parts.items()}
        labels = [label for label, part in found.items() for _ in range(len(part))]
        panels[name] = Cloud(torch.cat(list(found.values())), labels)
    note = f"{_shown(images)}, features of the middle block, {PROJECTION_NAMES[projection]}"
    draw_clouds({"style": panels}, path, note, projection=projection)


def _pictures(method: Method, images: ImageSet, records: Sequence[Record]) -> Tensor:
    """Floating point [n, 3, H, W] of all records; ValueError if one cannot be read."""
    skipped: list[Skipped] = []
    found = [pictures for _, pictures in read_images(images, records, method.reader, skipped)]
    if skipped:
        raise ValueError(f"{skipped[0].path} cannot be shown: {skipped[0].reason}")
    return to_float(torch.cat(found))


def _sweep(field: str, values: Sequence[float], symbol: str) -> Callable[[CompareSettings, Console, Path, str], None]:
    """Figures 6 and 7: R@1 of each hard style along a setting of StyleNCE; all else, rates included, is Hystar's."""

    def draw(settings: CompareSettings, console: Console, path: Path, projection: str) -> None:
        default = getattr(settings.source.config(), field)
        names = ["hystar" if value == default else f"hystar+{field}={value:g}" for value in values]
        record = compare(replace(settings, methods=tuple(names), tune_variants=False), console)
        if record["diverged"]:
            raise ValueError(f"the training of {', '.join(record['diverged'])} diverged: there is no curve to draw")
        found = [record["summary"][name]["recall"]["all"] for name in names]
        headline = record.get("headline", HARD_STYLES)
        curves = {style: _curve([rows[style]["R@1"] for rows in found]) for style in headline}
        n, seeds = record["gallery"]["n"], len(settings.seeds)
        where = f"{record.get('data', 'Embedded drawings')}, full gallery of {n}"
        if "protocol" in record:
            where = f"{record['data']}, {record['gallery']['concepts']}"
        note = f"{where}, mean of {seeds} seed{'s' * (seeds > 1)} with 95 % intervals"
        draw_sweep(values, curves, path, symbol, note)

    return draw


def _curve(rows: Sequence[dict[str, Any]]) -> Curve:
    return Curve(*([row[part] for row in rows] for part in ("value", "low", "high")))


def _sheet(number: int) -> Callable[[CompareSettings, Console, Path, str], None]:
    """Figures 8 to 11: the first answers of the frozen backbone, FreestyleRet and Hystar, framed right or wrong."""

    def draw(settings: CompareSettings, console: Console, path: Path, projection: str) -> None:
        compare(replace(settings, methods=_CLOUD_METHODS, seeds=settings.seeds[:1]), console)
        draw_sheet(number, {name: _trained(name, settings) for name in _CLOUD_METHODS}, settings, path)

    return draw


def _trained(name: str, settings: CompareSettings) -> Method:
    if name == "frozen":
        return create_method(name, settings.source.config())
    return load_method(adapter_folder(settings.output, name, settings.seeds[0]))


@torch.no_grad()
def _middle_features(method: Method, images: Tensor) -> Tensor:
    """The mean token of the middle block [n, width] as the method's own encoder makes it."""
    model: Any = method.modules[0]
    backbone = model.backbone if isinstance(method, HystarMethod) else model
    tower, next_block = backbone.tower, backbone.blocks[backbone.depth // 2]
    run_block, kept = tower.run_block, list[Tensor]()

    def seen(block: Any, x: Tensor, *offsets: Any) -> Tensor:
        if block is next_block:  # what enters it left the middle one
            kept.append(x.mean(dim=1))
        return run_block(block, x, *offsets)

    tower.run_block = seen
    try:
        embed_images(method, images)
    finally:
        del tower.run_block
    return torch.cat(kept)


def _shown(images: ImageSet) -> str:
    return "Held-out drawings" if images.name == "emoji" else images.name


FIGURES: dict[int, Callable[[CompareSettings, Console, Path, str], None]] = {
    3: _embeddings,
    5: _mixtures,
    6: _sweep("gamma", GAMMAS, "γ"),
    7: _sweep("lam", LAMBDAS, "λ"),
    **{number: _sheet(number) for number in SHEETS},
}
