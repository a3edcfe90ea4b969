"""Evaluate a method on a data set: every kind of query against the gallery, under one named protocol."""

from __future__ import annotations

from collections.abc import Callable, Collection, MutableMapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hystar_fast.data.image_set import ImageSet, Record, Skipped
from hystar_fast.methods.interface import GALLERY, QUERY, Method
from hystar_fast.methods.similarity import Similarity
from hystar_fast.retrieval.batch24 import BATCH, CUTOFFS, LABEL, batch24_ranks
from hystar_fast.retrieval.definitions import Measured, Metric, measure
from hystar_fast.retrieval.embed import Embedded, embed_records, embed_texts
from hystar_fast.retrieval.joint import COMBINATIONS, joint_ranks
from hystar_fast.retrieval.metrics import Interval, bootstrap_mean
from hystar_fast.retrieval.ranks import QueryIds, Ranks
from hystar_fast.retrieval.within_category import PROTOCOL, WITHIN, measure_within
from hystar_fast.retrieval.zero_shot import class_embeddings, number_labels, numbered

TASKS = ("instance", WITHIN, "category", "classify")
PROTOCOLS = {"full": "full: ranked over the whole gallery", "batch24": LABEL}
DEFAULT_METRICS = tuple(Metric.parse(name) for name in ("R@1", "R@5"))
TEXT, JOINT = "text", "joint"
ORIGINAL = "original"
_JOINT_NAMES = {"similarity": "max", "softmax": "softmax"}


@dataclass(frozen=True)
class KindResult:
    """Results of one kind of query.

    Attributes:
        kind: the style, "text", or the style and text together; of a method that converts vectors, with how.
        n: queries with a relevant item in the gallery; means are over these.
        unanswerable: queries without one, excluded.
        values: name of the metric -> its mean with a 95 % interval; None if no query has a relevant item.
        ranks: int64 [n], the rank of the best relevant item; 0 is the first. A mean of several kinds has none.
        queries: the records of these n queries; for text, the records of the gallery, each with one caption.
        chance: mAP@all of random rankings; None if no query has a relevant item, and in batches.
    """

    kind: str
    n: int
    unanswerable: int
    values: dict[str, Interval | None]
    ranks: Tensor
    queries: tuple[Record, ...]
    chance: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Results of a method on a data set.

    Attributes:
        images: the data set.
        task: one of `TASKS`.
        protocol: the label of the protocol, to be printed with every figure.
        gallery: what the gallery holds, and how many: ("photo", 12_500), ("class names", 345); in batches: 24.
        kinds: one result for each kind of query.
        skipped: pictures that could not be read, and what the loader left out.
    """

    images: ImageSet
    task: str
    protocol: str
    gallery: tuple[str, int]
    kinds: tuple[KindResult, ...]
    skipped: tuple[Skipped, ...]

    @property
    def ranks(self) -> Ranks:
        """The ranks of every kind of query that has any, with query ids."""
        kept = [found for found in self.kinds if len(found.ranks)]
        ids = QueryIds.of(self.images, {found.kind: found.queries for found in kept})
        return Ranks(ids, {found.kind: found.ranks for found in kept})


def evaluate(
    method: Method,
    images: ImageSet,
    *,
    task: str | None = None,
    protocol: str = "full",
    metrics: Sequence[Metric] | None = None,
    kinds: Collection[str] | None = None,
    templates: Sequence[str] | None = None,
    batch_size: int = 128,
    embedded: MutableMapping[str, Embedded] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Embed a data set and measure every kind of query.

    Args:
        method: the system.
        images: the data set.
        task: "instance" (relevant: the query's own picture and its copies), "instance-in-category" (the same, ranked
            among the pictures of its category; queries are pictures), "category" (relevant: pictures of the same
            category; Table 2), or "classify" (the gallery is the names of the categories; Table 3). By default
            "instance" if the data set has instances, else "category".
        protocol: "full", or "batch24" (instances only).
        metrics: definitions, see :mod:`hystar_fast.retrieval.definitions`; by default `DEFAULT_METRICS`. "batch24" has
            its own cut-offs and takes none.
        kinds: the kinds of query: query styles, "text" (captions alone) and "joint" (captions with pictures). By
            default all that the data set and the method have. If a picture has several captions, each is a query.
        templates: sentences for class names, each with one ``{}``, for "classify"; by default the data set's.
        batch_size: images a forward pass.
        embedded: style -> embeddings, of the gallery's style as gallery pictures and of the others as queries. Styles
            in it are not embedded again; new embeddings are added to it.
        progress: called with the number of pictures after every batch.

    Raises:
        ValueError: an unknown task, protocol or kind, one that the data set or the method does not have, metrics or
            several captions a picture for "batch24", or a gallery without a readable picture.
        FloatingPointError: an embedding is not finite.
    """
    chosen = task or ("instance" if images.has_instances else "category")
    _check(chosen, protocol, metrics, kinds, images)
    metrics = DEFAULT_METRICS if metrics is None else metrics
    run = _Run(method, images, kinds, batch_size, {} if embedded is None else embedded, progress, [])
    if chosen == "classify" and not method.similarity.is_cosine:
        raise ValueError(
            f"task must be 'instance' or 'category' for {method.name!r}, whose similarity {method.similarity.name!r} "
            "compares no mean of words, got 'classify'"
        )
    if chosen == "classify":
        results, gallery = run.classify(metrics, images.templates if templates is None else templates)
    else:
        answers = run.embed(images.gallery_style)
        if not answers.records:
            raise ValueError(
                f"images must have a readable picture in gallery {images.gallery_style!r}, got none in {images.name}"
            )
        gallery = (images.gallery_style, BATCH if protocol == "batch24" else len(answers.records))
        if chosen == "category":
            results = run.categories(answers, metrics)
        elif chosen == WITHIN:
            results = run.within(answers, metrics)
        else:
            results = run.instances(answers, None if protocol == "batch24" else metrics)
    skipped = (*images.skipped, *run.skipped)
    label = PROTOCOL if chosen == WITHIN else PROTOCOLS[protocol]
    return Evaluation(images, chosen, label, gallery, tuple(results), skipped)


