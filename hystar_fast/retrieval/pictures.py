"""Pictures of a retrieval: queries with their first answers, and a map of the embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

RIGHT, ALIKE, WRONG, NEUTRAL = "#1a9641", "#f2a900", "#d7191c", "#8c8c8c"
_TILE, _GAP, _FRAME, _LABEL, _SIDE_GAP = 72, 8, 4, 34, 26
_INK, _FAINT = "#1f1f1f", "#6b6b6b"


@dataclass(frozen=True)
class Answer:
    """One retrieved picture.

    Attributes:
        image: uint8 or floating point [3, H, W].
        right: None where nobody knows.
        caption: what it is.
        alike: whether it is of the right one's category, where that is to be told apart.
    """

    image: Tensor
    right: bool | None = None
    caption: str = ""
    alike: bool = False

    @property
    def colour(self) -> str:
        """Of its frame."""
        if self.right is None:
            return NEUTRAL
        return RIGHT if self.right else ALIKE if self.alike else WRONG


@dataclass(frozen=True)
class Question:
    """A query (a picture, or the words of `caption` alone) and, by column heading, the answers it got."""

    image: Tensor | None
    style: str
    caption: str
    answers: Mapping[str, Sequence[Answer]]


def retrieval_grid(questions: Sequence[Question], title: str, note: str = "") -> Image.Image:
    """A row a question: the query, then the answers of each column, framed green where right and red where wrong.

    Args:
        questions: all with the same columns and the same number of answers.
        title: heading.
        note: a line below it.

    Raises:
        ValueError: there is no question, or the columns differ.
    """
    if not questions:
        raise ValueError("questions must not be empty")
    columns = {name: len(answers) for name, answers in questions[0].answers.items()}
    if any({n: len(a) for n, a in question.answers.items()} != columns for question in questions):
        raise ValueError("questions must all have the same columns and numbers of answers")
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
        _ask(canvas, draw, question, x, y)
        x += step + _SIDE_GAP
        for answers, extent in zip(question.answers.values(), widths, strict=True):
            for j, answer in enumerate(answers):
                _paste(canvas, draw, answer.image, x + j * step, y, answer.colour, _FRAME)
            x += extent
    return canvas


def retrieval_sheet(
    questions: Sequence[Question], title: str, notes: Sequence[str], legend: Mapping[str, str]
) -> Image.Image:
    """A block a question, a line a method: for more answers than `retrieval_grid` has room for beside each other.

    Args:
        questions: all with the same methods.
        title: heading.
        notes: lines below it.
        legend: colour of a frame -> what it says.

    Raises:
        ValueError: there is no question, or their methods differ.
    """
    if not questions or any([*question.answers] != [*questions[0].answers] for question in questions):
        raise ValueError("questions must be at least one, all with the same methods")
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
        _ask(canvas, draw, question, left + label, y)
        for line, (name, answers) in enumerate(question.answers.items()):
            draw.text((left + label + step, y + line * row_height + _TILE // 2 - 9), name, fill=_INK, font=_font(14))
            for j, answer in enumerate(answers):
                _paste(canvas, draw, answer.image, first + j * step, y + line * row_height, answer.colour, _FRAME)
    return canvas


def principal_plane(embeddings: Tensor) -> tuple[Tensor, float]:
    """Project [n, D] onto its first two principal components; returns [n, 2] and the share of variance they hold.

    Raises:
        ValueError: fewer than two points, or D below 2.
    """
    if embeddings.ndim != 2 or min(embeddings.shape) < 2:
        raise ValueError(f"embeddings must be [n, D] with n and D at least 2, got {tuple(embeddings.shape)}")
    centred = embeddings.double() - embeddings.double().mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    share = float(s[:2].square().sum() / s.square().sum().clamp_min(torch.finfo(torch.float64).tiny))
    return (u[:, :2] * s[:2]).float(), share


def embedding_map(panels: Mapping[str, Mapping[str, Tensor]], path: str | Path, note: str = "") -> None:
    """Scatter plots side by side, a panel a method, a colour a style, each in its own principal plane.

    Args:
        panels: title -> style -> embeddings [n, D].
        path: PNG to write.
        note: a line below the panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    styles = list(dict.fromkeys(style for panel in panels.values() for style in panel))
    colours = dict(zip(styles, ("#444444", "#e66101", "#1b9e77", "#7570b3", "#d01c8b", "#2b83ba"), strict=False))
    for i, (title, panel) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), i)
        plane, share = principal_plane(torch.cat(list(panel.values())))
        start = 0
        for style, embeddings in panel.items():
            points = plane[start : start + len(embeddings)].numpy()
            start += len(embeddings)
            axes.scatter(points[:, 0], points[:, 1], s=9, alpha=0.65, linewidths=0, color=colours[style], label=style)
        axes.set_title(f"{title}\n{100 * share:.0f} % of the variance", fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        for side in axes.spines.values():
            side.set_color("#cccccc")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, markerscale=2.5)
    if note:
        figure.suptitle(note, fontsize=10, color=_FAINT)
    figure.savefig(path, dpi=120)


def _ask(canvas: Image.Image, draw: ImageDraw.ImageDraw, question: Question, x: int, y: int) -> None:
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
    pixels = image if image.dtype == torch.uint8 else (image.clamp(0, 1) * 255).round().to(torch.uint8)
    inner = _TILE - 2 * _FRAME
    tile = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).resize(
        (inner, inner), Image.Resampling.LANCZOS
    )
    canvas.paste(tile, (x + _FRAME, y + _FRAME))
    draw.rectangle((x, y, x + _TILE - 1, y + _TILE - 1), outline=colour, width=frame)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
