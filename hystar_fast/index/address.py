"""Addresses of indexes on a server, and their passwords, which are never shown."""

from __future__ import annotations

import re

_IN_FRONT = re.compile(r"(\w:/{1,2}[^\s:/?#@]*):\S*@")  # as a path, an address has one /
_AS_PARAMETER = re.compile(r"([?&](?:password|sslpassword)=)[^&\s'\"]*")


def without_password(text: str) -> str:
    """Return a text with the passwords of all addresses in it left out.

    Example:
        >>> without_password("index add postgresql://me:secret@db/pictures DIR")
        'index add postgresql://me@db/pictures DIR'
    """
    return _AS_PARAMETER.sub(r"\1...", _IN_FRONT.sub(r"\1@", text))
