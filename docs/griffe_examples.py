"""Show the doctests of docstrings as code on the documentation site, whatever heading stands above them."""

from __future__ import annotations

import re
from typing import Any

import griffe

_HEADING = re.compile(r"^( *)Example:$", re.MULTILINE)
_BARE = re.compile(r"\n\n(?=>>> )")


class Doctests(griffe.Extension):
    """Turn ``Example:``, and doctests without a heading, into the section ``Examples:`` that griffe knows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is None:
            return
        text = _HEADING.sub(r"\1Examples:", obj.docstring.value)
        before, bare, doctest = _split(text)
        if bare:
            text = f"{before}\n\nExamples:\n" + "\n".join(f"    {line}" for line in doctest.splitlines())
        obj.docstring.value = text


def _split(text: str) -> tuple[str, str, str]:
    """Split a docstring before a doctest that is not indented below a heading."""
    found = _BARE.search(text)
    return (text, "", "") if found is None else (text[: found.start()], "\n\n", text[found.end() :])
