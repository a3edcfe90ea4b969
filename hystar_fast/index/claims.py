"""Claims on pieces of work by processes that share a folder, on any machines.

A claim is a file ``NAME.0`` that its holder creates with O_EXCL, and rewrites every few seconds. The file is judged by
whether it changes while the watcher's own clock runs, so the clocks of two machines are never compared: who sees no
change for a minute takes the holder for dead, and claims ``NAME.1``. No file is renamed or replaced, so of two thieves
only one creates the next claim. Files are opened to be read, because a network file system looks for a newer content
then, and may show old times to who only asks for them.

A claim saves work and is not what makes it right: a holder that was merely asleep ends up doing what another has done
again. The work must therefore be such that a second result in the place of the first is no loss.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

BEAT, STOLEN_AFTER = 5.0, 60.0
"""Seconds between two changes of a claim, and without one until it is stolen."""
_WIDTH = 400  # bytes of a claim, so that a rewrite covers all of it


@dataclass(frozen=True)
class Holder:
    """The holder of a claim: its process, and how many pictures it has done in how many seconds.

    `silent` is how many seconds ago the watcher saw it change.
    """

    name: str
    process: str
    done: int
    seconds: float
    silent: float


class Claim:
    """A piece of work that this process holds while a block runs.

    Attributes:
        name: of the piece.
        done: pictures done; shown to the other processes.
    """

    def __init__(self, place: Path, name: str, handle: int, beat: float) -> None:
        self.name, self.done = name, 0
        self._place, self._handle, self._beat = place, handle, beat
        self._start, self._beats, self._token = time.monotonic(), 0, secrets.token_hex(4)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Claim:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._handle)
        stem, _, last = self._place.name.rpartition(".")
        for number in range(int(last) + 1):  # those that were stolen, then this one
            self._place.with_name(f"{stem}.{number}").unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._ended.wait(self._beat):
            with contextlib.suppress(OSError):  # unwritten, it is stolen if that goes on
                self._write()

    def _write(self) -> None:
        self._beats += 1
        content = {
            "process": process_name(),
            "token": self._token,
            "beat": self._beats,
            "done": self.done,
            "seconds": round(time.monotonic() - self._start, 3),
        }
        os.pwrite(self._handle, json.dumps(content).encode().ljust(_WIDTH), 0)
        os.fsync(self._handle)


@dataclass
class Claims:
    """The claims in a folder, as one process sees them.

    Attributes:
        folder: of the claims; it is created if needed.
        beat, stolen_after: see `BEAT`.
    """

    folder: Path
    beat: float = BEAT
    stolen_after: float = STOLEN_AFTER
    _seen: dict[str, tuple[bytes, float]] = field(default_factory=dict)

    def take(self, names: Iterable[str]) -> Claim | None:
        """Claim the first of some pieces that nobody holds, or whose holder is dead; None if there is none.

        The caller must look whether the piece has just been done before it begins.

        Raises:
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        last, wanted = self._last(), [*names]
        # all are looked at, so that a dead one is known before its turn comes
        living = {name for name in wanted if name in last and not self._is_dead(f"{name}.{last[name]}")}
        for name in wanted:
            if name in living:
                continue
            place = self.folder / f"{name}.{last.get(name, -1) + 1}"
            with contextlib.suppress(FileExistsError):
                handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                return Claim(place, name, handle, self.beat)
        return None

    def holders(self) -> list[Holder]:
        """Return the holders of all claims, the dead ones too."""
        found = []
        for name, number in self._last().items():
            try:
                content = (self.folder / f"{name}.{number}").read_bytes()
                said = json.loads(content)
                counts = (int(said["done"]), float(said["seconds"]), self._silence(f"{name}.{number}", content))
                found.append(Holder(name, str(said["process"]), *counts))
            except (OSError, ValueError, KeyError, TypeError):  # released or being written
                continue
        return found

    def _last(self) -> dict[str, int]:
        """Return the greatest number of each piece that has a claim."""
        found: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError):
            for entry in os.listdir(self.folder):
                name, _, number = entry.rpartition(".")
                if name and number.isdecimal():
                    found[name] = max(found.get(name, -1), int(number))
        return found

    def _is_dead(self, entry: str) -> bool:
        try:
            content = (self.folder / entry).read_bytes()
        except FileNotFoundError:  # released
            self._seen.pop(entry, None)
            return False
        return self._silence(entry, content) >= self.stolen_after

    def _silence(self, entry: str, content: bytes) -> float:
        """Return for how many seconds a claim has had its content, as far as this process has seen."""
        now = time.monotonic()
        earlier = self._seen.get(entry)
        if earlier is None or earlier[0] != content:
            self._seen[entry] = content, now
            return 0.0
        return now - earlier[1]


def process_name() -> str:
    """Return the name of this process among those on all machines."""
    return f"{socket.gethostname()}:{os.getpid()}"
