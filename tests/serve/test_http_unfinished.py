"""Answers that are never read, and pictures that are written when their request has been refused already."""

from __future__ import annotations

import socket
import threading
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from uvicorn.protocols.http.h11_impl import H11Protocol

from hystar_fast.index.engine import Item
from hystar_fast.serve import server as server_module
from tests.support import served
from tests.support.served import COUNT, drawing, encoded, form, problem, until


@pytest.fixture
def connections(monkeypatch):
    """Return the connections of a server that are open."""
    found = set()

    class Counted(server_module._Protocol):
        def connection_made(self, transport):
            super().connection_made(transport)
            found.add(self)

        def connection_lost(self, exc):
            super().connection_lost(exc)
            found.discard(self)

    monkeypatch.setattr(server_module, "_Protocol", Counted)
    return found


def test_a_client_that_does_not_read_its_answer_is_left(start, monkeypatch, connections):
    monkeypatch.setattr(server_module, "_UNREAD_SECONDS", 0.5)
    running = start()
    noise = np.random.default_rng(0).integers(0, 256, (1700, 1700, 3), dtype=np.uint8)
    path = running.folder / "large.png"
    path.write_bytes(encoded(Image.fromarray(noise)))  # more than the buffers of both sides hold
    item = Item("large.png", "pictures", "large.png")
    running.engine.upsert([item], served.vectors({"adapted": served.method(1)}, running.folder, [item]))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(running.address)
        client.sendall(f"GET /v1/items/{item.key}/picture HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        until(lambda: connections)
        until(lambda: not connections)
        assert running.client.get(f"v1/items/{item.key}/picture").content == path.read_bytes()
    assert [line for line in running.lines if "picture" in line], "both requests have ended"


@pytest.mark.parametrize(("unread", "ended"), [(0, "close"), (1, "abort")])
def test_a_connection_that_is_closed_for_its_time_does_not_wait_for_what_is_unread(monkeypatch, unread, ended):
    protocol = object.__new__(server_module._Protocol)
    protocol.transport = Mock()
    protocol.transport.get_write_buffer_size.return_value = unread
    monkeypatch.setattr(H11Protocol, "timeout_keep_alive_handler", lambda self: None)
    protocol.timeout_keep_alive_handler()
    assert [name for name, *_ in protocol.transport.method_calls] == ["get_write_buffer_size", ended]


def test_a_picture_that_is_written_too_late_is_told_and_added_once(start, monkeypatch):
    running = start(allow_writes=True)
    go_on, upsert = threading.Event(), running.engine.upsert

    def slow(*arguments):
        go_on.wait(20)
        upsert(*arguments)

    monkeypatch.setattr(running.engine, "upsert", slow)
    fields = form(image=encoded(drawing(50)))
    late = running.client.post("v1/items", files=fields, headers={"X-Deadline-Ms": "500"})
    assert problem(late)[:2] == (504, "deadline_passed")
    assert "where it may be now: send the same request again, which adds it once" in late.json()["detail"]
    go_on.set()
    until(lambda: running.engine.count() == COUNT + 1)
    again = running.client.post("v1/items", files=fields)
    assert again.status_code == 201 and running.engine.count() == COUNT + 1


def test_a_file_that_a_kill_left_without_an_item_is_removed_at_the_next_start(tmp_path):
    engine = served.make_index(tmp_path, {"adapted": served.method(1)})
    left = tmp_path / "index" / "added" / f"{'0' * 64}.png"
    left.parent.mkdir()
    left.write_bytes(encoded(drawing(60)))
    with served.serve(engine, tmp_path / "pictures"):
        assert left.exists(), "a server that may not write removes nothing"
    with served.serve(engine, tmp_path / "pictures", allow_writes=True) as running:
        assert not left.exists()
        assert running.search(image=encoded(drawing(3))).json()["hits"][0]["id"] == "003.png"
