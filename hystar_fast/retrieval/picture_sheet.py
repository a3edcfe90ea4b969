"""A white sheet with a title and a legend, on which pictures stand in frames marked right or wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from hystar_fast.data.images import thumbnail, to_picture
from hystar_fast.retrieval.picture_text import Paragraph, paragraph
from hystar_fast.retrieval.plot_style import FAINT, INK

EDGE, MARGIN, GAP = 6, 16, 10  # pixels around a picture for its frame, around the sheet, between rows
HEADING, TEXT, SMALL = 18, 16, 15
LINE = "#d0d0d0"
_TITLE = 24


@dataclass(frozen=True)
class Mark:
    """How an answer is marked: no two marks share a sign, the thickness of the frame, or its grey level.

    Attributes:
        colour: of the frame and the sign's disc.
        frame: thickness in pixels.
        sign: in the corner; "" for none.
    """

    colour: str
    frame: int
    sign: str


RELEVANT, SAME_CATEGORY = Mark("#006b3c", 6, "✓"), Mark("#5b93d6", 4, "≈")
IRRELEVANT, UNKNOWN = Mark("#d8412a", 2, "✗"), Mark("#b5b5b5", 1, "")


class Sheet:
    """A white canvas with a title, notes and a legend, below which `top` is free."""

    def __init__(self, width: int, title: str, notes: Iterable[str], legend: Mapping[Mark, str], *, below: int) -> None:
        inside = width - 2 * MARGIN
        head = [paragraph(title, _TITLE, inside, lines=4, bold=True)]
        head += [paragraph(note, TEXT, inside, lines=4) for note in notes]
        meanings = _legend_places(legend, inside)
        y = MARGIN
        self.top = y + sum(part.height + 4 for part in head) + (meanings[-1][1] + 42 if meanings else 0) + GAP
        self.canvas = Image.new("RGB", (width, self.top + below), "white")
        self.draw = ImageDraw.Draw(self.canvas)
        for part, fill in zip(head, (INK, *[FAINT] * len(head)), strict=False):
            part.draw(self.draw, MARGIN, y, fill)
            y += part.height + 4
        for x, below_head, mark, meaning in meanings:
            place = MARGIN + x, y + 6 + below_head
            self.draw.rectangle((*place, place[0] + 23, place[1] + 23), outline=mark.colour, width=mark.frame)
            self._sign(place[0] + 24, place[1] + 24, mark)
            meaning.draw(self.draw, place[0] + 44, place[1] + 3, INK)

    def place(self, image: Tensor | None, x: int, y: int, mark: Mark, side: int) -> None:
        """Draw a picture of any shape in a square, in the frame of its mark."""
        left, top = x + EDGE, y + EDGE
        if image is None:
            paragraph("cannot be read", SMALL, side - 8, lines=3).draw(self.draw, left + 4, top + 4, FAINT)
        else:
            self.canvas.paste(to_picture(thumbnail(to_picture(image), side)), (left, top))
        frame = (left - mark.frame, top - mark.frame, left + side + mark.frame - 1, top + side + mark.frame - 1)
        self.draw.rectangle(frame, outline=mark.colour, width=mark.frame)
        self._sign(left + side - 5, top + side - 5, mark)

    def _sign(self, x: int, y: int, mark: Mark) -> None:
        """Draw the sign of a mark in a disc around (x, y), larger where the frame is thicker."""
        if mark.sign:
            radius = 7 + mark.frame // 2
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=mark.colour, outline="white")
            font = paragraph(mark.sign, round(1.5 * radius), 2 * radius, bold=True).font
            self.draw.text((x, y), mark.sign, fill="white", font=font, anchor="mm")


def _legend_places(legend: Mapping[Mark, str], width: int) -> list[tuple[int, int, Mark, Paragraph]]:
    """Return x, y, mark and text of every meaning, in as many lines as they need."""
    places, x, y = [], 0, 0
    for mark, meaning in legend.items():
        text = paragraph(meaning, TEXT, max(width - 60, 60), lines=1)
        if x and x + 44 + text.width > width:
            x, y = 0, y + 36
        places.append((x, y, mark, text))
        x += 44 + text.width + 28
    return places
