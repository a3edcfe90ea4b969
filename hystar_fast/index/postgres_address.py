"""Where an index in PostgreSQL is: ``postgresql://USER@HOST:PORT/DATABASE?index=NAME``."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from hystar_fast.index.address import without_password

SCHEMES = ("postgresql://", "postgres://")
_NAME = re.compile(r"[a-z0-9_]{1,40}")
_USER = re.compile(r"^(\w+://)([^/:@]*)(:[^/@]*)?@")
_PORTS = re.compile(r"[0-9,]*")
_SECRET = ("password", "sslpassword", "oauth_client_secret")
_CONNECT_SECONDS = 5
_IDLE_SECONDS = 60  # a firewall forgets a connection on which nothing is sent
_LOST_MS = 30_000  # until a server that no longer answers is given up
_FORM = "postgresql://USER@HOST:PORT/DATABASE?index=NAME, with special characters of a password as %XX"


def psycopg() -> ModuleType:
    """Return the driver.

    Raises:
        ModuleNotFoundError: the extra `pgvector` is not installed.
    """
    try:
        import pgvector.psycopg  # noqa: F401
        import psycopg as driver
        import psycopg.conninfo
    except ModuleNotFoundError as error:
        needed = (
            f"an index in PostgreSQL needs {error.name}, which is not installed: pip install 'hystar-fast[pgvector]'"
        )
        raise ModuleNotFoundError(needed) from error
    log = logging.getLogger("psycopg")
    if not log.handlers:  # it would warn on stderr of a lost connection, which is an error of ours
        log.addHandler(logging.NullHandler())
    return driver


@dataclass(frozen=True)
class PostgresAddress:
    """A parsed address.

    Attributes:
        uri: as the user wrote it, without a password.
        index: the name of the index.
        parameters: for the driver; a password may be among them.
    """

    uri: str
    index: str
    parameters: dict[str, Any] = field(repr=False)

    @property
    def schema(self) -> str:
        """The schema that holds the tables of the index."""
        return f"hystar_{self.index}"

    @classmethod
    def parse(cls, uri: str) -> PostgresAddress:
        """Parse an address.

        Raises:
            ValueError: it is none; no part of a password is in the message.
        """
        head, _, query = uri.partition("?")
        given = parse_qsl(query, keep_blank_values=True)
        names = [value for name, value in given if name == "index"] or ["index"]
        if len(names) > 1 or not _NAME.fullmatch(names[0]):
            raise ValueError(f"index must have a name of at most 40 of a-z, 0-9 and _, got {' and '.join(names)!r}")
        others = [(name, value) for name, value in given if name != "index"]
        driver = psycopg()
        try:
            parameters = driver.conninfo.conninfo_to_dict(_joined(head, others))
        except driver.Error:
            parameters = {}
        # a bare @ or / in a password makes the rest of it a host, a port or a database
        place = f"{parameters.get('host', '')}{head.partition('://')[2].partition('/')[2]}"
        if not parameters or "@" in place or not _PORTS.fullmatch(str(parameters.get("port", ""))):
            raise ValueError(f"index must be {_FORM}, got {without_password(uri.replace(' ', '%20'))}")
        shown = [(name, value) for name, value in others if name not in _SECRET]
        seen = _joined(_USER.sub(r"\1\2@", head), [*shown, ("index", names[0])])
        defaults = {
            "connect_timeout": _CONNECT_SECONDS,
            "tcp_user_timeout": _LOST_MS,
            "keepalives_idle": _IDLE_SECONDS,
            "fallback_application_name": "hystar-fast",
        }
        return cls(seen, names[0], {**defaults, **parameters, "client_encoding": "utf8"})


def _joined(head: str, query: list[tuple[str, str]]) -> str:
    return f"{head}?{urlencode(query, quote_via=quote, safe='/')}" if query else head
