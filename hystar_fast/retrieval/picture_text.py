"""Text in pictures: any name, in lines of a given width."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageDraw, ImageFont

# Fonts of the system, for names in scripts that DejaVu lacks; Pillow looks them up by file name.
_MORE_FONTS = ("NotoSansCJK-Regular.ttc", "DroidSansFallbackFull.ttf", "wqy-microhei.ttc", "unifont.otf", "unifont.ttf")
_PARTS = re.compile(r"[^\s/_-]+[\s/_-]*|[\s/_-]+")  # a line may end after one of these


@dataclass(frozen=True)
class Paragraph:
    """Lines of text in one font.

    Attributes:
        rows: the lines.
        font: of all of them.
        step: pixels from one line to the next.
    """

    rows: tuple[str, ...]
    font: ImageFont.FreeTypeFont
    step: int

    @property
    def height(self) -> int:
        """Pixels of all lines."""
        return self.step * len(self.rows)

    @property
    def width(self) -> int:
        """Pixels of the longest line."""
        return max((round(self.font.getlength(row)) for row in self.rows), default=0)

    def draw(self, draw: ImageDraw.ImageDraw, x: int, y: int, fill: str) -> None:
        """Draw the lines, the first at (x, y)."""
        for number, row in enumerate(self.rows):
            draw.text((x, y + number * self.step), row, fill=fill, font=self.font)


def paragraph(text: str, size: int, width: int, *, lines: int | None = None, bold: bool = False) -> Paragraph:
    """Break a text into lines, after spaces and the separators of file names if possible.

    Args:
        text: any; see :func:`drawable`.
        size: of the letters in pixels.
        width: of a line in pixels.
        lines: at most so many; of a longer text the beginning and the end are kept, with an ellipsis between them.
        bold: whether the letters are bold.
    """
    text = drawable(text)
    font = _font(_file_for(text, bold=bold), size)
    if lines is not None and len(text) > 2 * lines * width:  # far too long: measure only what can be kept
        text = text[: lines * width] + text[-lines * width :]
    rows: list[str] = []
    for part in _PARTS.findall(text):
        if not rows or font.getlength((rows[-1] + part).rstrip()) > width:
            rows.append("")
        rows[-1] += part
        while (fitting := _fitting(rows[-1].rstrip(), font, width)) < len(rows[-1].rstrip()):
            rows[-1:] = [rows[-1][:fitting], rows[-1][fitting:]]
    if lines is not None and len(rows) > lines:
        end = "".join(rows[lines - 1 :])[::-1]
        kept = _fitting(end, font, width - round(font.getlength("…")))
        rows = [*rows[: lines - 1], "…" + end[:kept][::-1]]
    return Paragraph(tuple(row.rstrip() for row in rows), font, round(1.3 * size))


def drawable(text: str) -> str:
    """Return a text with spaces for line breaks, and backslash escapes for what cannot be drawn.

    Escaped are control characters, bytes of names that are not UTF-8, and letters that no font of this machine has.

    Example:
        >>> drawable("caf\\udce9 1\\n2.png")
        'caf\\\\udce9 1 2.png'
    """
    text = re.sub(r"\s", " ", text)
    known = _letters(_file_for(text, bold=False))
    return "".join(c if c.isprintable() and ord(c) in known else ascii(c)[1:-1] for c in text)


def _fitting(row: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """Return how many characters of a row fit into a width, at least one."""
    if font.getlength(row) <= width:
        return len(row)
    return 1 + bisect_right(range(2, len(row)), 0, key=lambda n: int(font.getlength(row[:n]) > width))


@lru_cache(maxsize=512)
def _file_for(text: str, *, bold: bool) -> str:
    """Return the first font file that has every printable character of a text; DejaVu's if none has."""
    wanted = {ord(c) for c in text if c.isprintable()}
    dejavu = _dejavu(bold=bold)
    return next((file for file in (dejavu, *_system_fonts()) if wanted <= _letters(file)), dejavu)


def _dejavu(*, bold: bool) -> str:
    """Return the font file that comes with matplotlib."""
    import matplotlib as mpl

    return str(Path(mpl.get_data_path()) / "fonts/ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"))


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[str, ...]:
    found = []
    for name in _MORE_FONTS:
        try:
            found.append(str(ImageFont.truetype(name, 12).path))
        except OSError:
            continue
    return tuple(found)


@lru_cache(maxsize=8)
def _letters(file: str) -> frozenset[int]:
    """Return the code points that a font file has."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(file).get_charmap())


@lru_cache(maxsize=32)
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)
