"""Pictures of a retrieval: each query with its first answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from hystar_fast.retrieval.picture_sheet import (
    EDGE,
    GAP,
    HEADING,
    IRRELEVANT,
    LINE,
    MARGIN,
    RELEVANT,
    SAME_CATEGORY,
    SMALL,
    TEXT,
    UNKNOWN,
    Mark,
    Sheet,
)
from hystar_fast.retrieval.picture_text import Paragraph, paragraph
from hystar_fast.retrieval.plot_style import FAINT, INK

PAGE_TILE = 128  # pixels of a picture in `answer_page`
_TILE = 64
_STEP, _ROW = _TILE + 2 * EDGE + 4, _TILE + 2 * EDGE + GAP
_COLUMNS = (3, 6)  # fewest and most answers in a row of `answer_page`
_NAME_LINES = 6
_MEANINGS = {RELEVANT: "right", SAME_CATEGORY: "same category", IRRELEVANT: "wrong"}


@dataclass(frozen=True)
class Answer:
    """One retrieved picture.

    Attributes:
        image: uint8 or floating point [3, H, W]; None if it cannot be read.
        relevant: None if it is unknown.
        caption: shown with it in `answer_page`.
        same_category: whether an irrelevant picture of the query's category has a mark of its own.
        score: cosine similarity to the query, shown with it in `answer_page`.
    """

    image: Tensor | None
    relevant: bool | None = None
    caption: str = ""
    same_category: bool = False
    score: float | None = None

    @property
    def mark(self) -> Mark:
        """Its frame and sign."""
        if self.relevant is None:
            return UNKNOWN
        return RELEVANT if self.relevant else SAME_CATEGORY if self.same_category else IRRELEVANT


@dataclass(frozen=True)
class Question:
    """A query (a picture, or the text in `caption` alone) and its answers by column heading."""

    image: Tensor | None
    style: str
    caption: str
    answers: Mapping[str, Sequence[Answer]]


def answer_grid(questions: Sequence[Question], title: str, note: str = "") -> Image.Image:
    """Draw a row for each question: the query, then the answers of each column, marked right or wrong.

    Args:
        questions: all with the same columns and the same number of answers.
        title: heading.
        note: a line below it.

    Raises:
        ValueError: there is no question, or the columns differ.
    """
    if not questions:
        raise ValueError("questions must hold at least one question, got none")
    columns = {name: len(answers) for name, answers in questions[0].answers.items()}
    if any({n: len(a) for n, a in question.answers.items()} != columns for question in questions):
        raise ValueError("questions must all have the same columns and numbers of answers, got different ones")
    names, side = 190, 18
    extents = [max(count, 1) * _STEP + side for count in columns.values()]
    first = MARGIN + names + _STEP + side
    width = max(first + sum(extents), 480)
    used = {answer.mark for question in questions for answers in question.answers.values() for answer in answers}
    legend = {mark: meaning for mark, meaning in _MEANINGS.items() if mark in used}
    labels = [_label(question, names - GAP) for question in questions]
    rows = [max(_ROW, sum(part.height for part in label) + GAP) for label in labels]
    headings = [
        paragraph(name, HEADING, extent - side, bold=True, lines=2)
        for name, extent in zip(columns, extents, strict=True)
    ]
    sheet = Sheet(width, title, [note] if note else [], legend, below=sum(rows) + 2 * HEADING + 3 * GAP)
    y = sheet.top + max((heading.height for heading in headings), default=0) + GAP
    paragraph("query", TEXT, _STEP).draw(sheet.draw, MARGIN + names, sheet.top, FAINT)
    for question, label, height in zip(questions, labels, rows, strict=True):
        _place_label(sheet, label, MARGIN, y)
        _place_query(sheet, question, MARGIN + names, y)
        x = first
        for answers, extent in zip(question.answers.values(), extents, strict=True):
            _place_answers(sheet, answers, x, y)
            x += extent
        y += height
    x = first
    for heading, extent in zip(headings, extents, strict=True):
        heading.draw(sheet.draw, x, sheet.top, INK)
        x += extent
    return sheet.canvas


def answer_sheet(
    questions: Sequence[Question], title: str, notes: Sequence[str], legend: Mapping[Mark, str]
) -> Image.Image:
    """Draw a block for each question with a line for each method, for more answers than fit into `answer_grid`.

    Args:
        questions: all with the same methods.
        title: heading.
        notes: lines below it.
        legend: mark -> its meaning.

    Raises:
        ValueError: there is no question, or their methods differ.
    """
    if not questions or any([*question.answers] != [*questions[0].answers] for question in questions):
        methods = [[*question.answers] for question in questions]
        raise ValueError(f"questions must be at least one, all with the same methods, got methods {methods}")
    names, method = 140, 96
    first = MARGIN + names + _STEP + method
    count = max(len(answers) for question in questions for answers in question.answers.values())
    labels = [_label(question, names - GAP) for question in questions]
    lines = len(questions[0].answers) * _ROW
    blocks = [max(lines, sum(part.height for part in label)) + 2 * GAP for label in labels]
    sheet = Sheet(max(first + count * _STEP + GAP, 480), title, notes, legend, below=sum(blocks) + GAP)
    y = sheet.top + GAP
    for question, label, block in zip(questions, labels, blocks, strict=True):
        sheet.draw.line((MARGIN, y - GAP, sheet.canvas.width - GAP, y - GAP), fill=LINE)
        _place_label(sheet, label, MARGIN, y)
        _place_query(sheet, question, MARGIN + names, y)
        for line, (name, answers) in enumerate(question.answers.items()):
            heading = paragraph(name, TEXT, method - GAP, lines=3)
            middle = y + line * _ROW + (_TILE + 2 * EDGE - heading.height) // 2
            heading.draw(sheet.draw, first - method + 4, middle, INK)
            _place_answers(sheet, answers, first, y + line * _ROW)
        y += block
    return sheet.canvas


def answer_page(image: Tensor | None, query: str, answers: Sequence[Answer], title: str) -> Image.Image:
    """Draw one query and below it its answers in rows, each with its rank, score and name.

    Args:
        image: of the query; None for a query of words.
        query: its name, or its words.
        answers: best first, any number; names of more than six lines are shortened in their middle.
        title: heading.
    """
    cell, gap = PAGE_TILE + 2 * EDGE, 12
    columns = min(max(len(answers), _COLUMNS[0]), _COLUMNS[1])
    width = 2 * MARGIN + columns * (cell + gap) - gap
    names = [paragraph(answer.caption, 13, PAGE_TILE, lines=_NAME_LINES) for answer in answers]
    rows = [names[start : start + columns] for start in range(0, len(names), columns)]
    heights = [cell + 24 + max(name.height for name in row) + gap for row in rows]
    notes = ["Below each picture: rank, score (by default the cosine to the query; 1: equal), name."] if answers else []
    left = MARGIN if image is None else MARGIN + cell + gap
    words = f"Query: “{query}”" if image is None else f"Query: {query}"
    shown = paragraph(words, HEADING, width - left - MARGIN, lines=_NAME_LINES)
    used = max(shown.height, cell if image is not None else 0) + 2 * gap
    sheet = Sheet(width, title, notes, {}, below=used + sum(heights) + (0 if answers else 40))
    y = sheet.top
    if image is not None:
        sheet.place(image, MARGIN, y, UNKNOWN, PAGE_TILE)
    shown.draw(sheet.draw, left, y + EDGE, INK)
    y += used
    sheet.draw.line((MARGIN, y - gap, width - MARGIN, y - gap), fill=LINE)
    if not answers:
        paragraph("no answers", TEXT, width).draw(sheet.draw, MARGIN, y, INK)
    for start, row, height in zip(range(0, len(names), columns), rows, heights, strict=True):
        for column, name in enumerate(row):
            answer, x = answers[start + column], MARGIN + column * (cell + gap)
            sheet.place(answer.image, x, y, answer.mark, PAGE_TILE)
            score = "" if answer.score is None else f"   {answer.score:.3f}"
            rank = paragraph(f"{start + column + 1}.{score}", 14, cell, bold=True)
            rank.draw(sheet.draw, x + EDGE, y + cell, INK)
            name.draw(sheet.draw, x + EDGE, y + cell + 20, FAINT)
        y += height
    return sheet.canvas


def _place_answers(sheet: Sheet, answers: Sequence[Answer], x: int, y: int) -> None:
    """Draw answers side by side."""
    for j, answer in enumerate(answers):
        sheet.place(answer.image, x + j * _STEP, y, answer.mark, _TILE)


def _place_query(sheet: Sheet, question: Question, x: int, y: int) -> None:
    """Draw the picture of a query; that of words has none, for its label shows them."""
    if question.image is not None:
        sheet.place(question.image, x, y, UNKNOWN, _TILE)
    else:
        paragraph("words", TEXT, _STEP).draw(sheet.draw, x + EDGE, y + _TILE // 2, FAINT)


def _place_label(sheet: Sheet, label: tuple[Paragraph, Paragraph], x: int, y: int) -> None:
    """Draw the style of a query and its caption."""
    for part, fill in zip(label, (INK, FAINT), strict=True):
        part.draw(sheet.draw, x, y + 2, fill)
        y += part.height


def _label(question: Question, width: int) -> tuple[Paragraph, Paragraph]:
    """Return the style and the caption of a query; words in quotation marks."""
    caption = f"“{question.caption}”" if question.image is None else question.caption
    return paragraph(question.style, HEADING, width, lines=2), paragraph(caption, SMALL, width, lines=3)
