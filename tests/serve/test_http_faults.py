"""Queues, deadlines, callers that go, slow and large bodies, a lost engine, a changed index, and the stop."""

from __future__ import annotations

import asyncio
import http.client
import io
import itertools
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from hystar_fast.index.engine import EngineFull, EngineUnavailable, Item
from hystar_fast.serve import server as server_module
from hystar_fast.serve.problems import Problem
from hystar_fast.serve.schemas import SearchFields
from hystar_fast.serve.service import Limits
from tests.support import served
from tests.support.repeating import repeating
from tests.support.served import COUNT, drawing, encoded, form, problem, until

PICTURE = encoded(drawing(0))


def read_answer(connection):
    """Read everything that a server sends before it closes the connection."""
    found = b""
    while part := connection.recv(65536):
        found += part
    head, _, body = found.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def request(method, path, *headers, body=b""):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode() + body


def test_requests_that_wait_together_are_one_pass(held):
    running, method = held()
    with ThreadPoolExecutor(17) as pool:
        first = pool.submit(running.search, image=PICTURE)
        assert method.began.wait(10)
        rest = [pool.submit(running.search, image=encoded(drawing(n))) for n in range(1, 9)]
        rest += [pool.submit(running.search, image=encoded(drawing(n)), style=PICTURE) for n in range(9, 17)]
        until(lambda: running.server.service.index.live.encoder.depth == 16)
        method.go_on.set()
        found = [future.result() for future in (first, *rest)]
    assert [call for call in method.calls if call[0] == "encode_image"] == [
        ("encode_image", 1, False),
        ("encode_image", 16, True),
    ]
    assert [answer.json()["timing"]["batch"] for answer in found[1:]] == [16] * 16
    for number, answer in enumerate(found[:9]):
        assert answer.json()["hits"][0]["id"] == f"{number:03}.png"


def test_a_full_queue_is_refused_with_a_time_to_come_back(held):
    running, method = held(limits=Limits(queue=3))
    with ThreadPoolExecutor(3) as pool:
        kept = [pool.submit(running.search, image=PICTURE) for _ in range(3)]
        until(lambda: running.server.service._busy == 3)
        refused = running.search(image=PICTURE)
        assert problem(refused)[:2] == (429, "busy") and int(refused.headers["retry-after"]) >= 1
        queries = {"queries": [{"text": "moon"}] * 2}
        assert problem(running.client.post("v1/search/batch", json=queries))[:2] == (429, "busy")
        method.go_on.set()
        assert [future.result().status_code for future in kept] == [200] * 3
    assert running.search(image=PICTURE).status_code == 200
    assert problem(running.client.post("v1/search/batch", json={"queries": [{"text": "moon"}] * 4}))[1] == "busy"
    assert running.server.service._busy == 0 and running.server.service._held == 0
    assert 'hystar_rejected_total{reason="busy"} 3.0' in running.client.get("metrics").text


def test_a_request_that_is_too_late_is_not_encoded(held):
    running, method = held(limits=Limits(deadline=0.6))
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(running.search, image=PICTURE)
        assert method.began.wait(10)
        late = running.client.post("v1/search", files=form(image=PICTURE), headers={"X-Deadline-Ms": "80"})
        assert problem(late)[:2] == (504, "deadline_passed")
        assert problem(first.result())[:2] == (504, "deadline_passed")  # by the limit of the server
        longer = running.client.post("v1/search", files=form(text="moon"), headers={"X-Deadline-Ms": "60000"})
        assert problem(longer)[:2] == (504, "deadline_passed")  # a caller may not have more
    method.go_on.set()
    assert running.search(image=PICTURE).status_code == 200
    assert [call[:2] for call in method.calls] == [("encode_image", 1)] * 2


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "9" * 30, ""])
def test_a_deadline_is_a_number_of_milliseconds(server, value):
    response = server.client.post("v1/search", files=form(text="moon"), headers={"X-Deadline-Ms": value})
    assert problem(response) == (422, "invalid", "X-Deadline-Ms")


def test_a_caller_that_has_gone_is_not_encoded(held):
    running, method = held()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(running.search, image=PICTURE)
        assert method.began.wait(10)
        body = running.client.build_request("POST", "v1/search", files=form(image=PICTURE))
        content = body.read()
        headers = [f"Content-Type: {body.headers['content-type']}", f"Content-Length: {len(content)}"]
        with running.connect() as gone:
            gone.sendall(request("POST", "/v1/search", *headers, body=content))
            until(lambda: running.server.service._busy == 2)
        until(lambda: running.server.service._busy == 1)
        method.go_on.set()
        assert first.result().status_code == 200
    assert [call[:2] for call in method.calls] == [("encode_image", 1)]
    assert any('"code": 499' in line for line in running.lines)


