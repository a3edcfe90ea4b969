"""Evaluate binary codes of the embeddings that an evaluation has made, by both rules for ties."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from hystar_fast.retrieval.codes import CODES, ORDERS, TIES, TIES_AGAINST, fit_itq, measure_codes, sign_codes
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.embed import Embedded
from hystar_fast.retrieval.evaluate import Evaluation, KindResult, kind_result
from hystar_fast.retrieval.zero_shot import number_labels

FITS = ("train", "queries")
TRAIN, QUERIES = FITS
Quantise: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def quantiser(code: str, bits: int, *, training: Tensor | None = None, seed: int = 0) -> Quantise:
    """Return a function from the vectors of queries and gallery to their codes.

    Args:
        code: "itq" or "sign".
        bits: of a code; the width of the vectors for "sign".
        training: [n, D], the embeddings that "itq" is fitted on. None fits it on the queries and centres queries and
            gallery each by its own mean, as the code does from which published figures come: it is transductive.
        seed: of the rotation.

    Raises:
        ValueError: another code; or, when it is called, `bits` does not fit the vectors.
    """
    if code not in CODES:
        raise ValueError(f"code must be one of {CODES}, got {code!r}")

    def signs(queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        if bits != gallery.shape[1]:
            raise ValueError(f"bits must be {gallery.shape[1]}, the width of the embeddings, for signs, got {bits}")
        return sign_codes(queries), sign_codes(gallery)

    fitted = None if code == "sign" or training is None else fit_itq(training, bits, seed=seed)

    def itq(queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        if fitted is not None:
            return fitted.encode(queries), fitted.encode(gallery)
        own = fit_itq(queries, bits, seed=seed)
        return own.encode(queries), own.encode(gallery, mean=gallery.mean(0))

    return signs if code == "sign" else itq


def code_results(
    found: Evaluation, embedded: Mapping[str, Embedded], metrics: Sequence[Metric], quantise: Quantise
) -> tuple[KindResult, ...]:
    """Measure codes of every query style of an evaluation, by each rule for ties.

    Args:
        found: an evaluation of task "instance" or "category" over the whole gallery.
        embedded: style -> embeddings, as `evaluate` filled it.
        metrics: definitions.
        quantise: as `quantiser` returns it.

    Raises:
        ValueError: another task, or as `quantise`.
    """
    if found.task not in ("instance", "category"):
        raise ValueError(f"task must be 'instance' or 'category' for codes, got {found.task!r}")
    gallery = embedded[found.images.gallery_style]
    results = []
    for style in found.images.query_styles:
        queries = embedded.get(style)
        if queries is None or not queries.records:
            continue
        names = [getattr(record, found.task) for record in (*gallery.records, *queries.records)]
        labels = number_labels(names)
        items, wanted = labels[: len(gallery.records)], labels[len(gallery.records) :]
        asked, kept = quantise(queries.vectors, gallery.vectors)
        for ties in TIES:
            measured = measure_codes(asked, kept, wanted, items, metrics, ties=ties)
            rule = "ties against" if ties == TIES_AGAINST else f"mean of {ORDERS} orders"
            results.append(kind_result(f"{style}, {asked.shape[1]} bits, {rule}", measured, queries.records))
    return tuple(results)


def stack_vectors(embedded: Sequence[Embedded]) -> Tensor:
    """Return the embeddings of several parts [n, D], without the parts that have none."""
    return torch.cat([part.vectors for part in embedded if part.records])
