"""Plots of embeddings by style and by class, and of a recall along a setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hystar_fast.retrieval.embedding_map import principal_plane
from hystar_fast.retrieval.plot_style import (
    FAINT,
    INK,
    LINE,
    TEXT,
    TITLE,
    Look,
    add_frame,
    add_legend,
    add_title,
    dot_size,
    figure_of,
    looks,
    plain,
    save_figure,
)

PROJECTIONS = ("tsne", "umap", "pca")
PROJECTION_NAMES = {"tsne": "t-SNE", "umap": "UMAP", "pca": "principal plane"}
_PERPLEXITY, _NEIGHBOURS = 30.0, 15
_SIDE = 2.75  # inches of a panel of dots
_OFFSET = 1.05  # factor between two curves at one value, so that their error bars do not overlap


@dataclass(frozen=True)
class Cloud:
    """The points of one panel: embeddings [n, D], and a label for each."""

    embeddings: Tensor
    labels: Sequence[str]


@dataclass(frozen=True)
class Curve:
    """A recall along a setting, in per cent, with its interval at each value."""

    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def project(embeddings: Tensor, projection: str = "tsne", *, seed: int = 0) -> Tensor:
    """Project embeddings [n, D] to points [n, 2] by t-SNE, UMAP, or principal components, where the other two start.

    Args:
        embeddings: t-SNE and UMAP use their cosine similarity.
        projection: "tsne" (scikit-learn), "umap" (umap-learn) or "pca".
        seed: of t-SNE and UMAP.

    Raises:
        ValueError: another projection, or too few points.
        ModuleNotFoundError: scikit-learn (t-SNE) or umap-learn (UMAP) is not installed.
    """
    if projection not in PROJECTIONS:
        raise ValueError(f"projection must be one of {PROJECTIONS}, got {projection!r}")
    plane, _ = principal_plane(embeddings)
    if projection == "pca":
        return plane
    if len(embeddings) < 4:
        raise ValueError(
            f"embeddings must be at least 4 points for {PROJECTION_NAMES[projection]}, got {len(embeddings)}"
        )
    return (_tsne if projection == "tsne" else _umap)(embeddings.float(), plane, seed)


@contextmanager
def _requires(projection: str, package: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{projection} needs {package}: pip install 'hystar-fast[figures]', or use the projection pca",
            name=error.name,
        ) from error


def _tsne(embeddings: Tensor, plane: Tensor, seed: int) -> Tensor:
    with _requires("t-SNE", "scikit-learn"):
        from sklearn.manifold import TSNE
    start = (plane / plane[:, 0].std().clamp_min(1e-12) * 1e-4).numpy()
    perplexity = min(_PERPLEXITY, (len(embeddings) - 1) / 3)
    tsne = TSNE(init=start, perplexity=perplexity, metric="cosine", random_state=seed)
    return torch.from_numpy(tsne.fit_transform(embeddings.numpy()))


def _umap(embeddings: Tensor, plane: Tensor, seed: int) -> Tensor:
    with _requires("UMAP", "umap-learn"):
        from umap import UMAP
    start = (10 * plane / plane.abs().max().clamp_min(1e-12)).numpy()
    neighbours = min(_NEIGHBOURS, len(embeddings) - 1)
    umap = UMAP(n_neighbors=neighbours, init=start, metric="cosine", random_state=seed, n_jobs=1)
    return torch.from_numpy(umap.fit_transform(embeddings.numpy()))


def draw_clouds(
    rows: Mapping[str, Mapping[str, Cloud]], path: str | Path, title: str, *, projection: str = "tsne"
) -> None:
    """Draw scatter plots: a column for each method, a row for each way to colour the same points.

    Args:
        rows: meaning of the colours -> heading of the column -> points; a column's points are the same in every row.
        path: PNG to write.
        title: heading.
        projection: see :func:`project`.
    """
    first = next(iter(rows.values()))
    figure = figure_of(max(5.0, _SIDE * len(first)), (_SIDE + 0.6) * len(rows) + 0.7)
    points = {name: project(cloud.embeddings, projection).numpy() for name, cloud in first.items()}
    for number, (part, (meaning, panel)) in enumerate(
        zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True)
    ):
        look = looks(label for cloud in panel.values() for label in cloud.labels)
        for axes, (name, cloud) in zip(part.subplots(1, len(panel), squeeze=False)[0], panel.items(), strict=True):
            size = dot_size(len(cloud.labels), _SIDE)
            for label, (colour, shape) in look.items():
                chosen = [k for k, other in enumerate(cloud.labels) if other == label]
                xy = points[name][chosen].T
                axes.scatter(*xy, s=size, alpha=0.75, linewidths=0, color=colour, marker=shape)
            add_frame(axes)
            if number == 0:
                axes.set_title(plain(name), fontsize=TITLE, color=INK, parse_math=False)
        part.supylabel(f"by {meaning}", fontsize=TITLE, color=INK)
        add_legend(part, look, figure.get_figwidth())
    add_title(figure, title, "Near dots are similar. The axes have no unit.")
    save_figure(figure, path)


def draw_sweep(
    settings: Sequence[float],
    curves: Mapping[str, Curve],
    path: str | Path,
    axis: str,
    title: str,
    note: str = "",
    *,
    default: float | None = None,
) -> None:
    """Draw a recall along a setting on a logarithmic axis: a curve for each query style, with intervals.

    Args:
        settings: the values of the setting, positive.
        curves: query style -> its recall at each of them.
        path: PNG to write.
        axis: name of the setting.
        title: heading.
        note: a line at the foot.
        default: the value of the setting to mark as the default.

    Raises:
        ValueError: a curve has another number of points.
    """
    figure = figure_of(8.3, 4.6)
    axes = figure.subplots()
    look, ends = looks(curves), dict[str, float]()
    for number, (name, curve) in enumerate(curves.items()):
        colour, shape = look[name]
        places = [value * _OFFSET ** (number - (len(curves) - 1) / 2) for value in settings]
        if not len(curve.values) == len(curve.low) == len(curve.high) == len(settings):
            raise ValueError(f"curves must have {len(settings)} points, got {len(curve.values)} in {name!r}")
        below = [max(0.0, value - low) for value, low in zip(curve.values, curve.low, strict=True)]
        above = [max(0.0, high - value) for value, high in zip(curve.values, curve.high, strict=True)]
        axes.errorbar(places, curve.values, [below, above], fmt="none", ecolor=colour, alpha=0.45, capsize=3)
        axes.plot(places, curve.values, color=colour, marker=shape, markersize=6, linewidth=1.8)
        ends[name] = curve.values[-1]
    axes.set_xscale("log")
    axes.set_xticks(list(settings), [f"{value:g}" for value in settings])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(axis, fontsize=TITLE)
    axes.set_ylabel("R@1 (%)", fontsize=TITLE)
    _label_ends(axes, ends, look)
    if default is not None:
        axes.axvline(default, color=FAINT, linewidth=1, linestyle=":", zorder=0)
        axes.annotate("default", (default, 0), (4, 4), textcoords="offset points", fontsize=TEXT, color=FAINT)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    add_title(figure, title, note)
    save_figure(figure, path)


def _label_ends(axes: Any, ends: Mapping[str, float], look: Mapping[str, Look]) -> None:
    """Write the name of every curve beside its last point, the names apart from each other."""
    apart, least = 0.07 * axes.get_ylim()[1], 0.0
    for name, y in sorted(ends.items(), key=lambda entry: entry[1]):
        least = max(y, least)
        place = axes.get_yaxis_transform()
        colour, shape = look[name]
        axes.plot([1.02], [least], transform=place, color=colour, marker=shape, markersize=7, clip_on=False)
        text = axes.text(1.04, least, plain(name, 30), transform=place, color=INK, fontsize=TITLE, va="center")
        text.set_parse_math(False)
        least += apart
