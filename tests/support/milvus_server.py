"""A real Milvus server out of its wheel, in a temporary folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from hystar_fast.index.milvus import MilvusEngine
from hystar_fast.index.milvus_address import MilvusAddress
from hystar_fast.index.milvus_connection import Connection
from hystar_fast.index.stamp import Stamp

_SECONDS = 120  # that it may take to start
# Milvus waits by the clock: for its ticks, at which a read sees all writes, for the states of its parts, and after a
# kill for the end of the session that was killed
_FASTER = {
    "proxy.timeTickInterval": "20",
    "queryCoord.checkInterval": "100",
    "queryCoord.distPullInterval": "50",
    "common.session.ttl": "10",
}
_AT_ONCE = 8  # indexes that are made ahead: it loads many in the seconds that it takes for one
# Has Linux kill it when this process ends (PR_SET_PDEATHSIG, SIGKILL), then becomes Milvus. Not by preexec_fn, for
# which Python forks: gRPC has handlers of forks, and a child that met them in the middle of a call aborted.
_TIED = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


class MilvusServer:
    """A server of Milvus, which dies with the process that started it and asks for a secret.

    Attributes:
        folder: of its programs and data.
        url: where it answers.
        secret: a file with the user and password.
    """

    def __init__(self) -> None:
        import milvus

        self.folder = Path(tempfile.mkdtemp(prefix="milvus"))
        self._process: subprocess.Popen[bytes] | None = None
        milvus._initialize_data_files(str(self.folder))
        config = milvus.MilvusServerConfig(data_dir=str(self.folder))
        config.update(**{key: _free_port() for key in config.configurable_items if key.endswith("_port")})
        config.set("authorization_enabled", True)
        for key, value in _FASTER.items():
            config.set(key, value)
        config.resolve()
        self._give_etcd_ports()
        self.url = f"http://127.0.0.1:{config.get('proxy_port')}"
        self._health = _free_port()
        self.secret = self.folder / "secret"
        self.secret.touch(mode=0o600)
        self.secret.write_text("root:Milvus\n")
        self._numbers, self._ready, self._given = count(), list[str](), ""

    def _give_etcd_ports(self) -> None:
        """Move the etcd in it from 2379 and 2380, so that several servers run on one machine."""
        settings, own = self.folder / "configs" / "milvus.yaml", self.folder / "configs" / "etcd.yaml"
        client, peer = f"http://127.0.0.1:{_free_port()}", f"http://127.0.0.1:{_free_port()}"
        own.write_text(
            f"name: default\ndata-dir: {self.folder}/data/etcd.data\ninitial-cluster: default={peer}\n"
            f"listen-client-urls: {client}\nadvertise-client-urls: {client}\n"
            f"listen-peer-urls: {peer}\ninitial-advertise-peer-urls: {peer}\n"
        )
        settings.write_text(settings.read_text().replace("etcd:\n", f"etcd:\n  config:\n    path: {own}\n", 1))

    def start(self) -> None:
        """Start it, or start it again with the data that it had."""
        places = {"LD_LIBRARY_PATH": str(self.folder / "bin"), "MILVUS_RUN_DIR": str(self.folder / "run")}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _TIED, str(self.folder / "bin" / "milvus"), "run", "standalone"],
                cwd=self.folder,
                env={**os.environ, **places, "DEPLOY_MODE": "STANDALONE", "METRICS_PORT": str(self._health)},
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + _SECONDS
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > end:
                lines = (self.folder / "log").read_text(errors="replace").splitlines()
                raise RuntimeError(f"Milvus did not start (exit {self._process.poll()}):\n" + "\n".join(lines[-20:]))
            time.sleep(0.1)

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._health}/healthz", timeout=5) as answer:
                return b"OK" in answer.read()
        except OSError:
            return False

    @property
    def is_running(self) -> bool:
        """True if it was started and not killed since."""
        return self._process is not None

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            Path(f"/tmp/milvus/server_id_{self._process.pid}").unlink(missing_ok=True)  # it always writes this one
            self._process = None

    def remove(self) -> None:
        """Kill it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder)

    def new_uri(self) -> str:
        """Return an address that has no index."""
        return f"milvus:{self.url}/test_{next(self._numbers)}?secret={self.secret}"

    def new_index(self, stamps: Mapping[str, Stamp]) -> str:
        """Return the address of a new index with these stamps, which are those of every other call.

        The one of the call before is removed: Milvus works on every collection that it has.
        """
        if self._given:
            self._remove_index(self._given)
        if not self._ready:
            self._ready = [self.new_uri() for _ in range(_AT_ONCE)]
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for engine in pool.map(lambda uri: MilvusEngine.create(uri, stamps), self._ready):
                    engine.close()
        self._given = self._ready.pop()
        return self._given

    def _remove_index(self, uri: str) -> None:
        connection = Connection(MilvusAddress.parse(uri))
        connection.call("drop_alias", connection.name)
        for name in connection.call("list_collections"):
            if name.startswith(f"{connection.name}__"):
                connection.call("drop_collection", name)
        connection.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
