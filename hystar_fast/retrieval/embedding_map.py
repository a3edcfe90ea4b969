"""A map of embeddings by style, in the plane of their first two principal components."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hystar_fast.data.whole_files import write_whole


def principal_plane(embeddings: Tensor) -> tuple[Tensor, float]:
    """Project [n, D] onto its first two principal components; return [n, 2] and their share of the variance.

    Raises:
        ValueError: fewer than two points, or D below 2.
    """
    if embeddings.ndim != 2 or min(embeddings.shape) < 2:
        raise ValueError(f"embeddings must be [n, D] with n and D at least 2, got {tuple(embeddings.shape)}")
    centred = embeddings.double() - embeddings.double().mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    share = float(s[:2].square().sum() / s.square().sum().clamp_min(torch.finfo(torch.float64).tiny))
    return (u[:, :2] * s[:2]).float(), share


def embedding_map(panels: Mapping[str, Mapping[str, Tensor]], path: str | Path, note: str = "") -> None:
    """Draw scatter plots side by side, a panel for each method, a colour for each style, in each one's principal plane.

    Args:
        panels: title -> style -> embeddings [n, D].
        path: PNG to write.
        note: a line below the panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    styles = list(dict.fromkeys(style for panel in panels.values() for style in panel))
    colours = dict(zip(styles, ("#444444", "#e66101", "#1b9e77", "#7570b3", "#d01c8b", "#2b83ba"), strict=False))
    for i, (title, panel) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), i)
        plane, share = principal_plane(torch.cat(list(panel.values())))
        start = 0
        for style, embeddings in panel.items():
            points = plane[start : start + len(embeddings)].numpy()
            start += len(embeddings)
            axes.scatter(points[:, 0], points[:, 1], s=9, alpha=0.65, linewidths=0, color=colours[style], label=style)
        axes.set_title(f"{title}\n{100 * share:.0f} % of the variance", fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        for side in axes.spines.values():
            side.set_color("#cccccc")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, markerscale=2.5)
    if note:
        figure.suptitle(note, fontsize=10, color="#6b6b6b")
    write_whole(path, lambda file: figure.savefig(file, dpi=120))
