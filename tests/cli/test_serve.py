"""``hystar-fast serve`` as a process: its start, its errors, its stop, and a kill."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from hystar_fast.index.local import LocalEngine
from hystar_fast.methods.adapter_files import save_method
from hystar_fast.methods.suite import create_hystar, tiny_config
from hystar_fast.serve.server import ServerSettings
from hystar_fast.serve.service import Limits
from tests.support.cli import refused, run
from tests.support.repeating import repeating
from tests.support.served import drawing, encoded, form, problem, until
from tests.support.served_process import Process, serving

COUNT = 12


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Index drawings with the frozen tiny backbone."""
    folder = tmp_path_factory.mktemp("index")
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(COUNT):
        (pictures / f"{number:03}.png").write_bytes(encoded(drawing(number)))
    result = run("embed", pictures, "--output", folder / "made", "--device", "cpu")
    assert result.exit_code == 0, result.output
    return folder / "made"


@pytest.mark.slow
def test_it_answers_sees_what_is_indexed_beside_it_and_stops_with_status_0(index, tmp_path):
    with serving(tmp_path, str(index), "--port", "0") as running:
        assert f"serving {index}, {COUNT} pictures: {running.url} (Ctrl-C stops)" in running.out
        with running.client() as client:
            answer = client.post("v1/search", files=form(image=encoded(drawing(3)), k=2)).json()
            assert answer["hits"][0]["id"] == "003.png" and answer["hits"][0]["score"] > 0.9999
            assert client.get(f"v1/items/{answer['hits'][0]['key']}/picture").content == encoded(drawing(3))
            assert client.post("v1/search", files=form(text="a moon")).status_code == 200
            styled = client.put("v1/styles/a", files=form(image=encoded(drawing(3))))
            assert problem(styled) == (422, "invalid", "style")  # the frozen backbone has none
            place = index.parent / "pictures" / "more.png"
            place.write_bytes(encoded(drawing(51)))
            assert run("index", "sync", index, "--device", "cpu").exit_code == 0
            more = form(image=encoded(drawing(51)))
            until(lambda: client.post("v1/search", files=more).json()["hits"][0]["id"] == "more.png", 60)
            place.unlink()
            assert run("index", "sync", index).exit_code == 0
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(15) == 0
        assert running.out.endswith("stopped\n")
        assert '"route": "/v1/search", "code": 200' in running.log and "Traceback" not in running.log


@pytest.mark.slow
def test_it_is_killed_starts_again_and_stops_within_ten_seconds_whoever_is_connected(index, tmp_path):
    options = (str(index), "--port", "0", "--allow-writes")
    with serving(tmp_path, *options) as running, running.client() as client:
        added = client.post("v1/items", files=form(image=encoded(drawing(50)), id="fifty"))
        assert added.status_code == 201
        running.process.kill()
        running.process.wait()
    assert run("index", "verify", index).exit_code == 0
    assert run("index", "sync", index).exit_code == 0
    with serving(tmp_path, *options) as running, running.client() as client:
        assert client.get("readyz").status_code == 200
        hits = client.post("v1/search", files=form(image=encoded(drawing(50)))).json()["hits"]
        assert hits[0]["id"] == "fifty"
        assert client.delete(f"v1/items/{hits[0]['key']}").json() == {"removed": 1}
        stop_under_load(running, client)