def test_a_body_that_is_too_large_is_not_read_to_its_end(start):
    running = start(limits=Limits(body=1000))
    for headers in (["Content-Length: 2000000000"], ["Transfer-Encoding: chunked"]):
        with running.connect() as connection:
            connection.sendall(request("POST", "/v1/search", "Content-Type: application/json", *headers))
            if "chunked" in headers[0]:
                connection.sendall(b"500\r\n" + b" " * 0x500 + b"\r\n")
            start_time = time.monotonic()
            assert read_answer(connection)[1]["code"] == "body_too_large"
            assert time.monotonic() - start_time < 3
    refused = running.client.post("v1/search", content=b" " * 1001, headers={"Content-Type": "application/json"})
    assert problem(refused)[:2] == (413, "body_too_large")
    assert running.search(text="moon").status_code == 200
    assert running.server.service._held == 0


def test_slow_headers_and_half_bodies_hold_nobody_up(start, monkeypatch):
    monkeypatch.setattr(server_module, "_HEADER_SECONDS", 0.5)
    running = start(limits=Limits(deadline=0.7, queue=2))
    connections = [running.connect() for _ in range(40)]
    for number, connection in enumerate(connections):
        if number % 2:
            connection.sendall(b"POST /v1/search HTTP/1.1\r\nHost: lo")
        else:
            headers = ["Content-Type: application/json", "Content-Length: 9"]
            connection.sendall(request("POST", "/v1/search", *headers, body=b"{"))
    assert running.search(text="moon").status_code == 200  # while they all wait
    for number, connection in enumerate(connections):
        if number % 2:
            assert connection.recv(100) == b""
        else:
            assert read_answer(connection)[1]["code"] == "body_too_slow"
        connection.close()
    assert running.search(text="moon").status_code == 200


def test_headers_that_are_too_large_and_what_is_no_http_are_refused(server):
    large = server.client.get("healthz", headers={"X": "a" * 20_000})
    assert problem(large)[:2] == (431, "headers_too_large")
    for sent in (b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000, b"\x16\x03\x01 no http\r\n\r\n", b"GET / HTTP/9\r\n\r\n"):
        with server.connect() as connection:
            connection.sendall(sent)
            assert read_answer(connection)[1]["code"] == "bad_request"


def test_one_connection_serves_many_requests(server):
    connection = http.client.HTTPConnection(*server.address, timeout=20)
    for method, path, body, status in (
        ("GET", "/healthz", None, 200),
        ("POST", "/v1/nothing", b"abcdef", 404),
        ("POST", "/v1/search", b"abcdef", 415),
        ("GET", "/readyz", None, 200),
    ):
        connection.request(method, path, body)
        used, answer = connection.sock, connection.getresponse()
        assert (answer.status, bool(answer.read())) == (status, True)
        assert connection.sock is used
    connection.close()


