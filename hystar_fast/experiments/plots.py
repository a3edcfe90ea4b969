"""Plots of embeddings by style and by class, and of a recall along a setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hystar_fast.data.whole_files import write_whole
from hystar_fast.retrieval.embedding_map import principal_plane

PROJECTIONS = ("tsne", "umap", "pca")
PROJECTION_NAMES = {"tsne": "t-SNE", "umap": "UMAP", "pca": "principal plane"}
_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#5b4a9e",
    "#8a8a3c",
    "#444444",
    "#b08060",
)
_INK, _FAINT, _LINE = "#1f1f1f", "#6b6b6b", "#cccccc"
_PERPLEXITY, _NEIGHBOURS = 30.0, 15
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
    rows: Mapping[str, Mapping[str, Cloud]], path: str | Path, note: str, *, projection: str = "tsne"
) -> None:
    """Draw scatter plots: a column for each method, a row for each way to colour the same points.

    Args:
        rows: meaning of the colours -> title of the column -> points; the points of a column are the same in every row.
        path: PNG to write.
        note: a line above.
        projection: see :func:`project`.
    """
    columns = list(next(iter(rows.values())))
    figure, axes = _figure(len(rows), len(columns), (4.4 * len(columns) + 2.2, 4.2 * len(rows) + 0.5))
    points = {name: project(cloud.embeddings, projection).numpy() for name, cloud in next(iter(rows.values())).items()}
    for i, (meaning, panel) in enumerate(rows.items()):
        labels = list(dict.fromkeys(label for cloud in panel.values() for label in cloud.labels))
        colours = dict(zip(labels, _cycle(len(labels)), strict=True))
        for j, (name, cloud) in enumerate(panel.items()):
            place = axes[i][j]
            for label in labels:
                chosen = [k for k, other in enumerate(cloud.labels) if other == label]
                xy = points[name][chosen]
                place.scatter(xy[:, 0], xy[:, 1], s=12, alpha=0.75, linewidths=0, color=colours[label], label=label)
            _bare(place)
            if i == 0:
                place.set_title(name, fontsize=12, color=_INK)
        legend = axes[i][-1].legend(
            *axes[i][0].get_legend_handles_labels(),
            title=meaning,
            loc="center left",
            bbox_to_anchor=(1.02, 0.5),
            frameon=False,
            markerscale=2.5,
            fontsize=9,
            alignment="left",
        )
        legend.get_title().set_fontsize(10)
    figure.suptitle(note, fontsize=10, color=_FAINT)
    write_whole(path, lambda file: figure.savefig(file, dpi=110))


def draw_sweep(settings: Sequence[float], curves: Mapping[str, Curve], path: str | Path, axis: str, note: str) -> None:
    """Draw a recall along a setting on a logarithmic axis: a curve for each query style, with intervals.

    Args:
        settings: the values of the setting, positive.
        curves: query style -> its recall at each of them.
        path: PNG to write.
        axis: name of the setting.
        note: a line above.

    Raises:
        ValueError: a curve has another number of points.
    """
    figure, grid = _figure(1, 1, (6.4, 4.4))
    axes = grid[0][0]
    for number, (name, curve) in enumerate(curves.items()):
        colour = _cycle(len(curves))[number]
        places = [value * _OFFSET ** (number - (len(curves) - 1) / 2) for value in settings]
        if not len(curve.values) == len(curve.low) == len(curve.high) == len(settings):
            raise ValueError(f"curves must have {len(settings)} points, got {len(curve.values)} in {name!r}")
        below = [max(0.0, value - low) for value, low in zip(curve.values, curve.low, strict=True)]
        above = [max(0.0, high - value) for value, high in zip(curve.values, curve.high, strict=True)]
        axes.errorbar(places, curve.values, [below, above], fmt="none", ecolor=colour, alpha=0.45, capsize=3)
        axes.plot(places, curve.values, color=colour, marker="o", markersize=4.5, linewidth=1.8, label=name)
    axes.set_xscale("log")
    axes.set_xticks(list(settings), [f"{value:g}" for value in settings])
    axes.minorticks_off()
    axes.set_xlabel(axis)
    axes.set_ylabel("R@1 (%)")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_LINE)
    figure.legend(loc="outside lower center", ncols=len(curves), frameon=False, fontsize=9)
    figure.suptitle(note, fontsize=10, color=_FAINT)
    write_whole(path, lambda file: figure.savefig(file, dpi=120))


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color(_LINE)


def _cycle(n: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(n)]