@pytest.mark.slow
def test_another_model_is_embedded_switched_to_and_the_old_one_dropped_while_it_is_asked(index, tmp_path):
    mine = shutil.copytree(index, tmp_path / "index")
    save_method(create_hystar(tiny_config(None), seed=5), tmp_path / "adapter")
    with LocalEngine(mine) as engine:
        old = engine.stamps()["frozen"].sha256
    codes, stamps = [], []

    with serving(tmp_path, str(mine), "--port", "0") as running, running.client() as client:

        def ask() -> None:
            number = len(codes) % COUNT
            found = client.post("v1/search", files=form(image=encoded(drawing(number)), k=1))
            codes.append(found.status_code)
            if found.status_code == 200:
                stamps.append(found.json()["stamp"])
                (hit,) = found.json()["hits"]
                assert hit["id"] == f"{number:03}.png" and hit["score"] > 0.9999, "of one model alone"

        with repeating(ask, threads=2) as asking:
            for command in (
                ("reembed", mine, "--adapter", tmp_path / "adapter"),
                ("switch", mine),
                ("drop", mine, "1"),
            ):
                done = run("index", *command)
                assert done.exit_code == 0, done.output
            until(lambda: stamps[-10:].count(old) == 0 or any(one.done() for one in asking), 60)
        with LocalEngine(mine) as engine:
            new = engine.stamps()["adapted"].sha256
        answer = client.post("v1/search", files=form(image=encoded(drawing(1)))).json()
    assert set(codes) == {200} and answer["stamp"] == new
    assert {*stamps} == {old, new}
    last = len(stamps) - 1 - stamps[::-1].index(old)
    assert last - stamps.index(new) <= 1, "of two that ask, one may still wait for its answer"


def stop_under_load(running: Process, client: httpx.Client) -> None:
    """Stop a server while some ask and others never finish their request."""
    url = httpx.URL(running.url)
    half = [socket.create_connection((url.host, url.port)) for _ in range(6)]
    for number, connection in enumerate(half):
        end = b"\r\n{" if number % 2 else b""  # half a body, or half the headers
        connection.sendall(b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n" + end)

    def ask(number: int) -> int:
        try:
            return client.post("v1/search", files=form(image=encoded(drawing(number % COUNT)))).status_code
        except httpx.TransportError:  # it came after the stop
            return 0

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, number) for number in range(24)]
        until(asked[0].done, 60)
        start = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(15) == 0
        assert time.monotonic() - start < 10
        codes = [future.result() for future in asked]
    assert set(codes) <= {200, 0, 503} and codes[0] == 200
    for connection in half:
        connection.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--host must be 127.0.0.1, ::1 or localhost without --token-file"),
        (["--token-file", "none"], "--token-file must be a text file of tokens"),
        (["--device", "tpu"], "--device must be auto, cpu or cuda"),
        (["--port", "70000"], "--port"),
        (["--deadline", "0"], "--deadline"),
    ],
)
def test_wrong_options_are_one_line(index, options, words):
    assert words in refused("serve", index, *options)


def test_a_port_in_use_and_a_folder_without_an_index(index, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port must be free on 127.0.0.1, got {port}" in refused("serve", index, "--port", port)
    assert "First index your pictures" in refused("serve", tmp_path)


def test_its_options_are_those_of_the_server(index, monkeypatch):
    found: list[ServerSettings] = []
    monkeypatch.setattr("hystar_fast.serve.server.serve_index", lambda uri, settings, say: found.append(settings))
    options = ("--max-wait-ms", "2.5", "--encoders", "2", "--queue", "9", "--deadline", "3", "--max-body", "2")
    assert run("serve", index, *options, "--max-pixels", "5", "--device", "cpu", "--allow-writes").exit_code == 0
    assert found == [
        ServerSettings(limits=Limits(2 * 2**20, 5_000_000, 9, 3.0), encoders=2, max_wait=0.0025, allow_writes=True)
    ]
    assert run("serve", index, "--device", "cpu").exit_code == 0
    assert found[1].max_wait == 0.0015


def test_a_server_that_cannot_start_says_so(index, tmp_path):
    with pytest.raises(RuntimeError, match="did not start"):
        Process(tmp_path, str(index), "--host", "0.0.0.0")


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "fastapi":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
sys.meta_path.insert(0, Missing())
sys.argv = ["hystar-fast", *sys.argv[1:]]
from hystar_fast.cli.main import app
app()
"""


@pytest.mark.slow
def test_a_missing_extra_is_one_line_that_says_how_to_install_it(index):
    command = [sys.executable, "-c", WITHOUT]
    done = subprocess.run([*command, "serve", str(index)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: serve needs fastapi, which is not installed: pip install 'hystar-fast[serve]'\n"
    done = subprocess.run(
        [*command, "search", "--index", str(index), "--text", "moon"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr  # everything else works without it
