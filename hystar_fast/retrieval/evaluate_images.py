"""Evaluation of a method on any data set: every query style against the gallery, under one named protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hystar_fast.data.records import ImageSet, Record, Skipped
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.batch24 import BATCH, CUTOFFS, LABEL, batch24_ranks
from hystar_fast.retrieval.definitions import Measured, Metric, measure
from hystar_fast.retrieval.embed import embed_texts
from hystar_fast.retrieval.embedded import Embedded, embed_records
from hystar_fast.retrieval.joint import COMBINATIONS, joint_ranks
from hystar_fast.retrieval.metrics import Interval, bootstrap_mean
from hystar_fast.retrieval.zero_shot import TEMPLATES, class_embeddings, numbered

TASKS = ("instance", "category", "classify")
PROTOCOLS = {"full": "full: ranked over the whole gallery", "batch24": LABEL}
DEFAULT_METRICS = tuple(Metric.parse(name) for name in ("R@1", "R@5"))
_JOINT = {"similarity": "max", "softmax": "softmax"}


@dataclass(frozen=True)
class Row:
    """What one kind of query got.

    Attributes:
        queries: the style, "text", or what asked together.
        n: queries with an answer in the gallery; the means are over these.
        unanswerable: queries without one, left out.
        values: name of the metric -> its mean with a 95 % interval; None if no query has an answer.
        ranks: int64 [n], the rank of the best right answer, 0 being the first.
        asked: the records of these n queries; of words, those whose captions they are.
    """

    queries: str
    n: int
    unanswerable: int
    values: dict[str, Interval | None]
    ranks: Tensor
    asked: tuple[Record, ...]


@dataclass(frozen=True)
class Report:
    """What a method did on a data set.

    Attributes:
        data: the name of the data set.
        task: one of `TASKS`.
        protocol: the label of the protocol, to be printed with every figure.
        answers: what the gallery holds, and how much: ("photo", 12_500), ("class names", 345); a batch: 24.
        rows: one a kind of query.
        pictures: how many pictures were to be read.
        skipped: those that could not be, and what the loader left out.
    """

    data: str
    task: str
    protocol: str
    answers: tuple[str, int]
    rows: tuple[Row, ...]
    pictures: int
    skipped: tuple[Skipped, ...]


def evaluate_images(
    method: Method,
    images: ImageSet,
    *,
    task: str | None = None,
    protocol: str = "full",
    metrics: Sequence[Metric] | None = None,
    templates: Sequence[str] = TEMPLATES,
    batch_size: int = 128,
    progress: Callable[[int], object] | None = None,
) -> Report:
    """Embed a data set and measure every query style; captions ask too where the method takes text.

    Args:
        method: the system.
        images: the data set.
        task: "instance" (the query's own picture is right, and so is a copy of it), "category" (Table 2), or
            "classify" (class names are the gallery, Table 3); by default "instance" where the data set has any, else
            "category".
        protocol: "full", or "batch24" (instances only).
        metrics: definitions, see :mod:`hystar_fast.retrieval.definitions`; by default `DEFAULT_METRICS`. "batch24" has
            cut-offs of its own and takes none.
        templates: of the names of classes, each with one ``{}``; for "classify".
        batch_size: images a forward pass.
        progress: called with the number of pictures done after every batch.

    Raises:
        ValueError: an unknown task or protocol, one the data set or the method has nothing for, metrics for "batch24",
            or no readable gallery.
    """
    chosen = task or ("instance" if any(record.instance for record in images.records) else "category")
    if chosen not in TASKS or protocol not in PROTOCOLS:
        raise ValueError(
            f"task must be one of {TASKS} and protocol one of {(*PROTOCOLS,)}, got {chosen!r}, {protocol!r}"
        )
    if protocol == "batch24" and chosen != "instance":
        raise ValueError(f"protocol 'batch24' is defined for task 'instance' alone, got task {chosen!r}")
    if protocol == "batch24" and metrics is not None:
        raise ValueError(
            f"metrics cannot be chosen with protocol 'batch24', which has its own, {' and '.join(CUTOFFS)}; got "
            f"{', '.join(map(str, metrics))}"
        )
    _check_task(chosen, images)
    metrics = DEFAULT_METRICS if metrics is None else metrics
    run = _Run(method, images, batch_size, progress, [])
    if chosen == "classify":
        rows, answers = run.classify(metrics, templates)
    else:
        gallery = run.embed(images.of_style(images.gallery_style))
        if not gallery.records:
            raise ValueError(f"the gallery {images.gallery_style!r} of {images.name} has no picture that can be read")
        answers = (images.gallery_style, BATCH if protocol == "batch24" else len(gallery.records))
        if chosen == "category":
            rows = run.categories(gallery, metrics)
        else:
            rows = run.instances(gallery, None if protocol == "batch24" else metrics)
    skipped = (*images.skipped, *run.skipped)
    return Report(images.name, chosen, PROTOCOLS[protocol], answers, tuple(rows), len(images.records), skipped)


def _check_task(task: str, images: ImageSet) -> None:
    """ValueError if nothing could be right: the data set does not say what the task asks for."""
    has = {
        "instances": any(record.instance is not None for record in images.records),
        "categories": any(record.category is not None for record in images.records),
    }
    needed = "instances" if task == "instance" else "categories"
    if has[needed]:
        return
    fitting = {"instances": "task 'instance'", "categories": "task 'category' or 'classify'"}
    other = next(what for what in has if what != needed)
    there = f"{other}, for {fitting[other]}" if has[other] else f"no {other} either"
    raise ValueError(f"task {task!r} needs {needed}, and {images.name} has none; it has {there}")


@dataclass(frozen=True)
class _Instances:
    """A gallery in which instances are looked for.

    Attributes:
        gallery: what answers.
        place: instance -> its first entry of the gallery.
        numbers: int64 [M], the same for all entries of one instance: each of them is right.
    """

    gallery: Embedded
    place: dict[str, int]
    numbers: Tensor

    @classmethod
    def of(cls, gallery: Embedded) -> _Instances:
        place: dict[str, int] = {}
        for i, record in enumerate(gallery.records):
            if record.instance is not None:
                place.setdefault(record.instance, i)
        return cls(gallery, place, _numbers([record.instance for record in gallery.records]))

    def check_single(self, what: str) -> None:
        """ValueError if an instance has several entries."""
        for i, record in enumerate(self.gallery.records):
            if record.instance is not None and self.place[record.instance] != i:
                first = self.gallery.records[self.place[record.instance]].path
                raise ValueError(
                    f"{what} needs one picture an instance in the gallery, but {first} and {record.path} are one"
                )


@dataclass(frozen=True)
class _Run:
    method: Method
    images: ImageSet
    batch_size: int
    progress: Callable[[int], object] | None
    skipped: list[Skipped]

    def embed(self, records: Sequence[Record]) -> Embedded:
        return embed_records(
            self.method, self.images, records, self.skipped, batch_size=self.batch_size, progress=self.progress
        )

    def queries(self) -> list[tuple[str, Embedded]]:
        asking = [style for style in self.images.styles if style != self.images.gallery_style]
        return [(style, self.embed(self.images.of_style(style))) for style in asking]

    def categories(self, gallery: Embedded, metrics: Sequence[Metric]) -> list[Row]:
        rows = []
        for style, asked in self.queries():
            numbers = _numbers([record.category for record in (*gallery.records, *asked.records)])
            right, wanted = numbers[: len(gallery.records)], numbers[len(gallery.records) :]
            measured = measure(_like(asked, gallery), gallery.vectors, wanted, right, metrics)
            rows.append(_row(style, measured, asked.records))
        return rows

    def classify(self, metrics: Sequence[Metric], templates: Sequence[str]) -> tuple[list[Row], tuple[str, int]]:
        names, _ = numbered([record.category for record in self.images.records if record.category is not None])
        classes = class_embeddings(self.method, names, templates).float()
        number = {name: i for i, name in enumerate(names)}
        rows = []
        for style in self.images.styles:
            asked = self.embed([record for record in self.images.of_style(style) if record.category is not None])
            if asked.records:
                wanted = torch.tensor([number[str(record.category)] for record in asked.records])
                measured = measure(asked.vectors, classes, wanted, torch.arange(len(names)), metrics)
                rows.append(_row(style, measured, asked.records))
        return rows, ("class names", len(names))

    def instances(self, gallery: Embedded, metrics: Sequence[Metric] | None) -> list[Row]:
        """Queries for one picture, of which the gallery may hold copies; `metrics` None means the batch24 protocol."""
        answering = _Instances.of(gallery)
        if metrics is None:
            answering.check_single("protocol 'batch24'")
        rows = []
        for style, asked in self.queries():
            rows.append(_answers(style, asked, None, answering, metrics))
            captioned = [i for i, record in enumerate(asked.records) if record.caption]
            words = self._texts([asked.records[i] for i in captioned])
            if words is not None:
                answering.check_single("retrieval by picture and text together")
                part = Embedded(tuple(asked.records[i] for i in captioned), asked.vectors[captioned])
                for combine in COMBINATIONS:
                    name = f"{style}+text, {_JOINT[combine]}"
                    rows.append(_answers(name, part, (words.vectors, combine), answering, metrics))
        words = self._texts([record for record in gallery.records if record.caption])
        if words is not None:
            rows.append(_answers("text", words, None, answering, metrics))
        return rows

    def _texts(self, records: Sequence[Record]) -> Embedded | None:
        found = embed_texts(self.method, [str(record.caption) for record in records])
        return None if found is None else Embedded(tuple(records), found.float())


def _answers(
    name: str,
    asked: Embedded,
    text: tuple[Tensor, str] | None,
    answering: _Instances,
    metrics: Sequence[Metric] | None,
) -> Row:
    """The row of queries for one instance each: `text` asks with them, by the rule it is paired with."""
    gallery, place = answering.gallery, answering.place
    answered = [i for i, record in enumerate(asked.records) if record.instance in place]
    targets = torch.tensor([place[str(asked.records[i].instance)] for i in answered], dtype=torch.int64)
    queries = _like(asked, gallery)[answered]
    words, combine = (None, "similarity") if text is None else (text[0][answered], text[1])
    missing = len(asked.records) - len(answered)
    records = tuple(asked.records[i] for i in answered)
    if metrics is None:
        ranks = batch24_ranks(queries, gallery.vectors, targets, text=words, combine=combine)
        values = {label: bootstrap_mean((ranks < k).double()) for label, k in CUTOFFS.items()}
        return Row(name, len(ranks), missing, dict(values), ranks, records[: len(ranks)])
    if words is None:
        numbers = answering.numbers
        measured = measure(queries, gallery.vectors, numbers[targets], numbers, metrics)
    else:
        ranks = joint_ranks(queries, words, gallery.vectors, targets, combine=combine)[:, None] + 1
        ones = torch.ones(len(ranks), dtype=torch.int64)
        values_of = {m: m.values(ranks, ones, len(gallery.records)) for m in metrics}
        measured = Measured(values_of, len(gallery.records), ranks[:, 0])
    return replace(_row(name, measured, records), unanswerable=missing)


def _row(name: str, measured: Measured, records: Sequence[Record]) -> Row:
    answered = measured.first > 0
    values = {str(m): measured.interval(m) for m in measured.values}
    asked = tuple(record for record, kept in zip(records, answered.tolist(), strict=True) if kept)
    return Row(name, len(asked), measured.unanswerable, values, measured.first[answered] - 1, asked)


def _like(asked: Embedded, gallery: Embedded) -> Tensor:
    """The queries' vectors, of the gallery's width even where no query could be read."""
    return asked.vectors if asked.records else gallery.vectors[:0]


def _numbers(categories: Sequence[str | None]) -> Tensor:
    """The number of each category; what has none is a category of its own and matches nothing."""
    return numbered([f"{i}\0" if name is None else f"={name}" for i, name in enumerate(categories)])[1]