def _check(
    task: str, protocol: str, metrics: Sequence[Metric] | None, kinds: Collection[str] | None, images: ImageSet
) -> None:
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {(*PROTOCOLS,)}, got {protocol!r}")
    if protocol == "batch24" and task != "instance":
        raise ValueError(f"task must be 'instance' for protocol 'batch24', got {task!r}")
    if protocol == "batch24" and metrics is not None:
        given = ", ".join(map(str, metrics))
        own = " and ".join(CUTOFFS)
        raise ValueError(f"metrics must be left out with protocol 'batch24', which has its own, {own}, got {given}")
    known = (*images.query_styles, TEXT, JOINT)
    unknown = [kind for kind in kinds or () if kind not in known]
    if unknown:
        raise ValueError(f"kinds must be some of {known} of {images.name}, got {unknown[0]!r}")
    has = {"instances": images.has_instances, "categories": images.has_categories}
    needed = "instances" if task == "instance" or (task == WITHIN and has["categories"]) else "categories"
    if not has[needed]:
        other = "categories" if needed == "instances" else "instances"
        tasks = "task 'category' or 'classify'" if other == "categories" else "task 'instance'"
        there = f"{other}, for {tasks}" if has[other] else f"no {other} either"
        raise ValueError(f"images must have {needed} for task {task!r}, got {images.name}, which has {there}")


@dataclass(frozen=True)
class _Instances:
    """A gallery of instances.

    Attributes:
        gallery: its embeddings.
        position: instance -> its first position in the gallery.
        numbers: int64 [M], the same for all pictures of one instance, each of which is relevant.
    """

    gallery: Embedded
    position: dict[str, int]
    numbers: Tensor

    @classmethod
    def of(cls, gallery: Embedded) -> _Instances:
        position: dict[str, int] = {}
        for i, record in enumerate(gallery.records):
            if record.instance is not None:
                position.setdefault(record.instance, i)
        return cls(gallery, position, number_labels([record.instance for record in gallery.records]))

    def check_single(self, what: str) -> None:
        """Raise ValueError if an instance has several pictures in the gallery."""
        for i, record in enumerate(self.gallery.records):
            if record.instance is not None and self.position[record.instance] != i:
                first = self.gallery.records[self.position[record.instance]].path
                raise ValueError(
                    f"images must have one gallery picture an instance for {what}, got {first} and {record.path} of one"
                )


