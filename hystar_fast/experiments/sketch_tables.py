"""Tables of MA-SBIR on a user's own copy of the sketches: their runs, their columns and the split of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.unseen import SKETCHY_PAIRS, CategorySplit, Sizes
from hystar_fast.experiments.published_tables import PublishedTable
from hystar_fast.methods.conversion import CONVERTED
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.evaluate import ORIGINAL
from hystar_fast.retrieval.within_category import WITHIN

PAPER = "ma_sbir"
_CLIP_ALONE = tuple(f"ma_sbir.lambda_{name}=0.0" for name in ("sem", "mc", "rec", "ortho"))
_SPLITS = {"S": "sketchy21", "T": "tuberlin30-authors", "Q": "quickdraw30"}  # by the initial of their columns


@dataclass(frozen=True)
class SketchTable:
    """How a table runs.

    Attributes:
        config: the shipped settings; each row changes some.
        rows: row -> these changes, and the way in which its queries move.
        task: of the evaluation.
        columns: the end of a heading -> the definitions that it has here, the paper's first.
        published: the sizes of the data, where they are not those of the split.
    """

    config: str
    rows: Mapping[str, tuple[tuple[str, ...], str]]
    task: str
    columns: Mapping[str, tuple[Metric, ...]]
    published: Sizes | None = None


def _metrics(*names: str) -> tuple[Metric, ...]:
    return tuple(Metric.parse(name) for name in names)


_ACCURACIES = {"Acc@1": _metrics("R@1"), "Acc@5": _metrics("R@5")}
SKETCH_TABLES = {
    1: SketchTable(
        "ma-sbir-authors",
        {
            "Ours [clip]": (_CLIP_ALONE, ORIGINAL),
            "Ours [original]": ((), ORIGINAL),
            "Ours [converted]": ((), CONVERTED),
        },
        "category",
        {
            "mAP@200": _metrics("mAP@200:capped:interpolated", "mAP@200:capped"),
            "mAP@all": _metrics("mAP@all:interpolated", "mAP@all"),
            "Prec@100": _metrics("Prec@100:shortened"),
            "Prec@200": _metrics("Prec@200:shortened"),
        },
    ),
    3: SketchTable(
        "ma-sbir-fine",
        {"Ours [original]": ((), ORIGINAL), "Ours [converted]": ((), CONVERTED)},
        WITHIN,
        _ACCURACIES,
        SKETCHY_PAIRS,
    ),
    7: SketchTable(
        "ma-sbir-fine",
        {share: ((f"ma_sbir.clip_img={share}",), ORIGINAL) for share in ("1.0", "0.8", "0.5")},
        WITHIN,
        _ACCURACIES,
        SKETCHY_PAIRS,
    ),
}


def sketch_table(table: PublishedTable) -> SketchTable | None:
    """Return how a table runs on a tree of sketches and photos; None for another table."""
    return SKETCH_TABLES.get(table.number) if table.paper == PAPER else None


def split_of(table: PublishedTable, images: ImageSet) -> tuple[CategorySplit, tuple[str, ...]]:
    """Return the published split whose unseen categories a data set has, and the columns of the table on it.

    Raises:
        ValueError: it has the categories of none; the message has a missing one of each.
    """
    by_data = any(column.split()[0] in _SPLITS for column in table.columns)
    splits = _SPLITS if by_data else {"": _SPLITS["S"]}
    reasons = []
    for initial, name in splits.items():
        try:
            split = CategorySplit.of(name, images)
        except ValueError as error:
            reasons.append(f"{name}: {error}")
            continue
        return split, tuple(column for column in table.columns if not initial or column.split()[0] == initial)
    raise ValueError(f"data must have the unseen categories of {' or '.join(splits.values())}; {'; '.join(reasons)}")
