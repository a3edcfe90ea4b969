"""The demo's two pictures: what a few queries found, and where the styles lie before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hystar_fast.retrieval.evaluate import Evaluation
from hystar_fast.retrieval.pictures import Answer, Question, embedding_map, retrieval_grid
from hystar_fast.retrieval.protocol import GALLERY_STYLE, QUERY_STYLES, StyledConcepts

_COLUMNS = ("frozen", "hystar")
_QUERIES_A_STYLE, _ANSWERS = 2, 5


def draw_answers(held_out: StyledConcepts, evaluations: Mapping[str, Evaluation], path: Path) -> None:
    """Two queries of every style with the first five answers of the frozen backbone and of Hystar.

    The queries are the concepts at fixed places of the held-out list, whatever came of them.
    """
    questions = []
    for column, style in enumerate(QUERY_STYLES):
        rows = evaluations["hystar"].rows[style]
        for repeat in range(_QUERIES_A_STYLE):
            place = (
                (2 * (column + len(QUERY_STYLES) * repeat) + 1)
                * len(rows)
                // (2 * _QUERIES_A_STYLE * len(QUERY_STYLES))
            )
            row = int(rows[place])
            questions.append(
                Question(
                    image=None if style == "text" else held_out.images[style][row],
                    style=style,
                    caption=held_out.concepts[row].name,
                    answers={name: _answers(held_out, evaluations[name], style, place) for name in _COLUMNS},
                )
            )
    title = f"Held-out concepts: first {_ANSWERS} of {len(held_out)}"
    note = "Queries at fixed places of the held-out list, not selected. Green: the right concept. Red: another one."
    retrieval_grid(questions, title, note).save(path)


def _answers(held_out: StyledConcepts, evaluation: Evaluation, style: str, place: int) -> list[Answer]:
    target = int(evaluation.rows[style][place])
    scores = evaluation.gallery @ evaluation.queries[style][place]
    order = scores.sort(descending=True, stable=True).indices[:_ANSWERS].tolist()
    gallery = held_out.images[GALLERY_STYLE]
    return [Answer(gallery[i], i == target, held_out.concepts[i].name) for i in order]


def draw_map(evaluations: Mapping[str, Evaluation], path: Path) -> None:
    """Where the held-out drawings lie in the frozen backbone and in Hystar, by style."""
    panels = {}
    for name in _COLUMNS:
        found = evaluations[name]
        panels[name] = {
            f"{GALLERY_STYLE} (gallery)": found.gallery,
            **{s: q for s, q in found.queries.items() if s != "text"},
        }
    embedding_map(panels, path, "Held-out drawings, first two principal components of each encoder")
