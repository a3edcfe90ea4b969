"""Measure ACNet on the embedded drawings beside the frozen backbone, LoRA and Hystar.

    python bench/acnet_demo.py                     # three seeds: docs/results/acnet.json, acnet.md, acnet_answers.png
    python bench/acnet_demo.py --seeds 1 --steps 4 --output /tmp/demo

Every method trains on the black and white drawings and the pictures of the training concepts of seen subgroups.
Drawings of unseen subgroups then search pictures. Runs are kept in --runs; a second call makes only what is missing or
changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from unseen_demo import Demo, Figures, beside, run_command

from hystar_fast.data.image_set import ImageSet, read_images
from hystar_fast.experiments.acnet_runs import STYLE, acnet_figures, acnet_parts
from hystar_fast.experiments.embedded_runs import chance, frozen
from hystar_fast.methods.acnet.acnet_method import ACNet
from hystar_fast.methods.acnet.extractor import HALF
from hystar_fast.methods.interface import GALLERY, QUERY, Method
from hystar_fast.retrieval.answer_grid import Answer, answer_grid
from hystar_fast.retrieval.answers import first_answers, pick_queries, question_of
from hystar_fast.retrieval.embed import embed_records
from hystar_fast.retrieval.plot_style import save_picture

_DRAWING, _GENERATED = "the drawing", "G(drawing)"
_OTHER = "outline"
_ANSWERS, _QUERIES = 5, 6
_PICTURES, _WIDTH = "acnet_answers.png", 920


def _measure(method: Method, images: ImageSet) -> Figures:
    found = {_DRAWING: acnet_figures(method, images, role=GALLERY)}
    return found | {_GENERATED: acnet_figures(method, images, role=QUERY)} if isinstance(method, ACNet) else found


def _parts() -> dict[str, ImageSet]:
    """Return the data sets; in the last one the queries are drawings of another style, on which nothing was trained."""
    parts = acnet_parts()
    whole = parts["unseen-all"]
    kept = [record for record in whole.records if record.style in (whole.gallery_style, _OTHER)]
    records = tuple(replace(record, style=STYLE) if record.style == _OTHER else record for record in kept)
    return parts | {f"unseen-all, by {_OTHER}": replace(whole, records=records)}


def _chance(images: ImageSet) -> float:
    return chance(images, images.of_style(STYLE))


@torch.no_grad()
def _draw_answers(method: Method, parts: Mapping[str, ImageSet], output: Path) -> None:
    """Draw drawings at fixed places, what G makes of them, and the first answers with and without training."""
    assert isinstance(method, ACNet)
    images = parts["unseen-all"]
    queries = pick_queries(images, [STYLE], _QUERIES, turns=_QUERIES)
    ((_, pixels),) = read_images(images, queries, method.resize, [])
    made = (method.generate(HALF(pixels)) + 1) / 2
    answers: list[dict[str, list[Answer]]] = [{"G": [Answer(picture)]} for picture in made.clamp(0, 1)]
    for name, searcher in (("ACNet", method), ("the frozen backbone", frozen())):
        gallery = embed_records(searcher, images, images.gallery, [])
        vectors = embed_records(searcher, images, queries, [], role=QUERY).vectors
        for query, vector, found in zip(queries, vectors, answers, strict=True):
            found[name] = first_answers(gallery, images, query, vector, _ANSWERS, by_category=True)
    questions = [question_of(images, query, found) for query, found in zip(queries, answers, strict=True)]
    size = len(images.gallery)
    note = f"First {_ANSWERS} of {size} pictures of unseen subgroups; queries at fixed places, not chosen."
    grid = answer_grid(questions, "ACNet on the embedded drawings", note)
    small = grid.resize((_WIDTH, round(grid.height * _WIDTH / grid.width)), Image.Resampling.LANCZOS)
    save_picture(small, output / _PICTURES, 48)


ACNET_DEMO = Demo(
    name="acnet",
    introduction=(
        "# ACNet on the embedded drawings",
        "",
        "Black and white drawings find the pictures of their subgroup, among concepts of unseen subgroups. `mAP@all`",
        "and `Prec@5:gallery` of the subgroup, `R@1` of the own concept. All train on the 866 training concepts of",
        "seen subgroups. In `generalised` the gallery holds the seen subgroups of the test split too. `synthesis=none`",
        "has no generator, so its two rows are equal; `gamma_identity=0` has no identity loss.",
    ),
    ending=(f"![Answers]({_PICTURES})",),
    configs={
        "acnet": ("acnet-emoji", ()),
        **beside(f'data.styles=["{STYLE}"]'),
    },
    parts=_parts,
    chance=_chance,
    measure=_measure,
    figures=("mAP@all", "mAP@all:interpolated", "Prec@5:gallery", "R@1"),
    usual=_DRAWING,
    own=_GENERATED,
    other_ways=(_DRAWING,),
    draw=_draw_answers,
    variants={f"acnet {change}": (f"acnet.{change}",) for change in ("synthesis=none", "gamma_identity=0")},
)

if __name__ == "__main__":
    run_command(ACNET_DEMO)
