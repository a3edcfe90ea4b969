"""Tables of pairs of domains: their rows on a data set, and which definition of a metric fits their frozen figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hystar_fast.data.image_set import ImageSet
from hystar_fast.experiments.published_tables import PublishedTable, published_table
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.definitions import DENOMINATORS, Metric
from hystar_fast.retrieval.domains import evaluate_domains

PAPER, NUMBER = "tki", 3
PLACES = {"PACS": "ACPS", "Office-Home": "ACPR"}  # the initials of the domains of each data set in the table
COLUMNS = {"mAP": "CLIP mAP", "Prec": "CLIP Prec"}  # of the frozen CLIP, in which nothing is trained
LARGEST = 0.5  # difference, in points, at which a definition is that of the table
MEAN_PRECISIONS = tuple(
    Metric.parse(f"mAP@{cut}{end}")
    for cut in (*(f"200:{denominator}" for denominator in DENOMINATORS["mAP"]), "all")
    for end in ("", ":interpolated")
)
PRECISIONS = tuple(Metric.parse(f"Prec@200:{denominator}") for denominator in DENOMINATORS["Prec"])


@dataclass(frozen=True)
class Fit:
    """How far a definition is from a column of a table.

    Attributes:
        framing: how pictures were made square.
        metric: the definition.
        difference: root mean square over the pairs of domains, in points.
    """

    framing: str
    metric: Metric
    difference: float


def domain_table(name: str) -> PublishedTable:
    """Return a table of pairs of domains by its name.

    Raises:
        ValueError: there is no such table.
    """
    if name != f"{PAPER}:table{NUMBER}":
        raise ValueError(f"identify must be '{PAPER}:table{NUMBER}', got {name!r}")
    return published_table(PAPER, NUMBER)


def is_domain_table(table: PublishedTable) -> bool:
    """Return whether the rows of a table are pairs of domains of one data set."""
    return (table.paper, table.number) == (PAPER, NUMBER)


def place_of(images: ImageSet) -> str:
    """Return the name in `PLACES` of the data set of the table that the domains are of, by their initials.

    Raises:
        ValueError: they are those of none.
    """
    initials = sorted(style[:1].upper() for style in images.styles)
    for name, known in PLACES.items():
        if initials == [*known]:
            return name
    raise ValueError(f"data must have the four domains of {' or of '.join(PLACES)}, got {', '.join(images.styles)}")


def rows_of(table: PublishedTable, images: ImageSet) -> dict[str, tuple[str, str | None]]:
    """Return the rows of the table on a data set: row -> (domain that asks, domain that answers, None for the mean).

    Raises:
        ValueError: as of `place_of`.
    """
    place, of = place_of(images), {style[:1].upper(): style for style in images.styles}
    found: dict[str, tuple[str, str | None]] = {}
    for row in table.rows:
        name, _, pair = row.partition(" ")
        asks, _, answers = pair.partition("→")
        if name == place:
            found[row] = (of[asks], of[answers]) if answers else (of[asks[0]], None)
    return found


def identify(
    table: PublishedTable,
    images: ImageSet,
    framings: Mapping[str, Method],
    progress: Callable[[int], object] | None = None,
) -> dict[str, list[Fit]]:
    """Return how far every definition is from the frozen figures of the table, "mAP" and "Prec", the nearest first.

    Args:
        table: of `domain_table`.
        images: one of its data sets.
        framings: framing -> the frozen CLIP with it.
        progress: called with the number of pictures after every batch.

    Raises:
        ValueError: as of `rows_of`, or a pair of domains without a shared class.
    """
    pairs = {row: (asks, answers) for row, (asks, answers) in rows_of(table, images).items() if answers is not None}
    metrics: Mapping[str, Sequence[Metric]] = {"mAP": MEAN_PRECISIONS, "Prec": PRECISIONS}
    found: dict[str, list[Fit]] = {kind: [] for kind in metrics}
    for framing, method in framings.items():
        matrix = evaluate_domains(method, images, [*MEAN_PRECISIONS, *PRECISIONS], progress=progress)
        for kind, definitions in metrics.items():
            printed = table.column(COLUMNS[kind])
            for metric in definitions:
                squares = []
                for row, (asks, answers) in pairs.items():
                    ours, paper = matrix.mean(asks, answers, metric), printed[row]
                    if ours is None or paper is None:
                        raise ValueError(f"data must have classes that {asks} and {answers} share, got none")
                    squares.append((100 * ours - paper) ** 2)
                found[kind].append(Fit(framing, metric, (sum(squares) / len(squares)) ** 0.5))
    return {kind: sorted(fits, key=lambda fit: fit.difference) for kind, fits in found.items()}


def identified(fits: Mapping[str, Sequence[Fit]]) -> tuple[Fit, Fit] | None:
    """Return the definitions of mAP and Prec, of one framing, that are the table's within `LARGEST` points; or None.

    The difference is that of both columns together.
    """
    best: tuple[float, Fit, Fit] | None = None
    for average in fits["mAP"]:
        for precision in fits["Prec"]:
            both = ((average.difference**2 + precision.difference**2) / 2) ** 0.5
            if average.framing == precision.framing and both <= LARGEST and (best is None or both < best[0]):
                best = both, average, precision
    return None if best is None else best[1:]
