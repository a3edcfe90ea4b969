"""5,000 random bodies: no answer or line of the log is an error of the server, no thread is lost, no memory is kept."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import random
import threading
from pathlib import Path

import pytest

from hystar_fast.index.engine import Item
from tests.support.served import drawing, encoded

COUNT = 5000
MOST_GROWTH = 60 * 2**20  # bytes
KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
PICTURES = [encoded(drawing(0).resize((20, 16)), kind) for kind in KINDS]
NAMES = ["image", "text", "style", "combine", "k", "where", "view", "compare", "queries", "id", "attributes"]
NAMES += ["", "\x00", "é"]
WORDS = ["moon", "", " ", "0", "1", "-1", "101", "1e3", "nan", "true", "null", "softmax", "adapted", "frozen"]
WORDS += ["a" * 1200, "parity=1", "kind in (odd, 'even number')", "path^=0", "x=y", "and and", "'", '"', "\\"]
WORDS += [
    "\udc80",
    "\ud800",
    "🌙" * 40,
    "' OR 1=1 --",
    "../..",
    "%00",
    "\x00",
    "{}",
    "[]",
    "<script>",
    "\r\n\r\n",
    "--x--",
]
VALUES = [*WORDS, None, 0, 5, -1, 2**70, 1.5, 1e308, True, [], {}, [1], {"image": "AAAA"}, [[[]]], {"text": "moon"}]
PATHS = ["/v1/search"] * 6 + ["/v1/search/batch", "/v1/embed", "/v1/items"]


def damaged(chance, content):
    """Return bytes with some cut, turned, doubled or made up."""
    content = bytearray(content)
    for _ in range(chance.choice((0, 0, 1, 1, 3, 20))):
        place = chance.randrange(len(content) + 1)
        match chance.randrange(5):
            case 0:
                del content[place:]
            case 1:
                content[place:place] = chance.randbytes(chance.randrange(40))
            case 2 if content:
                content[place % len(content)] ^= 1 << chance.randrange(8)
            case 3:
                del content[place : place + chance.randrange(30)]
            case 4:
                content += content[place : place + 100]
    return bytes(content)


def form(chance):
    boundary = chance.choice(("x", "----abc", "a" * 70))
    parts = []
    for _ in range(chance.choice((0, 1, 2, 2, 3, 6, 30))):
        name, value = chance.choice(NAMES), chance.choice(WORDS).encode("utf-8", "surrogatepass")
        head = f'Content-Disposition: form-data; name="{name}"'
        if chance.random() < 0.5:
            name, value = chance.choice(("image", "image", "style")), damaged(chance, chance.choice(PICTURES))
            head = f'Content-Disposition: form-data; name="{name}"; filename="a.png"\r\nContent-Type: image/png'
        if chance.random() < 0.1:
            head += f"\r\nContent-Transfer-Encoding: {chance.choice(('base64', 'quoted-printable', '8bit', 'x'))}"
        parts.append(f"--{boundary}\r\n{head}\r\n\r\n".encode() + value + b"\r\n")
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    kind = f"multipart/form-data; boundary={boundary}"
    return kind, damaged(chance, body) if chance.random() < 0.3 else body


def document(chance):
    def query():
        found = {chance.choice(NAMES): chance.choice(VALUES) for _ in range(chance.randrange(5))}
        if chance.random() < 0.5:
            found["image"] = base64.b64encode(damaged(chance, chance.choice(PICTURES))).decode()
        return found

    content = query()
    if chance.random() < 0.3:
        content["queries"] = [chance.choice((query(), chance.choice(VALUES))) for _ in range(chance.randrange(5))]
    if chance.random() < 0.1:
        content = chance.choice(VALUES)
    body = json.dumps(content).encode()
    return "application/json", damaged(chance, body) if chance.random() < 0.3 else body


def other(chance):
    kind = chance.choice(("", "text/plain", "application/json", "application/x-www-form-urlencoded", "image/png"))
    kind = chance.choice((kind, "multipart/form-data", "multipart/form-data; boundary=", "a" * 500, "multipart/x; ="))
    return kind, chance.choice((b"", b"text=moon&k=3", chance.randbytes(200), chance.choice(PICTURES), b"\0" * 1000))


def memory():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
def test_5000_random_bodies(start, capfd, caplog):
    running = start(allow_writes=True)
    chance = random.Random(0)
    connection = http.client.HTTPConnection(*running.address, timeout=30)
    codes: dict[int, int] = {}
    before = 0
    for number in range(COUNT):
        kind, body = chance.choice((form, form, document, document, other))(chance)
        headers = {"Content-Type": kind} if kind else {}
        connection.request("POST", chance.choice(PATHS), body, headers)
        response = connection.getresponse()
        content = json.loads(response.read())
        codes[response.status] = codes.get(response.status, 0) + 1
        assert response.status < 500, (number, kind, body[:300], content)
        if response.status >= 400:
            assert {"status", "code", "detail"} <= set(content)
        if number == COUNT // 4:
            before, threads = memory(), threading.active_count()
    assert memory() - before < MOST_GROWTH
    assert threading.active_count() == threads
    assert set(codes) >= {200, 201, 400, 415, 422} and codes[200] > COUNT / 50, codes
    assert len(running.lines) >= COUNT and not [line for line in running.lines if "error" in line]
    said = "".join(capfd.readouterr())  # by threads, too
    assert "Traceback" not in said and [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert running.search(image=encoded(drawing(3))).json()["hits"][0]["key"] == Item("003.png").key
    service = running.server.service
    assert service._busy == 0 and service._held == 0 and service.answerer.decoder._free == 80_000_000
