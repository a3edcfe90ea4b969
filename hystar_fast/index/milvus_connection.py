"""A connection to Milvus: addresses, one process for a file of Milvus Lite, and errors in our words."""

from __future__ import annotations

import fcntl
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hystar_fast.index.engine import EngineFull, EngineUnavailable

MILVUS = "milvus:"
READ, LOAD = 10.0, 120.0  # seconds that a call, and the loading of a collection, may take
_FORM = f"{MILVUS}FILE.db for Milvus Lite or {MILVUS}http://HOST:PORT/NAME for a server"
_NAME = re.compile(r"(?!.*__)[A-Za-z][A-Za-z0-9_]{0,199}")
_LITE_NAME = "pictures"
_NOT_THERE = (100, 1600)  # codes of a collection and of an alias that do not exist
_REFUSED = re.compile(r"UNAUTHENTICATED|auth check failure|not authenticated", re.I)
_NO_RIGHTS = re.compile(r"PERMISSION_DENIED|permission deny", re.I)
_FULL = re.compile(r"quota (exceeded|exhausted)|no space left|disk full", re.I)
_REASON = 300  # characters of an error of Milvus

_lite_lock = threading.Lock()
_lite: dict[
    Path, tuple[int, AbstractContextManager[Any]]
] = {}  # files that are open in this process: their users, and a lock


class NotThere(EngineUnavailable):
    """A collection or an alias does not exist."""


class Connection:
    """A client of Milvus whose every call ends in time, with an error of ours.

    Args:
        uri: ``milvus:FILE.db`` or ``milvus:http://HOST:PORT/NAME``, also with https.
        secret: ``USER:PASSWORD`` or an API key, for a server that asks for one; it is in no message.
        create: make the file of Milvus Lite if it is not there.

    Raises:
        ValueError: the address has another form, pymilvus is not installed, or the server refuses the secret.
        EngineUnavailable: the server cannot be reached, or another process has the file open.

    Attributes:
        uri: the address; without a secret.
        name: of the index, in Milvus.
        folder: the one that Milvus Lite keeps its file in; None for a server.
    """

    def __init__(self, uri: str, secret: str | None = None, *, create: bool = False) -> None:
        address, self.name = split_uri(uri)
        self.uri = uri
        self._secret, self._is_closed = secret, False
        try:
            import pymilvus
        except ImportError as error:
            raise ValueError(f"index {uri} needs pymilvus: pip install 'hystar-fast[milvus]'") from error
        # its errors come back as ours, in one line; it would print each with a traceback
        for name in ("pymilvus", "milvus_lite"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.folder = Path(address).absolute() if address.endswith(".db") else None
        # Lite takes one call after the other
        self._turn = nullcontext() if self.folder is None else _open_lite(self.folder, uri, create=create)
        try:
            with self._errors():
                self._client = pymilvus.MilvusClient(
                    str(self.folder or address), token=secret or "", dedicated=True, timeout=READ
                )
        except BaseException:
            self._release()
            raise

    def call(self, method: str, *arguments: Any, timeout: float = READ, **options: Any) -> Any:
        """Call a method of `pymilvus.MilvusClient`.

        Raises:
            EngineUnavailable: the server does not answer, or the connection is closed; NotThere if a collection does
                not exist.
            EngineFull: it has no space.
            ValueError: it refuses the secret.
        """
        with self._turn:
            if self._is_closed:
                raise EngineUnavailable(f"{self.uri} is closed")
            with self._errors():
                return getattr(self._client, method)(*arguments, timeout=timeout, **options)

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        with self._turn:
            if not self._is_closed:
                self._is_closed = True
                self._client.close()
                self._release()

    def _release(self) -> None:
        if self.folder is not None:
            _close_lite(self.folder)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("pymilvus", "grpc"):
                raise
            reason = str(getattr(error, "message", None) or error).strip().partition("\n")[0]
            if self._secret:
                reason = reason.replace(self._secret, "…")
            reason = reason if len(reason) <= _REASON else f"{reason[:_REASON]}…"
            if getattr(error, "code", None) in _NOT_THERE:
                raise NotThere(f"{self.uri} lacks a part: {reason}") from None
            said = _all_words(error)
            if _REFUSED.search(said):
                got = "one that it refuses" if self._secret else "none"
                raise ValueError(f"secret must be USER:PASSWORD or a key of {self.uri}, got {got}") from None
            if _NO_RIGHTS.search(said):
                raise ValueError(f"secret must be of a user who may read and write {self.uri}: {reason}") from None
            if _FULL.search(said):
                raise EngineFull(f"{self.uri} has no space left: {reason}") from None
            raise EngineUnavailable(f"{self.uri} cannot be used now: {reason}") from None


def _all_words(error: BaseException | None) -> str:
    """Return the text of an error and of those that led to it."""
    said: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        said.append(str(error))
        error = error.__cause__ if error.__cause__ is not error else error.__context__
    return "\n".join(said)


def split_uri(uri: str) -> tuple[str, str]:
    """Return the file or the address of the server, and the name of the index in it.

    Raises:
        ValueError: the address has another form; a password in it is not shown.
    """
    rest = uri.removeprefix(MILVUS)
    if "://" not in rest:
        if not rest.endswith(".db"):
            raise ValueError(f"index must be {_FORM}, got {uri}")
        return rest, _LITE_NAME
    if "@" in rest:
        raise ValueError(f"index must be {_FORM}, without a user or password, which belong into a file")
    try:
        parts = urlsplit(rest)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"index must be {_FORM}, got {uri}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"index must be {_FORM}, got {uri}")
    name = parts.path.removeprefix("/")
    if not _NAME.fullmatch(name):
        raise ValueError(f"NAME in {_FORM} must be letters, digits and single underscores, got {name!r} in {uri}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port else ""), name


def _open_lite(path: Path, uri: str, *, create: bool) -> AbstractContextManager[Any]:
    """Count a user of a file of Milvus Lite, and return the lock of all its users."""
    try:
        import milvus_lite  # noqa: F401
    except ImportError as error:
        raise ValueError(f"index {uri} needs milvus-lite: pip install 'hystar-fast[milvus]'") from error
    if path.exists() and not path.is_dir():
        raise ValueError(f"index must be a file of Milvus Lite 3, which is a folder, but {path} is another file")
    if not create and not path.is_dir():
        raise ValueError(f"index must exist, but {path} does not: `hystar-fast index create` makes it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lite_lock:
        users, lock = _lite.get(path, (0, threading.RLock()))
        if not users and _is_locked(path / "LOCK"):
            raise EngineUnavailable(
                f"{uri} is open in another process, and Milvus Lite allows one: close that, or use a Milvus server"
            )
        _lite[path] = users + 1, lock
        return lock


def _is_locked(file: Path) -> bool:
    if not file.exists():
        return False
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _close_lite(path: Path) -> None:
    """Take a user away; with the last the file can be opened by another process."""
    with _lite_lock:
        users, lock = _lite[path]
        if users > 1:
            _lite[path] = users - 1, lock
        else:
            from milvus_lite.server_manager import server_manager_instance

            del _lite[path]
            server_manager_instance.release_server(str(path))
