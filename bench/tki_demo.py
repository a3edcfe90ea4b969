"""Measure TKI on the styles of the embedded drawings as domains, beside wccn, mean shift, LoRA and Hystar.

    python bench/tki_demo.py                      # three seeds: docs/results/tki.json, tki.md and a picture
    python bench/tki_demo.py --seeds 1 --steps 4 --output /tmp/demo

TKI and wccn train on the names of the training concepts of seen subgroups and read no picture; the others train on
their drawings. Runs are kept in --runs; a second call makes only what is missing or changed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from unseen_demo import Demo, Figures, beside, run_command

from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import open_images
from hystar_fast.experiments.embedded_runs import chance, frozen
from hystar_fast.experiments.tki_runs import ALL_PAIRS, SOURCE, STEPS, WCCN, tki_figures, tki_parts
from hystar_fast.methods.interface import Method
from hystar_fast.methods.step_trained import StepPlan
from hystar_fast.methods.suite import create_method, tiny_config
from hystar_fast.methods.tki.tki_method import TKI
from hystar_fast.retrieval.definitions import Metric, measure
from hystar_fast.retrieval.embed import embed_records
from hystar_fast.retrieval.plot_style import COLOURS, FAINT, TEXT, figure_of, save_picture
from hystar_fast.retrieval.zero_shot import number_labels
from hystar_fast.train.name_data import NameBatches
from hystar_fast.train.settings import read_settings

_CONFIG, _PICTURE = "tki-emoji", "tki_stages.png"
_WAY = "cosine"
_STARTS = {"clip": 1e-4, "random": 0.005}  # and the learning rate of the head: of this package, and of the paper
_LOOKS = 5  # at the second stage
_MAP = Metric.parse("mAP@all")


def _measure(method: Method, images: ImageSet) -> Figures:
    return {_WAY: tki_figures(method, images)}


@dataclass
class Traces:
    """The stages of one seed: losses of the first, cosines of the words before and after, looks at the second."""

    losses: list[dict[str, float]] = field(default_factory=list)
    cosines: list[Tensor] = field(default_factory=list)
    looks: dict[str, dict[int, tuple[float, float]]] = field(default_factory=dict)


@torch.no_grad()
def _cosines(made: TKI) -> Tensor:
    vectors = made.prompts.domains(made.words.vectors)
    return vectors @ vectors.mT


def _begun(trained: TKI, rate: float, **changes: Any) -> TKI:
    """Return the method of a run as it was before its first step."""
    names = tuple(str(trained.settings["names"]).split("\n"))
    made = create_method("tki", tiny_config(), seed=0, settings={**trained.own.to_dict(), **changes})
    assert isinstance(made, TKI)
    unseen = open_images(SOURCE).unseen_categories
    made.begin(StepPlan(len(names), rate, names=names, unseen=unseen))
    return made


def trace(trained: TKI, images: ImageSet) -> Traces:
    """Make the stages again, the second from either start, and look at the text criterion and at pictures.

    Args:
        trained: a run of seed 0.
        images: where the styles ask for the drawings of the gallery.
    """
    found, own = Traces(), trained.own
    made = _begun(trained, _STARTS["clip"])
    batches = NameBatches(tuple(str(trained.settings["names"]).split("\n")), _batch_size(), 0)
    found.cosines.append(_cosines(made))
    for step in range(own.steps_expansion):
        found.losses.append(made.step(batches.load(step), step // batches.batches_per_epoch, step))
    found.cosines.append(_cosines(made))
    pictures, batch = _Pictures(images), batches.load(0)
    for start, rate in _STARTS.items():
        second = _begun(trained, rate, start=start, steps_expansion=0)
        second.words.load_state_dict(made.words.state_dict())
        looks = found.looks[start] = {}
        every = max(1, own.steps_aggregation // _LOOKS)
        for step in range(own.steps_aggregation + 1):
            if step % every == 0 or step == own.steps_aggregation:
                looks[step] = second.own_score()[0], pictures.mean_precision(second)
            if step < own.steps_aggregation:
                second.step(batch, 0, step)
    return found


def _batch_size() -> int:
    return read_settings(_CONFIG, []).optim.batch_size


class _Pictures:
    """Vectors of the frozen backbone, through which every head is measured without embedding a picture again."""

    def __init__(self, images: ImageSet) -> None:
        base = frozen()
        self.gallery = embed_records(base, images, images.gallery, [])
        styles = images.headline_styles or images.query_styles
        self.queries = [embed_records(base, images, images.of_style(style), []) for style in styles]

    @torch.no_grad()
    def mean_precision(self, made: TKI) -> float:
        values = []
        for queries in self.queries:
            records = (*queries.records, *self.gallery.records)
            labels = number_labels([record.category for record in records])
            sides = (made.head(one.vectors.float()) for one in (queries, self.gallery))
            count = len(queries.records)
            values.append(measure(*sides, labels[:count], labels[count:], [_MAP]).values[_MAP])
        return torch.cat(values).nanmean().item()


def _draw(method: Method, parts: Mapping[str, ImageSet], output: Path) -> None:
    assert isinstance(method, TKI)
    draw(trace(method, parts["test"]), output / _PICTURE)


def draw(traces: Traces, path: Path) -> None:
    """Draw the cosines of the words, the losses of the first stage, and criterion and retrieval along the second."""
    figure = figure_of(8.3, 5.4)
    panels: Iterator[Any] = iter(figure.subplots(2, 3).flat)
    for cosines, title in zip(traces.cosines, ("styles before stage 1", "styles after stage 1"), strict=True):
        axes = next(panels)
        shown = axes.imshow(cosines.numpy(), vmin=0, vmax=1, cmap="Greys")
        mean = (cosines.sum() - cosines.trace()) / (cosines.numel() - len(cosines))
        axes.set(title=f"{title}\nmean cosine {mean:.2f}", xticks=[], yticks=[])
        figure.colorbar(shown, ax=axes, shrink=0.7, ticks=[0, 0.5, 1])
    axes = next(panels)
    for name, label, colour in (("category", "L_min", COLOURS[0]), ("diversity", "L_max", COLOURS[5])):
        axes.plot(range(1, len(traces.losses) + 1), [line[name] for line in traces.losses], color=colour, label=label)
    axes.set(title="losses of stage 1", xlabel="step")
    axes.legend(frameon=False)
    for place, title in ((0, "text criterion, %"), (1, "mAP@all of drawings, %")):
        axes = next(panels)
        for (start, looks), colour in zip(traces.looks.items(), (COLOURS[0], COLOURS[5]), strict=True):
            values = [100 * look[place] for look in looks.values()]
            axes.plot([*looks], values, color=colour, marker="o", markersize=3, label=f"start = {start}")
        if place:
            axes.axhline(100 * traces.looks["clip"][0][1], color=FAINT, linestyle=":", label="frozen CLIP")
        axes.set(title=title, xlabel="step of stage 2")
    last = next(panels)
    last.set_axis_off()
    last.legend(*axes.get_legend_handles_labels(), loc="center left", frameon=False)
    for axes in figure.axes:
        axes.title.set_fontsize(TEXT)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    save_picture(Image.open(drawn).convert("RGB"), path, 64)


_EMOJI = ("data.validation=none", "run.validate_every=0")

TKI_DEMO = Demo(
    name="tki",
    introduction=(
        "# TKI on the embedded drawings",
        "",
        "The styles of the drawings are domains. Outlines, sketches and thumbnails ask for the drawings of the gallery",
        "(`mAP@all` of the subgroup, `R@1` of the own concept), and every style asks every other one. TKI and wccn",
        "train on the 866 names of the training concepts of seen subgroups and read no picture; mean shift, LoRA and",
        "Hystar train on drawings in these styles. `start=random` at 0.005 is the head of the paper, `wccn` the closed",
        "form.",
    ),
    ending=(
        f"![Stages]({_PICTURE})",
        "",
        "One seed. Above, cosines of the styles' prompts, and the losses of stage 1. Below, stage 2 from either start:",
        "the criterion on texts of held-out styles, and retrieval of the test drawings, which chooses nothing.",
    ),
    configs={
        "tki": (_CONFIG, ()),
        "mean_shift": ("emoji", (*_EMOJI, "model.method=mean_shift")),
        **beside(),
    },
    parts=tki_parts,
    chance=chance,
    measure=_measure,
    figures=("mAP@all", "R@1", ALL_PAIRS),
    usual=_WAY,
    own=_WAY,
    other_ways=(),
    draw=_draw,
    variants={
        **WCCN,
        "tki geometry=euclidean": ("tki.geometry=euclidean",),
        "tki start=random": ("tki.start=random", "optim.learning_rate=0.005"),
    },
    steps={
        **dict.fromkeys(("tki", "tki geometry=euclidean", "tki start=random"), STEPS),
        "wccn": STEPS[:1],
        "mean_shift": (),
    },
)

if __name__ == "__main__":
    run_command(TKI_DEMO)
