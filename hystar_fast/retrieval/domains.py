"""Retrieval between every two domains of a data set: each asks, each other one answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hystar_fast.data.image_set import ImageSet, Skipped
from hystar_fast.methods.interface import GALLERY, QUERY, Method
from hystar_fast.methods.similarity import Similarity
from hystar_fast.retrieval.definitions import Measured, Metric
from hystar_fast.retrieval.embed import Embedded, embed_records
from hystar_fast.retrieval.evaluate import measure_by
from hystar_fast.retrieval.metrics import Interval


@dataclass(frozen=True)
class DomainMatrix:
    """The metrics of every ordered pair of domains.

    Attributes:
        styles: the domains.
        measured: (asks, answers) -> the metrics of every query.
        skipped: pictures that could not be read.
    """

    styles: tuple[str, ...]
    measured: dict[tuple[str, str], Measured]
    skipped: tuple[Skipped, ...]

    def interval(self, query: str, gallery: str, metric: Metric) -> Interval | None:
        """Return the mean over the queries of a pair with its 95 % interval; None if no query has a relevant item."""
        return self.measured[query, gallery].interval(metric)

    def mean(self, query: str, gallery: str, metric: Metric) -> float | None:
        """Return the mean over the queries of a pair; None if no query has a relevant item."""
        values = self.measured[query, gallery].values[metric]
        answered = values[~values.isnan()]
        return answered.mean().item() if len(answered) else None

    def average(self, query: str, metric: Metric) -> float | None:
        """Return the plain mean of a domain's figures over the domains that answer; None where one has no figure."""
        found = [self.mean(query, other, metric) for other in self.styles if other != query]
        values = [value for value in found if value is not None]
        return sum(values) / len(values) if values and len(values) == len(found) else None


def evaluate_domains(
    method: Method,
    images: ImageSet,
    metrics: Sequence[Metric],
    *,
    styles: Sequence[str] = (),
    progress: Callable[[int], object] | None = None,
) -> DomainMatrix:
    """Rank all pictures of each domain for all pictures of each other one; relevant is the same category.

    A domain is embedded once; a method that encodes queries in a way of their own embeds it for each role.

    Args:
        method: the encoder.
        images: the data set; its gallery style is a domain as the others are.
        metrics: at least one.
        styles: the domains; by default all of the data set.
        progress: called with the number of pictures after every batch.

    Raises:
        ValueError: an unknown domain, fewer than two, or a picture without a category.
    """
    sides = embed_domains(method, images, styles=styles, progress=progress)
    return rank_domains(sides, metrics, method.similarity)


@dataclass(frozen=True)
class EmbeddedDomains:
    """The vectors of every domain, as queries and as a gallery: the same where a method encodes both alike.

    Attributes:
        name: of the data set.
        asks, answers: domain -> its vectors.
        skipped: pictures that could not be read.
    """

    name: str
    asks: dict[str, Embedded]
    answers: dict[str, Embedded]
    skipped: tuple[Skipped, ...]


def embed_domains(
    method: Method, images: ImageSet, *, styles: Sequence[str] = (), progress: Callable[[int], object] | None = None
) -> EmbeddedDomains:
    """Embed every domain once, or once for each role; arguments and errors as `evaluate_domains`."""
    chosen = tuple(styles) or images.styles
    unknown = [style for style in chosen if style not in images.styles]
    if unknown or len({*chosen}) < 2 or len({*chosen}) < len(chosen):
        raise ValueError(f"styles must be at least 2 different ones of {', '.join(images.styles)}, got {list(chosen)}")
    skipped: list[Skipped] = []

    def embed(role: str) -> dict[str, Embedded]:
        return {
            style: embed_records(
                method,
                images,
                images.of_style(style),
                skipped if role == GALLERY else [],
                role=QUERY if role == QUERY else GALLERY,
                progress=progress,
            )
            for style in chosen
        }

    answers = embed(GALLERY)
    inner = getattr(method, "method", method)
    asks = answers if type(inner).encode_query is Method.encode_query else embed(QUERY)
    return EmbeddedDomains(images.name, asks, answers, tuple(skipped))


def rank_domains(sides: EmbeddedDomains, metrics: Sequence[Metric], similarity: Similarity) -> DomainMatrix:
    """Rank the pictures of every domain for those of every other one; arguments and errors as `evaluate_domains`."""
    found = {
        (query, gallery): rank_pair(sides, query, gallery, metrics, similarity)
        for query in sides.asks
        for gallery in sides.answers
        if query != gallery
    }
    return DomainMatrix((*sides.asks,), found, sides.skipped)


def rank_pair(
    sides: EmbeddedDomains,
    query: str,
    gallery: str,
    metrics: Sequence[Metric],
    similarity: Similarity,
    by: str = "category",
) -> Measured:
    """Rank the pictures of one domain for those of another; relevant is the same category, or instance.

    Raises:
        ValueError: a picture without one.
    """
    pair = sides.asks[query], sides.answers[gallery]
    found = [getattr(record, by) for side in pair for record in side.records]
    if None in found:
        raise ValueError(f"pictures of {sides.name} must each have a {by} to compare domains, got some without")
    return measure_by(by, *pair, metrics, similarity)
