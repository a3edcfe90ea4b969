"""Text files: UTF-8, with or without a byte order mark when read, and any file name when written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_END_OF_LINE = re.compile(r"\r\n?|\n")


def read_text(path: str | Path) -> str:
    """Return the text of a file without its byte order mark.

    Raises:
        ValueError: the file is not UTF-8; the message names the line.
        OSError: the file cannot be read.
    """
    return decode_text(Path(path).read_bytes(), str(path))


def decode_text(content: bytes, name: str) -> str:
    """Decode the content of a text file as `read_text` does; `name` stands for it in the error message."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{name} must be UTF-8, got byte {content[error.start]:#04x} in line {line}") from error


def split_lines(text: str) -> list[str]:
    r"""Split a text at its ends of lines alone: ``\n``, ``\r\n`` and ``\r``.

    `str.splitlines` splits at U+2028 and at others, too, which may stand in a caption or a file name.

    Example:
        >>> split_lines("one\u2028two\r\nthree\n")
        ['one\u2028two', 'three']
    """
    lines = _END_OF_LINE.split(text)
    return lines if lines[-1] else lines[:-1]


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """Return the lines of a file that are not empty, stripped, with their numbers from 1; errors as `read_text`."""
    lines = split_lines(read_text(path))
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error


def to_json(content: Any) -> str:
    """Return JSON that every file can hold; names that are not UTF-8 make all characters beyond ASCII escapes."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(content, indent=1)
    return text
