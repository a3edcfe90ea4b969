"""A connection to Milvus: calls that end in time, errors in our words, one process for a file of Milvus Lite."""

from __future__ import annotations

import fcntl
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hystar_fast.index.engine import EngineFull, EngineUnavailable
from hystar_fast.index.milvus_address import MilvusAddress

READ, LOAD = 10.0, 120.0  # seconds that a call, and the loading of a collection, may take
_NOT_THERE = (100, 1600)  # codes of a collection and of an alias that do not exist
_REFUSED = re.compile(r"UNAUTHENTICATED|auth check failure|not authenticated", re.I)
_NO_RIGHTS = re.compile(r"PERMISSION_DENIED|permission deny", re.I)
_FULL = re.compile(r"quota (exceeded|exhausted)|no space left|disk full", re.I)
_REASON = 300  # characters of an error of Milvus

_lite_lock = threading.Lock()
# the files of Milvus Lite that are open in this process: their users, and the lock of these
_lite: dict[Path, tuple[int, AbstractContextManager[Any]]] = {}


class NotThere(EngineUnavailable):
    """A collection or an alias does not exist."""


class Connection:
    """A client of Milvus.

    Args:
        address: of the index.
        create: make the file of Milvus Lite if it is not there.

    Raises:
        ValueError: the server refuses the secret, or there is no file.
        EngineUnavailable: the server cannot be reached, or another process has the file open.
        ModuleNotFoundError: the extra `milvus` is not installed.

    Attributes:
        uri: the address; without a secret.
        name: of the index, in Milvus.
        is_lite: whether it is Milvus Lite.
    """

    def __init__(self, address: MilvusAddress, *, create: bool = False) -> None:
        self.uri, self.name = address.uri, address.name
        self._secret, self._file, self._is_closed = address.secret, address.file, False
        self.is_lite = self._file is not None
        client = _client_class()
        # Lite takes one call after the other
        self._turn = nullcontext() if self._file is None else _open_file(self._file, self.uri, create=create)
        try:
            with self._errors():
                place = address.server if self._file is None else str(self._file)
                self._client = client(place, token=self._secret, dedicated=True, timeout=READ)
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
                limit = LOAD if self.is_lite else timeout  # Lite computes in this process, which may be busy
                return getattr(self._client, method)(*arguments, timeout=limit, **options)

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        with self._turn:
            if not self._is_closed:
                self._is_closed = True
                self._client.close()
                self._release()

    def _release(self) -> None:
        if self._file is not None:
            _close_file(self._file)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("pymilvus", "grpc"):
                raise
            raise self._ours(error) from None

    def _ours(self, error: Exception) -> Exception:
        """Return the error of ours that says what one of Milvus does, in one line and without the secret."""
        reason = str(getattr(error, "message", None) or error).strip().partition("\n")[0]
        if self._secret:
            reason = reason.replace(self._secret, "…")
        reason = reason if len(reason) <= _REASON else f"{reason[:_REASON]}…"
        said = _all_words(error)
        if getattr(error, "code", None) in _NOT_THERE:
            return NotThere(f"{self.uri} lacks a part: {reason}")
        if _REFUSED.search(said):
            got = "one that it refuses" if self._secret else "none"
            return ValueError(f"secret must be USER:PASSWORD or a key of {self.uri}, got {got}")
        if _NO_RIGHTS.search(said):
            return ValueError(f"secret must be of a user who may read and write {self.uri}: {reason}")
        if _FULL.search(said):
            return EngineFull(f"{self.uri} has no space left: {reason}")
        return EngineUnavailable(f"{self.uri} cannot be used now: {reason}")


def _client_class() -> Any:
    try:
        import pymilvus
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    # its errors come back as ours, in one line; it would print each with a traceback
    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return pymilvus.MilvusClient


def _not_installed(error: ModuleNotFoundError) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"an index in Milvus needs {error.name}, which is not installed: pip install 'hystar-fast[milvus]'"
    )


def _all_words(error: BaseException | None) -> str:
    """Return the text of an error and of those that led to it."""
    said: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        said.append(str(error))
        error = error.__context__ if error.__cause__ in (None, error) else error.__cause__
    return "\n".join(said)


def _open_file(path: Path, uri: str, *, create: bool) -> AbstractContextManager[Any]:
    """Count a user of a file of Milvus Lite, and return the lock of all its users."""
    try:
        import milvus_lite  # noqa: F401
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    if path.exists() and not path.is_dir():
        raise ValueError(f"index must be a file of Milvus Lite 3, which is a folder, but {path} is another file")
    if not create and not path.is_dir():
        raise ValueError(f"index must exist, but there is no {path}: `hystar-fast index create` makes it")
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


def _close_file(path: Path) -> None:
    """Take a user away; with the last the file can be opened by another process."""
    from milvus_lite.server_manager import server_manager_instance

    with _lite_lock:
        users, lock = _lite.pop(path)
        if users > 1:
            _lite[path] = users - 1, lock
        else:
            server_manager_instance.release_server(str(path))
