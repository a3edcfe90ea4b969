"""``hystar-fast serve`` as a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

_START = 180.0  # seconds, on a machine with much other work


class Process:
    """A running ``hystar-fast serve``.

    Attributes:
        process: it.
        url: its address.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._out, self._log = folder / "out.txt", folder / "log.txt"
        command = [sys.executable, "-m", "hystar_fast", "serve", *arguments]
        with self._out.open("w") as out, self._log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=out, stderr=log)
        end = time.monotonic() + _START
        while (found := re.search(r"http://\S+", self.out)) is None:
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise RuntimeError(f"the server did not start: {self.out}{self.log}")
            time.sleep(0.05)
        self.url = found[0]

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False)


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Process]:
    """Run ``hystar-fast serve`` with arguments while a block runs; what it prints goes into a folder."""
    running = Process(folder, *arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