def status_of(connection: socket.socket) -> int:
    """Read one whole answer, however many parts it comes in, and return its status."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer.status


def test_a_connection_with_a_refused_body_stays_open_and_half_headers_after_it_do_not(start, monkeypatch):
    monkeypatch.setattr(server_module, "_HEADER_SECONDS", 0.5)
    monkeypatch.setattr(server_module, "_IDLE_SECONDS", 4)
    running = start()
    head = request("POST", "/v1/nothing", "Content-Length: 6")
    with running.connect() as connection:
        connection.sendall(head)
        assert status_of(connection) == 404
        time.sleep(0.2)
        connection.sendall(b"abcdef")  # the body comes after the answer
        time.sleep(1)  # idle for longer than headers may take
        connection.sendall(head + b"abcdef")
        assert status_of(connection) == 404
        begin = time.monotonic()
        for part in (b"GET /", b"healthz HTTP/1.1\r\nA", b": b\r\n"):  # drop by drop
            connection.sendall(part)
            time.sleep(0.2)
        while connection.recv(65536):
            pass
        assert 0.3 < time.monotonic() - begin < 3


def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_headers(server):
    connection = http.client.HTTPConnection(*server.address, timeout=20)
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        times.append(time.perf_counter() - begin)
    connection.close()
    assert sorted(times)[10] < 0.03


def test_a_lost_engine_is_told_and_comes_back_by_itself(start, monkeypatch):
    running = start()

    def lost(*arguments, **options):
        raise EngineUnavailable("connection to postgresql://me:secret@host refused")

    with monkeypatch.context() as patched:
        for name in ("search", "health", "version", "fetch"):
            patched.setattr(running.engine, name, lost)
        refused = running.search(text="moon")
        assert problem(refused)[:2] == (503, "engine_unavailable") and "retry-after" in refused.headers
        assert "secret" not in refused.text
        assert problem(running.client.get(f"v1/items/{Item('000.png').key}"))[:2] == (503, "engine_unavailable")
        until(lambda: running.client.get("readyz").status_code == 503)
        assert running.client.get("healthz").status_code == 200
        assert "hystar_engine_up 0.0" in running.client.get("metrics").text
    until(lambda: running.client.get("readyz").status_code == 200)
    assert running.search(text="moon").status_code == 200


def test_added_and_removed_pictures_are_seen_within_a_second(start):
    running = start()
    method = {"adapted": served.method(1)}
    added = served.item(running.folder, 99)
    running.engine.upsert([added], served.vectors(method, running.folder, [added]))
    time.sleep(1)
    assert running.search(image=encoded(drawing(99))).json()["hits"][0]["id"] == "099.png"
    assert running.client.get("v1/index").json()["items"] == COUNT + 1
    running.engine.remove([added.key])
    time.sleep(1)
    assert running.search(image=encoded(drawing(99))).json()["hits"][0]["id"] != "099.png"
    assert running.client.get("v1/index").json()["items"] == COUNT


def test_a_switched_generation_brings_its_own_model(start):
    running = start()
    running.client.put("v1/styles/kept", files=form(image=encoded(drawing(9))))
    before = running.search(image=PICTURE).json()
    methods = {"adapted": served.method(5)}
    number = running.engine.create_generation(served.stamps(methods), {})
    items = [item for batch, _ in running.engine.scan() for item in batch]
    running.engine.upsert(items, served.vectors(methods, running.folder, items), number)
    answers = []

    def ask():
        answers.append(running.search(image=encoded(drawing(len(answers) % COUNT)), k=1))

    with repeating(ask) as asking:
        until(lambda: answers or asking[0].done())
        running.engine.switch(number)
        until(lambda: running.search(image=PICTURE).json()["stamp"] != before["stamp"], 5)
    running.engine.drop(1)
    stamps = [answer.json()["stamp"] for answer in answers]
    changes = sum(first != second for first, second in itertools.pairwise(stamps))
    assert len(set(stamps)) <= 2 and changes <= 1
    for number, answer in enumerate(answers):  # a picture finds itself only with the model that indexed it
        (hit,) = answer.json()["hits"]
        assert hit["id"] == f"{number % COUNT:03}.png" and hit["score"] > 0.99999
    assert running.client.get("v1/index").json()["styles"] == []  # styles of another model mean nothing
    assert 'hystar_index_stamp{stamp="' + before["stamp"] not in running.client.get("metrics").text


def test_a_generation_that_is_dropped_under_a_request_is_answered_with_the_next(start):
    running = start()
    index = running.server.service.index
    old = index.live
    methods = {"adapted": served.method(5)}
    number = running.engine.create_generation(served.stamps(methods), {})
    items = [item for batch, _ in running.engine.scan() for item in batch]
    running.engine.upsert(items, served.vectors(methods, running.folder, items), number)
    running.engine.switch(number)
    until(lambda: index.live is not old)
    running.engine.drop(1)
    new, index.live = index.live, old  # as a request that began before the switch

    answerer, deadline = running.server.service.answerer, time.monotonic() + 9

    async def answer(live):
        index.live = new
        return await answerer._answer(live, SearchFields(text="moon"), deadline)

    found = asyncio.run(answerer.with_live(answer, deadline))
    assert found["stamp"] == new.stamps["adapted"]


def test_a_picture_whose_file_is_gone_keeps_its_place(start):
    running = start()
    (running.folder / "003.png").unlink()
    (running.folder / "004.png").write_bytes(b"no picture any more")
    assert running.search(image=encoded(drawing(3))).json()["hits"][0]["id"] == "003.png"
    for name in ("003.png", "004.png"):
        small = running.client.get(f"v1/items/{Item(name).key}/thumbnail")
        assert small.status_code == 200 and small.headers["x-picture"] == "gone"
        assert Image.open(io.BytesIO(small.content)).size == (256, 256)
        assert problem(running.client.get(f"v1/items/{Item(name).key}/picture"))[:2] == (404, "picture_gone")
    assert "hystar_pictures_gone_total 4.0" in running.client.get("metrics").text


def test_stopping_finishes_what_has_begun(held):
    running, method = held()
    with ThreadPoolExecutor(2) as pool:
        begun = pool.submit(running.search, image=PICTURE)
        assert method.began.wait(10)
        running.server.stop()
        with pytest.raises(Problem) as error:
            running.server.service.check_ready()
        assert error.value.code == "stopping"
        time.sleep(0.3)
        method.go_on.set()
        assert begun.result().status_code == 200


def test_an_error_of_the_server_is_in_its_log_without_the_words_of_the_query(start, monkeypatch):
    running = start()

    def broken(*arguments, **options):
        raise RuntimeError("while looking for a secret moon")

    monkeypatch.setattr(running.engine, "search", broken)
    assert problem(running.search(text="a secret moon"))[:2] == (500, "internal")
    until(lambda: running.lines)
    line = json.loads(running.lines[-1])
    assert line["code"] == 500 and line["error"] == "RuntimeError" and "test_http_faults.py" in line["at"][-1]
    assert "secret" not in "".join(running.lines)


def test_the_disk_of_the_index_is_full(start, monkeypatch):
    running = start()

    def full(*arguments):
        raise EngineFull("no space")

    monkeypatch.setattr(running.engine, "put_style", full)
    assert problem(running.client.put("v1/styles/a", files=form(image=PICTURE)))[:2] == (507, "engine_full")
    assert running.search(text="moon").status_code == 200
