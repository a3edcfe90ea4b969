"""Check every request (host, origin, token, room, length); give every answer an id, headers, a count and a log line."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from hystar_fast.serve.problems import MEDIA_TYPE, Problem, problem_of
from hystar_fast.serve.security import HEADERS, WRITE, Hosts, Tokens
from hystar_fast.serve.telemetry import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/healthz", "/readyz")
"""Paths that tell nothing: any Host header, no token."""
PROTECTED = ("/v1/", "/metrics")
"""Beginnings of the paths that need a token."""
_WITH_BODIES = ("POST", "PUT")
_SAFE = ("GET", "OPTIONS")
LARGEST_HEADERS = 16 * 1024  # bytes
_RUN, _NUMBERS = secrets.token_hex(4), count()  # of the ids of requests
_LINGER = 1.0  # seconds in which the rest of a refused body is thrown away, so that the client reads the answer
_DISCARDED = 2**20  # bytes of a body that are thrown away without closing the connection


@dataclass(frozen=True)
class Door:
    """An ASGI application around another.

    Attributes:
        app: the application.
        tokens, hosts: who may ask.
        check_room: raises if no more queries can be answered; a request is refused here, before it is routed or its
            body is read, as most of a flood is refused and what that costs is taken from those that are answered.
        metrics: gets a count and a time of every request.
        largest_body: in bytes.
        log: called with one line of JSON for every request.
    """

    app: App
    tokens: Tokens
    hosts: Hosts
    check_room: Callable[[], None]
    metrics: Metrics
    largest_body: int
    log: Callable[[str], object]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        passage = _Passage(scope, receive, send, time.monotonic())
        if scope["method"] == "HEAD":  # as GET; what sends the answer leaves its body out
            scope = {**scope, "method": "GET"}
        try:
            self._check(scope, passage)
            await self.app(scope, passage.receive, passage.send)
        except Exception as error:
            passage.error = error
            if passage.status == 0:
                await send_problem(problem_of(error), passage.send)
        await passage.finish()
        self._record(scope, passage)

    def _check(self, scope: Scope, passage: _Passage) -> None:
        path, headers = scope["path"], passage.headers
        if sum(len(name) + len(value) for name, value in scope["headers"]) > LARGEST_HEADERS:
            raise Problem("headers_too_large", f"the headers must have at most {LARGEST_HEADERS} bytes")
        if path not in OPEN:
            self.hosts.check(headers.get("host", ""))
            if "origin" in headers and scope["method"] not in _SAFE:
                self.hosts.check_origin(headers["origin"])
        scope["right"] = WRITE
        if path.startswith(PROTECTED):
            scope["right"] = self.tokens.right(headers.get("authorization", ""))
            if scope["method"] in _WITH_BODIES:
                self.check_room()
        if passage.length > self.largest_body:
            raise Problem("body_too_large", f"the body must have at most {self.largest_body} bytes")

    def _record(self, scope: Scope, passage: _Passage) -> None:
        route, spent = getattr(scope.get("route"), "path", "other"), time.monotonic() - passage.start
        self.metrics.requests.labels(route, passage.status).inc()
        self.metrics.total.labels(route).observe(spent)
        line = {"id": passage.id, "route": route, "code": passage.status, "ms": round(1000 * spent, 1)}
        if passage.error is not None and passage.status >= 500 and problem_of(passage.error).code == "internal":
            places = traceback.extract_tb(passage.error.__traceback__)[-3:]  # its message might hold words of a query
            line["error"] = type(passage.error).__name__
            line["at"] = [f"{place.filename}:{place.lineno}" for place in places]
        self.log(json.dumps(line))


class _Passage:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, start: float) -> None:
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self.start, self.id, self.status = start, f"{_RUN}{next(_NUMBERS):08x}", 0
        self.error: Exception | None = None
        self._receive, self._send = receive, send
        length = self.headers.get("content-length", "")
        self.length = int(length) if length.isdigit() else 0
        self._has_unknown_length = "transfer-encoding" in self.headers
        self._is_read = not self.length and not self._has_unknown_length
        self._last: Message | None = None

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._is_read = True
        return message

    async def send(self, message: Message) -> None:
        """Send a message with the headers of every answer; hold the last one back while a body still comes in."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._must_close = not self._is_read and (self._has_unknown_length or self.length > _DISCARDED)
            added = {**HEADERS, "X-Request-Id": self.id, **({"Connection": "close"} if self._must_close else {})}
            set_already = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *((n.lower().encode(), v.encode()) for n, v in added.items() if n.lower().encode() not in set_already),
            ]
        elif self._must_close and not message.get("more_body", False):
            self._last = {"type": "http.response.body", "body": b"", "more_body": False}
            message = {**message, "more_body": True}
        await self._send(message)

    async def finish(self) -> None:
        """Throw away what still comes in for a moment, then end the answer and with it the connection."""
        if self._last is None:
            return
        try:
            async with asyncio.timeout(_LINGER):
                while not self._is_read:
                    await self.receive()
        except TimeoutError:
            pass
        await self._send(self._last)


async def send_problem(problem: Problem, send: Send) -> None:
    """Send a problem document."""
    body = json.dumps(problem.document()).encode()
    headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body)), **problem.headers}
    start = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": start})
    await send({"type": "http.response.body", "body": body})
