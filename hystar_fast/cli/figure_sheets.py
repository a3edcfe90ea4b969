"""``hystar-fast figure 8 9 10 11``: the first answers to queries at fixed places, framed right or wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from hystar_fast.cli.compare import CompareSettings
from hystar_fast.data.open import open_emoji, open_images
from hystar_fast.data.records import ImageSet, Record, Skipped
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.embed import embed_texts, thumbnail
from hystar_fast.retrieval.embedded import embed_records
from hystar_fast.retrieval.pictures import ALIKE, RIGHT, WRONG, Answer, Question, retrieval_sheet

TEXT = "text"
_ANSWERS, _QUESTIONS = 10, 6  # of a sheet: the paper's top 10, and as many questions as stay legible
_STYLES = 3  # of data that has none of the paper's
_SIDE = 72


@dataclass(frozen=True)
class Sheet:
    """What one of the paper's sheets asks.

    Attributes:
        styles: of the queries, by the names that DSR and DomainNet give them.
        on_emoji: what stands for them among the embedded drawings.
        categories: whether the paper's right answers are a category (DomainNet), so that another picture of the right
            one's category has a frame of its own; else they are one picture (DSR).
    """

    styles: tuple[str, ...]
    on_emoji: tuple[str, ...]
    categories: bool


SHEETS = {
    8: Sheet(("art", "sketch", "mosaic", TEXT), ("sketch", "lowres", TEXT), categories=False),
    9: Sheet(("clipart", "sketch"), ("twemoji", "sketch"), categories=True),
    10: Sheet(("painting", "quickdraw"), ("photo3d", "outline"), categories=True),
    11: Sheet(("infograph",), ("flat",), categories=True),
}


def draw_sheet(number: int, methods: Mapping[str, Method], settings: CompareSettings, path: Path) -> None:
    """Draw one of `SHEETS`: of data that has none of the paper's styles, the first of its own.

    Raises:
        ValueError: a query or the gallery cannot be read, or a method takes no text.
    """
    sheet = SHEETS[number]
    images, styles = _asked_of(sheet, settings)
    asked = [
        record for column, style in enumerate(styles) for record in _at_fixed_places(images, style, column, len(styles))
    ]
    found = {name: first_answers(method, images, asked, sheet.categories) for name, method in methods.items()}
    questions = [
        Question(
            image=None if record.style == TEXT else thumbnail(images.read(record), _SIDE),
            style=record.style,
            caption=_called(record),
            answers={name: answers[i] for name, answers in found.items()},
        )
        for i, record in enumerate(asked)
    ]
    emoji = images.name == "emoji"
    gallery = len(images.of_style(images.gallery_style))
    notes = [f"Queries at fixed places of the held-out list, not selected; training of seed {settings.seeds[0]}."]
    trained_on = (*settings.source.parts().styles, TEXT)
    unseen = [style for style in styles if style not in trained_on]
    if unseen:
        notes.append(f"No method was trained on queries of {' and '.join(unseen)}.")
    title = f"Figure {number} with {'the embedded drawings' if emoji else images.name}: "
    title += f"first {min(_ANSWERS, gallery)} of {gallery}"
    retrieval_sheet(questions, title, notes, _legend(images, sheet)).save(path, optimize=True)


def first_answers(method: Method, images: ImageSet, asked: Sequence[Record], categories: bool) -> list[list[Answer]]:
    """The first answers to each query; one of the style "text" asks with its caption.

    Raises:
        ValueError: a query or the gallery cannot be read, or the method takes no text.
    """
    skipped: list[Skipped] = []
    gallery = embed_records(method, images, images.of_style(images.gallery_style), skipped)
    if not gallery.records:
        raise ValueError(f"the gallery of {images.name} has no picture that can be read")
    rows = []
    for record in asked:
        order = (gallery.vectors @ _query(method, images, record)).sort(descending=True, stable=True).indices
        rows.append([_answer(images, gallery.records[i], record, categories) for i in order[:_ANSWERS].tolist()])
    return rows


def _query(method: Method, images: ImageSet, record: Record) -> Tensor:
    if record.style == TEXT:
        words = embed_texts(method, [str(record.caption)])
        if words is None:
            raise ValueError(f"method {method.name!r} takes no text")
        return words[0].float()
    skipped: list[Skipped] = []
    found = embed_records(method, images, [record], skipped)
    if skipped:
        raise ValueError(f"{record.path} cannot be shown: {skipped[0].reason}")
    return found.vectors[0]


def _answer(images: ImageSet, found: Record, asked: Record, categories: bool) -> Answer:
    alike = found.category is not None and found.category == asked.category
    right = found.instance == asked.instance if asked.instance is not None else alike
    return Answer(thumbnail(images.read(found), _SIDE), right, _called(found), categories and alike)


def _asked_of(sheet: Sheet, settings: CompareSettings) -> tuple[ImageSet, tuple[str, ...]]:
    """The test part, and the styles that ask."""
    if settings.test_data is not None and sheet.categories:
        images = open_images(settings.test_data, "test").select(limit=settings.source.limit)
    elif settings.source.data == "emoji":
        pictures = [style for style in sheet.on_emoji if style != TEXT]
        return open_emoji("test", pictures).select(limit=settings.source.limit), sheet.on_emoji
    else:
        images = settings.source.parts().images()
    has = list(images.styles[1:])
    if any(record.caption is not None for record in images.of_style(images.gallery_style)):
        has.append(TEXT)
    of_paper = tuple(style for style in sheet.styles if style in has)
    return images, of_paper if of_paper not in ((), (TEXT,)) else tuple(has[:_STYLES])


def _at_fixed_places(images: ImageSet, style: str, column: int, columns: int) -> list[Record]:
    if style == TEXT:
        gallery = images.of_style(images.gallery_style)
        rows = [replace(record, style=TEXT) for record in gallery if record.caption is not None]
    else:
        rows = list(images.of_style(style))
    turns = range(max(1, _QUESTIONS // columns))
    return [rows[(2 * (column + columns * turn) + 1) * len(rows) // (2 * _QUESTIONS)] for turn in turns]


def _called(record: Record) -> str:
    return record.caption or record.category or Path(record.path).stem


def _legend(images: ImageSet, sheet: Sheet) -> dict[str, str]:
    """Colour of a frame -> what it says."""
    emoji = images.name == "emoji"
    kind = "subgroup" if emoji else "category"
    if not any(record.instance is not None for record in images.records):
        return {RIGHT: f"the right {kind}", WRONG: "another"}
    right = {RIGHT: f"the right {'concept' if emoji else 'picture'}"}
    if sheet.categories:
        return {**right, ALIKE: f"another of its {kind}", WRONG: f"another {kind}"}
    return {**right, WRONG: "another"}
