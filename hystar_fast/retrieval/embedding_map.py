"""A map of embeddings by style, in the plane of their first two principal components."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hystar_fast.retrieval.plot_style import (
    FAINT,
    INK,
    TEXT,
    TITLE,
    add_frame,
    add_legend,
    add_title,
    dot_size,
    figure_of,
    looks,
    plain,
    save_figure,
)


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
    """Draw a panel for each method in its principal plane, side by side, with a colour and a shape for each style.

    Args:
        panels: title -> style -> embeddings [n, D].
        path: PNG to write.
        note: the title.
    """
    side = 4.0 if len(panels) < 3 else 2.8
    figure = figure_of(max(5.0, side * len(panels)), side + 1.2)
    look = looks(style for panel in panels.values() for style in panel)
    for i, (title, panel) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), i)
        plane, share = principal_plane(torch.cat(list(panel.values())))
        size, start = dot_size(len(plane), side), 0
        for style, embeddings in panel.items():
            points = plane[start : start + len(embeddings)].numpy()
            start += len(embeddings)
            colour, shape = look[style]
            axes.scatter(*points.T, s=size, alpha=0.75, linewidths=0, color=colour, marker=shape)
        axes.set_title(plain(title), fontsize=TITLE, color=INK, parse_math=False)
        axes.set_xlabel(f"the plane has {100 * share:.0f} % of the variance", fontsize=TEXT, color=FAINT)
        axes.set_aspect("equal", adjustable="datalim")
        add_frame(axes)
    add_legend(figure, look, figure.get_figwidth())
    add_title(figure, note)
    save_figure(figure, path)