@dataclass(frozen=True)
class _Run:
    method: Method
    images: ImageSet
    kinds: Collection[str] | None
    batch_size: int
    embedded: MutableMapping[str, Embedded]
    progress: Callable[[int], object] | None
    skipped: list[Skipped]

    def embed(self, style: str) -> Embedded:
        if style not in self.embedded:
            records = self.images.of_style(style)
            self.embedded[style] = embed_records(
                self.method,
                self.images,
                records,
                self.skipped,
                role=GALLERY if style == self.images.gallery_style else QUERY,
                batch_size=self.batch_size,
                progress=self.progress,
            )
        return self.embedded[style]

    def wants(self, kind: str) -> bool:
        return self.kinds is None or kind in self.kinds

    def query_styles(self) -> list[str]:
        return [style for style in self.images.query_styles if self.wants(style)]

    def converted(self, style: str) -> list[tuple[str, Embedded]]:
        """Return the queries of a style under its name, or as they are and as each conversion moves them."""
        queries, target = self.embed(style), self.images.gallery_style
        ways = {n: way for n, way in self.method.conversions().items() if {style, target} <= {*way.vectors}}
        if not ways or not queries.records:
            return [(style, queries)]
        moved = {name: replace(queries, vectors=way(queries.vectors, style, target)) for name, way in ways.items()}
        return [(row_name(style, name), rows) for name, rows in ({ORIGINAL: queries} | moved).items()]

    def categories(self, gallery: Embedded, metrics: Sequence[Metric]) -> list[KindResult]:
        results = []
        for style in self.query_styles():
            for name, queries in self.converted(style):
                measured = measure_by("category", queries, gallery, metrics, self.method.similarity)
                results.append(kind_result(name, measured, queries.records))
        return results

    def within(self, gallery: Embedded, metrics: Sequence[Metric]) -> list[KindResult]:
        results = []
        for style in self.query_styles():
            for name, queries in self.converted(style):
                measured = measure_within(queries, gallery, metrics, self.method.similarity)
                results.append(replace(kind_result(name, measured, queries.records), chance=None))
        return results

    def classify(self, metrics: Sequence[Metric], templates: Sequence[str]) -> tuple[list[KindResult], tuple[str, int]]:
        names, _ = numbered([record.category for record in self.images.records if record.category is not None])
        classes = class_embeddings(self.method, names, templates).float()
        number = {name: i for i, name in enumerate(names)}
        results = []
        for style in (self.images.gallery_style, *self.query_styles()):
            found = self.embed(style)
            kept = [i for i, record in enumerate(found.records) if record.category is not None]
            if kept:
                records = tuple(found.records[i] for i in kept)
                wanted = torch.tensor([number[str(record.category)] for record in records])
                measured = measure(found.vectors[kept], classes, wanted, torch.arange(len(names)), metrics)
                results.append(kind_result(style, measured, records))
        return results, ("class names", len(names))

    def instances(self, gallery: Embedded, metrics: Sequence[Metric] | None) -> list[KindResult]:
        """Measure queries for one picture, of which the gallery may hold copies; `metrics` None means batch24."""
        answers = _Instances.of(gallery)
        if metrics is None:
            answers.check_single("protocol 'batch24'")
            self._check_one_caption()
        results = []
        for style in self.query_styles():
            queries = self.embed(style)
            for kind, moved in self.converted(style):
                results.append(self.instance_result(kind, moved, None, answers, metrics))
            words = self._texts(queries.records) if self.wants(JOINT) else None
            if words is not None:
                answers.check_single("retrieval by picture and text together")
                rows = [i for i, record in enumerate(queries.records) for _ in record.captions]
                part = Embedded(words.records, queries.vectors[rows])
                for combine in COMBINATIONS:
                    name = f"{style}+text, {_JOINT_NAMES[combine]}"
                    results.append(self.instance_result(name, part, (words.vectors, combine), answers, metrics))
        words = self._texts(gallery.records) if self.wants(TEXT) else None
        if words is not None:
            results.append(self.instance_result(TEXT, words, None, answers, metrics))
        if not results and not self.images.query_styles:
            raise ValueError(
                f"method must take text for {self.images.name}, whose queries are captions, got {self.method.name!r}"
            )
        return results

    def instance_result(
        self,
        name: str,
        queries: Embedded,
        text: tuple[Tensor, str] | None,
        answers: _Instances,
        metrics: Sequence[Metric] | None,
    ) -> KindResult:
        """Measure queries for one instance each; `text` holds embeddings of their captions and how to combine them."""
        gallery, position, similarity = answers.gallery, answers.position, self.method.similarity
        kept = [i for i, record in enumerate(queries.records) if record.instance in position]
        targets = torch.tensor([position[str(queries.records[i].instance)] for i in kept], dtype=torch.int64)
        vectors = _vectors(queries, gallery)[kept]
        words, combine = (None, "similarity") if text is None else (text[0][kept], text[1])
        missing = len(queries.records) - len(kept)
        records = tuple(queries.records[i] for i in kept)
        if metrics is None:
            ranks = batch24_ranks(vectors, gallery.vectors, targets, text=words, combine=combine, similarity=similarity)
            values = {label: bootstrap_mean((ranks < k).double()) for label, k in CUTOFFS.items()}
            return KindResult(name, len(ranks), missing, dict(values), ranks, records[: len(ranks)])
        if words is None:
            numbers = answers.numbers
            measured = measure(vectors, gallery.vectors, numbers[targets], numbers, metrics, similarity=similarity)
        else:
            ranks = joint_ranks(vectors, words, gallery.vectors, targets, combine=combine, similarity=similarity)
            ranks = ranks[:, None] + 1
            ones = torch.ones(len(ranks), dtype=torch.int64)
            values_of = {m: m.values(ranks, ones, len(gallery.records)) for m in metrics}
            measured = Measured(values_of, len(gallery.records), ranks[:, 0], ones)
        return replace(kind_result(name, measured, records), unanswerable=missing)

    def _texts(self, records: Sequence[Record]) -> Embedded | None:
        """Embed every caption, with its record that has it alone; None without captions or a text encoder."""
        single = tuple(query for record in records for query in record.with_each_caption())
        found = embed_texts(self.method, [query.captions[0] for query in single])
        return None if found is None else Embedded(single, found.float())

    def _check_one_caption(self) -> None:
        several = next((record for record in self.images.records if len(record.captions) > 1), None)
        if several is not None and (self.wants(TEXT) or self.wants(JOINT)):
            raise ValueError(
                f"images must have one caption a picture for protocol 'batch24', got {len(several.captions)} for "
                f"{several.path}"
            )


