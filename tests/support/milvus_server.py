"""A real Milvus server out of its wheel, in a temporary folder."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

_SECONDS = 120  # that it may take to start
# Milvus waits by the clock: for its ticks, at which a read sees all writes, and for the states of its parts
_FASTER = {
    "proxy.timeTickInterval": "20",
    "queryCoord.checkInterval": "100",
    "queryCoord.distPullInterval": "50",
    "common.session.ttl": "10",
}
_OF_PARENT = 1  # PR_SET_PDEATHSIG
_libc = ctypes.CDLL(None)


class MilvusServer:
    """A server of Milvus, which dies with the process that started it.

    Args:
        folder: for its programs and data.

    Attributes:
        url: where it answers.
        secret: user and password that it takes.
    """

    secret = "root:Milvus"

    def __init__(self, folder: Path) -> None:
        import milvus

        self.folder = folder
        milvus._initialize_data_files(str(folder))
        self._config = milvus.MilvusServerConfig(data_dir=str(folder))
        for key in self._config.configurable_items:
            if key.endswith("_port"):
                self._config.update(**{key: _free_port()})
        self._config.set("authorization_enabled", True)
        for key, value in _FASTER.items():
            self._config.set(key, value)
        self._config.resolve()
        self._give_etcd_ports()
        self.url = f"http://127.0.0.1:{self._config.get('proxy_port')}"
        self._health = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def _give_etcd_ports(self) -> None:
        """Move the etcd in it from 2379 and 2380, so that several servers run on one machine."""
        settings, own = self.folder / "configs" / "milvus.yaml", self.folder / "configs" / "etcd.yaml"
        client, peer = f"http://127.0.0.1:{_free_port()}", f"http://127.0.0.1:{_free_port()}"
        own.write_text(
            f"name: default\ndata-dir: {self.folder}/data/etcd.data\ninitial-cluster: default={peer}\n"
            f"listen-client-urls: {client}\nadvertise-client-urls: {client}\n"
            f"listen-peer-urls: {peer}\ninitial-advertise-peer-urls: {peer}\n"
        )
        with_path = settings.read_text().replace("etcd:\n", f"etcd:\n  config:\n    path: {own}\n", 1)
        settings.write_text(with_path)

    def start(self) -> None:
        """Start it, or start it again with the data that it had."""
        places = {"LD_LIBRARY_PATH": str(self.folder / "bin"), "MILVUS_RUN_DIR": str(self.folder / "run")}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.folder / "bin" / "milvus"), "run", "standalone"],
                cwd=self.folder,
                env={**os.environ, **places, "DEPLOY_MODE": "STANDALONE", "METRICS_PORT": str(self._health)},
                stdout=log,
                stderr=log,
                preexec_fn=lambda: _libc.prctl(_OF_PARENT, signal.SIGKILL),
            )
        end = time.monotonic() + _SECONDS
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > end:
                lines = (self.folder / "log").read_text(errors="replace").splitlines()
                raise RuntimeError("Milvus did not start:\n" + "\n".join(lines[-20:]))
            time.sleep(0.1)

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._health}/healthz", timeout=5) as answer:
                return b"OK" in answer.read()
        except OSError:
            return False

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            Path(f"/tmp/milvus/server_id_{self._process.pid}").unlink(missing_ok=True)  # it always writes this one

    def remove(self) -> None:
        """Kill it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
