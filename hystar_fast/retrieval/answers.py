"""The first answers to single queries, as pictures to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from hystar_fast.data.image_set import ImageSet, Record, Skipped
from hystar_fast.data.images import thumbnail
from hystar_fast.methods.interface import QUERY, Method
from hystar_fast.methods.similarity import COSINE, Similarity
from hystar_fast.retrieval.answer_grid import Answer, Question
from hystar_fast.retrieval.embed import Embedded, embed_records, embed_texts

TEXT = "text"
SIDE = 72  # pixels of a thumbnail


def pick_queries(images: ImageSet, styles: Sequence[str], total: int, *, turns: int) -> list[Record]:
    """Pick `turns` queries of each style at fixed places of the data set, whatever their answers.

    A record of style "text" is a gallery record whose caption is the query.

    Args:
        images: the data set.
        styles: query styles.
        total: the places are odd multiples of 1 / (2 total) of each style's records.
        turns: queries a style.
    """
    picked = []
    for column, style in enumerate(styles):
        if style == TEXT:
            records = [replace(record, style=TEXT) for record in images.gallery if record.caption is not None]
        else:
            records = list(images.of_style(style))
        for turn in range(turns):
            picked.append(records[(2 * (column + len(styles) * turn) + 1) * len(records) // (2 * total)])
    return picked


def query_vector(method: Method, images: ImageSet, query: Record) -> Tensor:
    """Embed one query [D]; one of style "text" by its caption.

    Raises:
        ValueError: the picture cannot be read, or the method has no text encoder.
    """
    if query.style == TEXT:
        words = embed_texts(method, [str(query.caption)])
        if words is None:
            raise ValueError(f"method must have a text encoder for a query of words, got {method.name!r}")
        return words[0].float()
    skipped: list[Skipped] = []
    found = embed_records(method, images, [query], skipped, role=QUERY)
    if skipped:
        raise ValueError(f"{query.path} cannot be shown: {skipped[0].reason}")
    return found.vectors[0]


def first_answers(
    gallery: Embedded,
    images: ImageSet,
    query: Record,
    vector: Tensor,
    count: int,
    *,
    by_category: bool = False,
    similarity: Similarity = COSINE,
) -> list[Answer]:
    """Return the first answers to a query.

    Args:
        gallery: the embedded gallery.
        images: its data set.
        query: the record of the query.
        vector: its embedding [D].
        count: how many answers.
        similarity: of the method that embedded both.
        by_category: mark answers of the query's category that are not its instance.
    """
    order = _scores(gallery.vectors, vector, similarity).sort(descending=True, stable=True).indices[:count].tolist()
    answers = []
    for i in order:
        found = gallery.records[i]
        same_category = found.category is not None and found.category == query.category
        relevant = found.instance == query.instance if query.instance is not None else same_category
        picture = thumbnail(images.read(found), SIDE)
        answers.append(Answer(picture, relevant, caption_of(found), by_category and same_category))
    return answers


def _scores(gallery: Tensor, vector: Tensor, similarity: Similarity) -> Tensor:
    if similarity.is_cosine:
        return gallery @ vector
    return similarity.scores(similarity.prepare(vector[None]), similarity.prepare(gallery))[0]


def question_of(images: ImageSet, query: Record, answers: Mapping[str, Sequence[Answer]]) -> Question:
    """Return a row of a picture of answers: the query, and the answers of each method."""
    picture = None if query.style == TEXT else thumbnail(images.read(query), SIDE)
    return Question(picture, query.style, caption_of(query), answers)


def caption_of(record: Record) -> str:
    """Return the caption, the category or the file name of a record."""
    return record.caption or record.category or Path(record.path).stem
