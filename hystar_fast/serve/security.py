"""Who may ask: tokens, the Host header, the address that is bound, and the headers of every answer."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from hystar_fast.data.text_files import split_lines
from hystar_fast.serve.problems import Problem

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
READ, WRITE = "read", "write"
_SHORTEST_TOKEN = 16
# blob: and data: are pictures that the page itself makes, such as a drawing
CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": CONTENT_POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Tokens:
    """The tokens that may ask; without any, everyone may who reaches the server.

    Args:
        rights: token -> "read" or "write".
    """

    def __init__(self, rights: Mapping[str, str] | None = None) -> None:
        self._rights = None if rights is None else [(_digest(token), right) for token, right in rights.items()]

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """Read a file of lines ``read TOKEN`` and ``write TOKEN``; lines that begin with # are comments.

        Raises:
            ValueError: the file cannot be read, may be read by other users, or has a wrong line.
        """
        try:
            mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"token_file must be a text file of tokens, but {path} cannot be read: {error}") from error
        if stat.S_IMODE(mode) & 0o077:
            raise ValueError(
                f"token_file must be closed to other users, got {path} with mode {stat.S_IMODE(mode):04o}: chmod 600"
            )
        rights: dict[str, str] = {}
        for number, line in enumerate(split_lines(text), start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            is_token = len(words) == 2 and len(words[1]) >= _SHORTEST_TOKEN and words[1].isascii()
            if not is_token or words[0] not in (READ, WRITE):
                raise ValueError(
                    f"token_file must have lines `read TOKEN` or `write TOKEN` with tokens of at least "
                    f"{_SHORTEST_TOKEN} characters in ASCII, got another in line {number} of {path}"
                )
            rights[words[1]] = words[0]
        if not rights:
            raise ValueError(f"token_file must hold a token, got none in {path}")
        return cls(rights)

    def right(self, authorization: str) -> str:
        """Return the right of an Authorization header, in a time that tells nothing about the tokens.

        Raises:
            Problem: "unauthorized".
        """
        if self._rights is None:
            return WRITE
        scheme, _, token = authorization.partition(" ")
        given, found = _digest(token.strip()), ""
        for digest, right in self._rights:
            if hmac.compare_digest(digest, given):
                found = right
        if not found or scheme.lower() != "bearer":
            raise Problem("unauthorized", "the Authorization header must be: Bearer TOKEN, with a token of this server")
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def is_loopback(host: str) -> bool:
    """Return whether an address reaches this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_binding(host: str, *, has_tokens: bool) -> None:
    """Refuse to bind an address that others reach without tokens.

    Raises:
        ValueError: `host` is no loopback address and there are no tokens.
    """
    if not has_tokens and not is_loopback(host):
        raise ValueError(
            f"host must be 127.0.0.1, ::1 or localhost without --token-file, got {host!r}, which others reach: "
            "write `read TOKEN` into a file of mode 0600 and give --token-file"
        )


class Hosts:
    """The names under which the server may be called, so that no foreign page can reach it under a name of its own.

    Args:
        names: as in URLs, without a port; ``*.example.org`` stands for every name that ends so.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.lower() for name in (*LOOPBACK, *names)}

    def check(self, header: str) -> None:
        """Raise Problem unless a Host header has an allowed name."""
        if not self._has(header):
            raise Problem("wrong_host", "the Host header must be a name of this server; --allow-host adds one")

    def check_origin(self, header: str) -> None:
        """Raise Problem unless an Origin header, by which a browser names the page that asks, is of an allowed name.

        A browser sends a form to any server, whatever page it is on, and asks nobody before.
        """
        _, colon, host = header.partition("://")
        if not (colon and self._has(host)):
            raise Problem("forbidden", "the Origin header must be that of a page of this server")

    def _has(self, host: str) -> bool:
        name = host.lower()
        if not name.endswith("]"):  # an IPv6 address without a port
            before, colon, port = name.rpartition(":")
            name = before if colon and port.isdigit() else name
        parents = {f"*.{name.split('.', place)[place]}" for place in range(1, name.count(".") + 1)}
        return name in self._names or bool(parents & self._names)