def kind_result(kind: str, measured: Measured, records: Sequence[Record]) -> KindResult:
    """Return the results of one kind of query, without the queries that have no relevant item."""
    answered = measured.first > 0
    values = {str(metric): measured.interval(metric) for metric in measured.values}
    queries = tuple(record for record, kept in zip(records, answered.tolist(), strict=True) if kept)
    ranks = measured.first[answered] - 1
    return KindResult(kind, len(queries), measured.unanswerable, values, ranks, queries, measured.chance)


def row_name(style: str, way: str) -> str:
    """Return the kind of queries of a style that are as a name of `Method.conversions` or `ORIGINAL` says."""
    return f"{style} [{way}]"


def measure_by(
    by: str, queries: Embedded, gallery: Embedded, metrics: Sequence[Metric], similarity: Similarity
) -> Measured:
    """Compute every metric of every query; relevant are the gallery's pictures with its "category" or "instance".

    Raises:
        TypeError, ValueError: as :func:`hystar_fast.retrieval.definitions.measure`.
    """
    labels, count = number_labels([getattr(r, by) for r in (*queries.records, *gallery.records)]), len(queries.records)
    sides = _vectors(queries, gallery), gallery.vectors
    return measure(*sides, labels[:count], labels[count:], metrics, similarity=similarity)


def _vectors(queries: Embedded, gallery: Embedded) -> Tensor:
    """Return the queries' vectors, with the gallery's width even if no query could be read."""
    return queries.vectors if queries.records else gallery.vectors[:0]
