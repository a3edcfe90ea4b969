"""``hystar-fast figure``: the paper's Figures 3 and 5 to 11 on the embedded drawings; 3, 6 and 7 on other data, too."""

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
from hystar_fast.data.emoji import EmojiStyles
from hystar_fast.data.records import ImageSet
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.hystar import HystarMethod
from hystar_fast.methods.interface import Method
from hystar_fast.methods.suite import create_method
from hystar_fast.retrieval.embed import embed_images, embed_texts, to_float
from hystar_fast.retrieval.embedded import embed_records
from hystar_fast.retrieval.figures import PROJECTION_NAMES, PROJECTIONS, Cloud, Curve, draw_clouds, draw_sweep
from hystar_fast.retrieval.pictures import ALIKE, RIGHT, WRONG, Answer, Question, retrieval_sheet
from hystar_fast.retrieval.protocol import (
    GALLERY_STYLE,
    HARD_STYLES,
    QUERY_STYLES,
    StyledConcepts,
    load_split,
)

_CLOUD_METHODS = ("frozen", "freestyle", "hystar")
_CLASSES, _PICTURES = 9, 200  # of other data, and of each style
_MIXED = ("twemoji", "sketch")
_ANSWERS, _QUESTIONS = 10, 6  # of a sheet: the paper's top 10, and as many questions as stay legible


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
    if settings.source.data != "emoji":
        raise ValueError(f"figure 5 mixes two styles of the embedded drawings, got data {settings.source.data!r}")
    concepts = load_split("test", limit=settings.source.limit)
    compare(replace(settings, methods=("hystar",), seeds=settings.seeds[:1]), console)
    first, second = _MIXED
    both = concepts.present[first] & concepts.present[second]
    one, two = (to_float(concepts.images[style][both]) for style in _MIXED)
    parts = {first: one, second: two, "both, half each": (one + two) / 2}
    panels = {}
    for name in ("frozen", "hystar"):
        method = _trained(name, settings)
        found = {label: _middle_features(method, images) for label, images in parts.items()}
        labels = [label for label, part in found.items() for _ in range(len(part))]
        panels[name] = Cloud(torch.cat(list(found.values())), labels)
    draw_clouds(
        {"style": panels}, path, f"Features of the middle block, {PROJECTION_NAMES[projection]}", projection=projection
    )


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


def _sheet(
    number: int, styles: Sequence[str], *, categories: bool
) -> Callable[[CompareSettings, Console, Path, str], None]:
    """Figures 8 to 11: the first answers of the frozen backbone, FreestyleRet and Hystar, framed right or wrong.

    The questions stand at fixed places of the held-out list. Where the paper's sheet shows DomainNet, whose right
    answers are a category, another concept of the right one's subgroup has a frame of its own.
    """

    def draw(settings: CompareSettings, console: Console, path: Path, projection: str) -> None:
        if settings.source.data != "emoji":
            raise ValueError(
                f"figure {number} is drawn with the embedded drawings alone, not with {settings.source.data}"
            )
        held_out = load_split("test", styles, limit=settings.source.limit)
        compare(replace(settings, methods=_CLOUD_METHODS, seeds=settings.seeds[:1]), console)
        asked = [
            (style, int(rows[(2 * (column + len(styles) * turn) + 1) * len(rows) // (2 * _QUESTIONS)]))
            for column, style in enumerate(styles)
            for rows in (held_out.rows(style),)
            for turn in range(_QUESTIONS // len(styles))
        ]
        found = {name: _first_answers(_trained(name, settings), held_out, asked, categories) for name in _CLOUD_METHODS}
        questions = [
            Question(
                image=None if style == "text" else held_out.images[style][row],
                style=style,
                caption=held_out.concepts[row].name,
                answers={name: answers[i] for name, answers in found.items()},
            )
            for i, (style, row) in enumerate(asked)
        ]
        legend = {RIGHT: "the right concept"}
        legend |= {ALIKE: "another of its subgroup", WRONG: "another subgroup"} if categories else {WRONG: "another"}
        notes = [f"Queries at fixed places of the held-out list, not selected; training of seed {settings.seeds[0]}."]
        unseen = [style for style in styles if style not in QUERY_STYLES]
        if unseen:
            notes.append(f"No method was trained on queries of {' and '.join(unseen)}.")
        first = min(_ANSWERS, len(held_out))
        title = f"Figure {number} with the embedded drawings: first {first} of {len(held_out)}"
        retrieval_sheet(questions, title, notes, legend).save(path, optimize=True)

    return draw


def _first_answers(
    method: Method, held_out: StyledConcepts, asked: Sequence[tuple[str, int]], categories: bool
) -> list[list[Answer]]:
    """The first answers to each (style, concept)."""
    pictures, concepts = held_out.images[GALLERY_STYLE], held_out.concepts
    gallery = embed_images(method, pictures)
    rows = []
    for style, row in asked:
        if style == "text":
            query = embed_texts(method, [concepts[row].name])
            if query is None:
                raise ValueError(f"method {method.name!r} takes no text")
        else:
            query = embed_images(method, held_out.images[style][row][None])
        order = (gallery @ query[0]).sort(descending=True, stable=True).indices[:_ANSWERS].tolist()
        alike = [categories and concepts[i].subgroup == concepts[row].subgroup for i in order]
        rows.append([Answer(pictures[i], i == row, concepts[i].name, a) for i, a in zip(order, alike, strict=True)])
    return rows


def _trained(name: str, settings: CompareSettings) -> Method:
    if name == "frozen":
        return create_method(name, settings.source.config())
    return load_method(adapter_folder(settings.output, name, settings.seeds[0]))


@torch.no_grad()
def _middle_features(method: Method, images: Tensor) -> Tensor:
    """The mean token of the middle block [n, width] as the method's own encoder makes it."""
    model: Any = method.modules[0]
    backbone = model.backbone if isinstance(method, HystarMethod) else model
    kept: list[Tensor] = []
    # The block loop may call the parts of a block rather than the block: what enters the next one's norm left this one.
    handle = backbone.blocks[backbone.depth // 2].ln_1.register_forward_pre_hook(
        lambda _, inputs: kept.append(inputs[0].mean(dim=1))
    )
    try:
        embed_images(method, images)
    finally:
        handle.remove()
    return torch.cat(kept)


def _shown(images: ImageSet) -> str:
    return "Held-out drawings" if images.name == "emoji" else images.name


FIGURES: dict[int, Callable[[CompareSettings, Console, Path, str], None]] = {
    3: _embeddings,
    5: _mixtures,
    6: _sweep("gamma", GAMMAS, "γ"),
    7: _sweep("lam", LAMBDAS, "λ"),
    8: _sheet(8, ("sketch", "lowres", "text"), categories=False),  # DSR: sketch, low resolution, text
    9: _sheet(9, ("twemoji", "sketch"), categories=True),  # DomainNet: clipart, sketch
    10: _sheet(10, ("photo3d", "outline"), categories=True),  # painting, quickdraw
    11: _sheet(11, ("flat",), categories=True),  # infograph
}
