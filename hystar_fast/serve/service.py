"""Run a request: its deadline, its body, its place among those that are answered, and its caller, who may go."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel

from hystar_fast.serve.answering import Answerer
from hystar_fast.serve.live_index import LiveIndex
from hystar_fast.serve.pictures import Pictures
from hystar_fast.serve.problems import Problem, problem_of
from hystar_fast.serve.requests import read_fields
from hystar_fast.serve.security import WRITE
from hystar_fast.serve.telemetry import Metrics

CALLER_GONE = 499
_DEADLINE = "X-Deadline-Ms"
_PARSED_AT_ONCE = 2**18  # bytes of a body that is parsed without a thread
_BODIES = 16  # largest bodies that are held at a time
Fields = TypeVar("Fields", bound=BaseModel)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """The most that a request may ask for.

    Attributes:
        body: bytes.
        pixels: of one picture.
        queue: queries that are answered at a time.
        deadline: seconds from the request's headers to its answer; a header may lower it.
    """

    body: int = 16 * 2**20
    pixels: int = 40_000_000
    queue: int = 256
    deadline: float = 10.0


@dataclass
class Service:
    """Everything that the routes use.

    Attributes:
        index: the index.
        answerer: of queries.
        pictures: of the items.
        metrics: of the server.
        limits: of requests.
        allows_writes: whether items may be added and removed.
        is_stopping: set when no more requests are to come.
    """

    index: LiveIndex
    answerer: Answerer
    pictures: Pictures
    metrics: Metrics
    limits: Limits
    allows_writes: bool = False
    is_stopping: bool = False
    side: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="side"))
    _busy: int = 0
    _held: int = 0  # bytes of bodies

    def close(self) -> None:
        """Finish what waits, and end all threads."""
        self.side.shutdown(cancel_futures=True)
        self.index.close()
        self.answerer.close()

    async def aside(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run a function beside the queries: reading items and picture files, and writing.

        Raises:
            Problem, or an error of which `problem_of` makes none.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self.side, work, *arguments)
        except Exception as error:
            raise self.told(error) from error

    def told(self, error: Exception) -> Exception:
        """Count an error and return its problem, or the error itself if it is one of the server."""
        problem = problem_of(error)
        if problem.code == "not_finite":
            self.metrics.not_finite.inc()
        return error if problem.code == "internal" else problem

    async def answer(
        self,
        request: Request,
        schema: type[Fields],
        work: Callable[[Fields, float], Coroutine[Any, Any, Any]],
        *,
        status: int = 200,
    ) -> Response:
        """Read the fields of a request, and answer with what `work` returns for them and the deadline.

        Raises:
            Problem: as `problem_of`.
        """
        try:
            deadline = self._deadline(request)
            with self._body(request) as reading:
                body = await reading
                kind = request.headers.get("content-type", "")
                if len(body) > _PARSED_AT_ONCE:
                    fields = await self.answerer.run(read_fields, schema, kind, body)
                else:
                    fields = read_fields(schema, kind, body)
                with self._place(len(getattr(fields, "queries", (None,)))):
                    result = await _while_there(request, work(fields, deadline))
        except Gone:
            return Response(status_code=CALLER_GONE)
        except Exception as error:
            raise self.told(error) from error
        return json_response(result, status)

    def check_write(self, request: Request, *, changes_items: bool) -> None:
        """Raise Problem unless the caller may write."""
        if request.scope["right"] != WRITE:
            raise Problem("forbidden", "the token must be one with the right to write")
        if changes_items and not self.allows_writes:
            raise Problem("forbidden", "the server must be started with --allow-writes to add or remove pictures")

    def check_room(self) -> None:
        """Raise Problem if no more queries can be answered now."""
        if self._busy >= self.limits.queue:
            raise self._rejected()

    def check_ready(self) -> None:
        """Raise Problem unless queries can be answered."""
        if self.is_stopping:
            raise Problem("stopping", "the server is stopping")
        if not self.index.is_up:
            raise Problem("engine_unavailable", "the index cannot be reached now")

    def _deadline(self, request: Request) -> float:
        seconds, given = self.limits.deadline, request.headers.get(_DEADLINE)
        if given is not None:
            if not (given.isascii() and given.isdigit() and len(given) < 10 and int(given)):
                raise Problem("invalid", f"{_DEADLINE} must be a whole number of milliseconds above 0", field=_DEADLINE)
            seconds = min(seconds, int(given) / 1000)
        return time.monotonic() + seconds

    def _rejected(self) -> Problem:
        self.metrics.rejected.labels("busy").inc()
        return Problem("busy", "the server answers as many queries as it can; try again in a moment")

    @contextmanager
    def _place(self, queries: int) -> Iterator[None]:
        """Hold a place for each query."""
        if self._busy + queries > self.limits.queue:
            raise self._rejected()
        self._busy += queries
        try:
            yield
        finally:
            self._busy -= queries

    @contextmanager
    def _body(self, request: Request) -> Iterator[Awaitable[bytes]]:
        """Read the body; what it holds of the memory for bodies is given back at the end."""
        chunks: list[bytes] = []
        size = 0

        async def read() -> bytes:
            nonlocal size
            async with asyncio.timeout(self.limits.deadline):
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    self._held += len(chunk)
                    if size > self.limits.body:
                        raise Problem("body_too_large", f"the body must have at most {self.limits.body} bytes")
                    if self._held > _BODIES * self.limits.body:
                        raise self._rejected()
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return b"".join(chunks)

        async def read_in_time() -> bytes:
            try:
                return await read()
            except TimeoutError as error:
                raise Problem("body_too_slow", f"the body must come within {self.limits.deadline:g} s") from error

        try:
            yield read_in_time()
        finally:
            self._held -= size


class Gone(Exception):
    """The caller has closed the connection."""


def json_response(content: Any, status: int = 200) -> Response:
    return Response(json.dumps(content), status, media_type="application/json")


async def _while_there(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Wait for an answer, and cancel it if the caller goes, so that it is not encoded."""
    task, gone = asyncio.create_task(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with suppress(BaseException):
                await task
