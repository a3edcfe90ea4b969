"""Where an index in Milvus is: ``milvus:FILE.db`` or ``milvus:http://HOST:PORT/NAME?secret=FILE``."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

MILVUS = "milvus:"
_FORM = f"{MILVUS}FILE.db for Milvus Lite or {MILVUS}http://HOST:PORT/NAME for a server"
_NAME = re.compile(r"(?!.*__)[A-Za-z][A-Za-z0-9_]{0,199}")  # two underscores stand before the names of its collections
_LITE_NAME = "pictures"


@dataclass(frozen=True)
class MilvusAddress:
    """A parsed address.

    Attributes:
        uri: as the user wrote it; it has no password.
        name: of the index, in Milvus.
        server: where the server answers; "" for Milvus Lite.
        file: of Milvus Lite; None for a server.
        secret: ``USER:PASSWORD`` or a key of the server; "" if it asks for none.
    """

    uri: str
    name: str
    server: str = ""
    file: Path | None = None
    secret: str = field(default="", repr=False)

    @classmethod
    def parse(cls, uri: str) -> MilvusAddress:
        """Read an address and the file of its secret.

        Raises:
            ValueError: it has another form, or the file cannot be read or may be read by other users.

        Example:
            >>> MilvusAddress.parse("milvus:http://db.example.org:19530/photos").name
            'photos'
        """
        rest = uri.removeprefix(MILVUS)
        if "://" not in rest:
            if not rest.endswith(".db"):
                raise ValueError(f"index must be {_FORM}, got {uri}")
            return cls(uri, _LITE_NAME, file=Path(rest).absolute())
        if "@" in rest.partition("?")[0]:  # not shown, as a password may be in it
            raise ValueError(f"index must be {_FORM}, with USER:PASSWORD in a file: {MILVUS}http://…/NAME?secret=FILE")
        try:
            parts = urlsplit(rest)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise ValueError(f"index must be {_FORM}, got {uri}: {error}") from error
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if parts.scheme not in ("http", "https") or not host or parts.fragment or options.keys() - {"secret"}:
            raise ValueError(f"index must be {_FORM}, with no more than ?secret=FILE after it, got {uri}")
        name = parts.path.removeprefix("/")
        if not _NAME.fullmatch(name):
            raise ValueError(f"NAME must be letters, digits and single underscores, got {name!r} in {uri}")
        place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
        secret = _read_secret(Path(options["secret"])) if "secret" in options else ""
        return cls(uri, name, f"{parts.scheme}://{place}", secret=secret)


def _read_secret(path: Path) -> str:
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"secret must be a text file, but {path} cannot be read: {error}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise ValueError(
            f"secret must be closed to other users, got {path} with mode {stat.S_IMODE(mode):04o}: chmod 600"
        )
    if not text or "\n" in text:
        raise ValueError(f"secret must be one line, USER:PASSWORD or a key, got another file {path}")
    return text
