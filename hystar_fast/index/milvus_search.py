"""Exact search in a collection of Milvus, in the order that every engine has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hystar_fast.index.engine import EngineUnavailable
from hystar_fast.index.milvus_connection import Connection

MOST = 16_384
"""Items of one answer of Milvus."""
_QUERIES = 64  # of one call


def search_exactly(
    connection: Connection, collection: str, queries: Tensor, k: int, expression: str
) -> tuple[Tensor, list[list[str]]]:
    """Return the k best scores of each query and their keys, see `Engine.search`.

    Milvus returns any of several items with one score. One item more than asked for shows whether some were left out;
    then all of them are asked for, so that those with the first keys are taken. Only of more than 16,384 items with one
    score, which is that of the last place, may others be taken.

    Args:
        connection: to the server.
        collection: of the generation.
        queries: [N, D] over all views.
        k: items a query; less than `MOST`.
        expression: of a filter; "" for none.
    """
    answers: list[list[tuple[float, str]]] = []
    for part in queries.split(_QUERIES):
        answers += _answers(connection, collection, part, k + 1, expression)
    for place, found in enumerate(answers):
        limit = k + 1
        while len(found) == limit < MOST and found[-1][0] == found[k - 1][0]:
            limit = min(8 * limit, MOST)
            found = _answers(connection, collection, queries[place : place + 1], limit, expression)[0]
        answers[place] = sorted(found, key=lambda hit: (-hit[0], hit[1]))[:k]
    lengths = {len(found) for found in answers} or {0}
    if len(lengths) > 1:
        raise EngineUnavailable(f"{connection.uri} gave {min(lengths)} items for one query, {max(lengths)} for another")
    scores = torch.tensor([[score for score, _ in found] for found in answers], dtype=torch.float32)
    return scores.view(len(answers), *lengths).clamp_(-1, 1), [[key for _, key in found] for found in answers]


def _answers(
    connection: Connection, collection: str, queries: Tensor, limit: int, expression: str
) -> list[list[tuple[float, str]]]:
    found: Any = connection.call(
        "search",
        collection,
        data=[*queries.numpy()],
        filter=expression,
        limit=limit,
        anns_field="vectors",
        search_params={"metric_type": "IP"},
        output_fields=["key"],
        consistency_level="Strong",
    )
    return [[(float(hit["distance"]), str(hit["entity"]["key"])) for hit in hits] for hits in found]
