"""``hystar-fast figure``: the paper's Figures 3, 5, 6 and 7 on the embedded drawings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from hystar_fast.cli.claims import GAMMAS, LAMBDAS
from hystar_fast.cli.compare import CompareSettings, adapter_folder, compare
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.hystar import HystarMethod
from hystar_fast.methods.interface import Method
from hystar_fast.methods.recipes import demo_config
from hystar_fast.methods.suite import create_method
from hystar_fast.retrieval.embed import embed_images, to_float
from hystar_fast.retrieval.figures import Cloud, Curve, draw_clouds, draw_sweep
from hystar_fast.retrieval.protocol import HARD_STYLES, IMAGE_STYLES, load_split

_CLOUD_METHODS = ("frozen", "freestyle", "hystar")
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
    paths = []
    for number in numbers:
        path = settings.output / f"figure{number}.png"
        FIGURES[number](settings, console, path, projection)
        console.print(f"wrote {path}")
        paths.append(path)
    return paths


def _embeddings(settings: CompareSettings, console: Console, path: Path, projection: str) -> None:
    """Figure 3: held-out drawings by style and by class, in the frozen backbone, FreestyleRet and Hystar."""
    concepts = load_split("test", limit=settings.limit)
    compare(replace(settings, methods=_CLOUD_METHODS, seeds=settings.seeds[:1]), console)
    rows: dict[str, dict[str, Cloud]] = {"style": {}, "class": {}}
    for name in _CLOUD_METHODS:
        method = _trained(name, settings)
        found = {s: embed_images(method, concepts.images[s][concepts.rows(s)]) for s in IMAGE_STYLES}
        vectors = torch.cat(list(found.values()))
        styles = [style for style, part in found.items() for _ in range(len(part))]
        classes = [
            concepts.concepts[row].group.replace("-", " ") for style in found for row in concepts.rows(style).tolist()
        ]
        rows["style"][name], rows["class"][name] = Cloud(vectors, styles), Cloud(vectors, classes)
    draw_clouds(rows, path, f"Held-out drawings, {_named(projection)} of image embeddings", projection=projection)


def _mixtures(settings: CompareSettings, console: Console, path: Path, projection: str) -> None:
    """Figure 5: middle-block features of two styles and of their mixture, the mean of the two pictures."""
    concepts = load_split("test", limit=settings.limit)
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
    draw_clouds({"style": panels}, path, f"Features of the middle block, {_named(projection)}", projection=projection)


def _sweep(field: str, values: Sequence[float], symbol: str) -> Callable[[CompareSettings, Console, Path, str], None]:
    """Figures 6 and 7: R@1 of each hard style along a setting of StyleNCE; all else, rates included, is Hystar's."""

    def draw(settings: CompareSettings, console: Console, path: Path, projection: str) -> None:
        default = getattr(demo_config(None), field)
        names = ["hystar" if value == default else f"hystar+{field}={value:g}" for value in values]
        record = compare(replace(settings, methods=tuple(names), tune_variants=False), console)
        if record["diverged"]:
            raise ValueError(f"the training of {', '.join(record['diverged'])} diverged: there is no curve to draw")
        found = [record["summary"][name]["recall"]["all"] for name in names]
        curves = {style: _curve([rows[style]["R@1"] for rows in found]) for style in HARD_STYLES}
        n, seeds = record["gallery"]["n"], len(settings.seeds)
        note = f"Embedded drawings, full gallery of {n}, mean of {seeds} seed{'s' * (seeds > 1)} with 95 % intervals"
        draw_sweep(values, curves, path, symbol, note)

    return draw


def _curve(rows: Sequence[dict[str, Any]]) -> Curve:
    return Curve(*([row[part] for row in rows] for part in ("value", "low", "high")))


def _trained(name: str, settings: CompareSettings) -> Method:
    if name == "frozen":
        return create_method(name, demo_config(settings.pretrained))
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


def _named(projection: str) -> str:
    return {"tsne": "t-SNE", "pca": "principal plane"}[projection]


FIGURES: dict[int, Callable[[CompareSettings, Console, Path, str], None]] = {
    3: _embeddings,
    5: _mixtures,
    6: _sweep("gamma", GAMMAS, "γ"),
    7: _sweep("lam", LAMBDAS, "λ"),
}
