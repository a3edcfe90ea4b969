"""Pictures of a retrieval: each query with its first answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hystar_fast.data.images import to_picture

RELEVANT, SAME_CATEGORY, IRRELEVANT, UNKNOWN = "#1a9641", "#f2a900", "#d7191c", "#8c8c8c"
_TILE, _GAP, _FRAME, _LABEL, _SIDE_GAP = 72, 8, 4, 34, 26
_INK, _FAINT = "#1f1f1f", "#6b6b6b"


@dataclass(frozen=True)
class Answer:
    """One retrieved picture.

    Attributes:
        image: uint8 or floating point [3, H, W].
        relevant: None if it is unknown.
        caption: shown with it.
        same_category: whether an irrelevant picture of the query's category has a frame of its own.
    """

    image: Tensor
    relevant: bool | None = None
    caption: str = ""
    same_category: bool = False

    @property
    def colour(self) -> str:
        """The colour of its frame."""
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
    """Draw a row for each question: the query, then the answers of each column, framed green if relevant, else red.

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
    step = _TILE + _GAP
    name_width = 150
    widths = [count * step + _SIDE_GAP for count in columns.values()]
    left, top = _GAP * 2, 74 if note else 56
    width = left + name_width + step + _SIDE_GAP + sum(widths)
    row_height = _TILE + _GAP + 6
    canvas = Image.new("RGB", (width, top + _LABEL + len(questions) * row_height + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((left, 12), title, fill=_INK, font=_font(20))
    if note:
        draw.text((left, 42), note, fill=_FAINT, font=_font(13))
    x = left + name_width
    draw.text((x, top + 8), "query", fill=_FAINT, font=_font(14))
    x += step + _SIDE_GAP
    for name, extent in zip(columns, widths, strict=True):
        draw.text((x, top + 8), name, fill=_INK, font=_font(14))
        x += extent
    for i, question in enumerate(questions):
        y = top + _LABEL + i * row_height
        _label(draw, question, left, y, name_width - _GAP)
        x = left + name_width
        _draw_query(canvas, draw, question, x, y)
        x += step + _SIDE_GAP
        for answers, extent in zip(question.answers.values(), widths, strict=True):
            for j, answer in enumerate(answers):
                _paste(canvas, draw, answer.image, x + j * step, y, answer.colour, _FRAME)
            x += extent
    return canvas


def answer_sheet(
    questions: Sequence[Question], title: str, notes: Sequence[str], legend: Mapping[str, str]
) -> Image.Image:
    """Draw a block for each question with a line for each method, for more answers than fit into `answer_grid`.

    Args:
        questions: all with the same methods.
        title: heading.
        notes: lines below it.
        legend: colour of a frame -> its meaning.

    Raises:
        ValueError: there is no question, or their methods differ.
    """
    if not questions or any([*question.answers] != [*questions[0].answers] for question in questions):
        methods = [[*question.answers] for question in questions]
        raise ValueError(f"questions must be at least one, all with the same methods, got methods {methods}")
    step, row_height, left = _TILE + _GAP, _TILE + _GAP, 2 * _GAP
    label, method = 110, 90
    first = left + label + step + method
    count = max(len(answers) for question in questions for answers in question.answers.values())
    block = len(questions[0].answers) * row_height + 2 * _GAP
    top = 48 + 18 * len(notes) + 34
    canvas = Image.new("RGB", (first + count * step + _GAP, top + len(questions) * block), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((left, 12), title, fill=_INK, font=_font(20))
    for i, note in enumerate(notes):
        draw.text((left, 42 + 18 * i), note, fill=_FAINT, font=_font(13))
    x, y = left, 48 + 18 * len(notes)
    for colour, meaning in legend.items():
        draw.rectangle((x, y, x + 15, y + 15), outline=colour, width=_FRAME)
        draw.text((x + 22, y), meaning, fill=_INK, font=_font(13))
        x += 46 + round(draw.textlength(meaning, font=_font(13)))
    for i, question in enumerate(questions):
        y = top + i * block
        draw.line((left, y - _GAP, canvas.width - _GAP, y - _GAP), fill="#e3e3e3")
        _label(draw, question, left, y, label - _GAP)
        _draw_query(canvas, draw, question, left + label, y)
        for line, (name, answers) in enumerate(question.answers.items()):
            draw.text((left + label + step, y + line * row_height + _TILE // 2 - 9), name, fill=_INK, font=_font(14))
            for j, answer in enumerate(answers):
                _paste(canvas, draw, answer.image, first + j * step, y + line * row_height, answer.colour, _FRAME)
    return canvas


def _draw_query(canvas: Image.Image, draw: ImageDraw.ImageDraw, question: Question, x: int, y: int) -> None:
    if question.image is None:
        _wrap(draw, f"“{question.caption}”", (x, y + 4), _TILE, 12, _INK, lines=4)
    else:
        _paste(canvas, draw, question.image, x, y, "#c8c8c8", 1)


def _label(draw: ImageDraw.ImageDraw, question: Question, x: int, y: int, width: int) -> None:
    draw.text((x, y + 2), question.style, fill=_INK, font=_font(15))
    _wrap(draw, question.caption, (x, y + 22), width, 12, _FAINT, lines=3)


def _wrap(
    draw: ImageDraw.ImageDraw, text: str, at: tuple[int, int], width: int, size: int, fill: str, *, lines: int
) -> None:
    font, rows = _font(size), [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width or not rows[-1]:
            rows[-1] = longer
        else:
            rows.append(word)
    if len(rows) > lines:
        rows = [*rows[: lines - 1], rows[lines - 1] + "…"]
    draw.multiline_text(at, "\n".join(rows), fill=fill, font=font, spacing=3)


def _paste(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, image: Tensor, x: int, y: int, colour: str, frame: int
) -> None:
    inner = _TILE - 2 * _FRAME
    tile = to_picture(image).resize((inner, inner), Image.Resampling.LANCZOS)
    canvas.paste(tile, (x + _FRAME, y + _FRAME))
    draw.rectangle((x, y, x + _TILE - 1, y + _TILE - 1), outline=colour, width=frame)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
