"""Draw the validation accuracy of a pretraining run over its views.

python bench/pretrain_curve.py        # docs/results/pretrain.json -> pretraining.png beside it
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hystar_fast.retrieval.plot_style import FAINT, LINE, add_title, figure_of, save_figure
from hystar_fast.retrieval.results_json import read_json

_DECAY = 0.25  # of the steps, at their end
_SHOWN = {"outline": "#0072b2", "sketch": "#e69f00", "lowres": "#009e73", "twemoji": "#cc79a7"}
_PLACEMENTS = {"registered": "-", "displaced": ":"}


def main(
    results: Annotated[Path, typer.Argument(help="pretrain.json of a finished run.")] = Path(
        "docs/results/pretrain.json"
    ),
) -> None:
    found = read_json(results)
    figure = draw(found["curve"], (1 - _DECAY) * 2 * found["batch"] * found["steps"] / 1e6)
    save_figure(figure, results.with_name("pretraining.png"))


def draw(curve: list[dict[str, Any]], decay: float) -> Any:
    """Return the figure of R@1 in per cent over millions of views; `decay`: where the rate begins to fall."""
    figure = figure_of(8.3, 3.6)
    axes = figure.subplots()
    views = [row["views"] / 1e6 for row in curve]
    axes.axvspan(decay, max(views), color="#f0f0f0", lw=0)
    axes.annotate("rate decays", (decay, 2), xytext=(4, 0), textcoords="offset points", color=FAINT)
    for style, colour in _SHOWN.items():
        for placement, line in _PLACEMENTS.items():
            label = f"{style}, {placement}"
            axes.plot(views, [row[placement][style] for row in curve], line, color=colour, label=label, lw=1.6)
    axes.set(xlabel="million views", ylabel="R@1, per cent", xlim=(0, max(views)), ylim=(0, 100))
    axes.grid(color=LINE, lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    add_title(figure, "Frozen retrieval of 165 validation concepts while pretraining")
    return figure


if __name__ == "__main__":
    typer.run(main)
