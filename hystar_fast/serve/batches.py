"""Threads that take what waits in a queue, many requests at a time, and may wait a moment for those they served."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")
Result = TypeVar("Result")
Next = TypeVar("Next")


class DeadlinePassed(Exception):
    """The deadline of a request passed while it waited."""


class Closed(Exception):
    """No more requests are taken."""


@dataclass(frozen=True)
class Done(Generic[Result]):
    """The result of one request.

    Attributes:
        result: what the work returned for it.
        queue, work: milliseconds that it waited, and of the call that served it.
        batch: number of requests of that call.
    """

    result: Result
    queue: float
    work: float
    batch: int


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[Value, Result]):
    value: Value
    deadline: float
    future: Future[Done[Result]] = field(default_factory=Future)
    entered: float = field(default_factory=time.monotonic)


class Batches(Generic[Value, Result]):
    """Requests in lanes; those of one lane that wait at the same time are served by one call.

    Args:
        work: called with a lane and the values of its requests; returns a result, or an exception, for each. If it
            raises, it is called for each request alone, so that an error reaches only its own.
        size: most requests of a call.
        workers: number of threads.
        max_wait: seconds in which a thread may wait after a call until as many requests wait as the call had and as
            waited at its end, for each of them. Without it, callers who ask again as soon as they are answered fall
            into two groups, of which one waits while the other is served. A caller who is alone waits once at most,
            after the others have gone. No request waits so for more than half of the time to its deadline.
        on_batch: called with the number of requests of each call that returned.
        name: of the threads.
    """

    def __init__(
        self,
        work: Callable[[Any, list[Value]], Sequence[Result | Exception]],
        *,
        size: int,
        workers: int = 1,
        max_wait: float = 0.0,
        on_batch: Callable[[int], object] = lambda size: None,
        name: str = "batches",
    ) -> None:
        self._work, self._size, self._max_wait, self._on_batch = work, size, max_wait, on_batch
        self._lanes: OrderedDict[Hashable, deque[_Waiting[Value, Result]]] = OrderedDict()
        self._changed = threading.Condition()
        self._is_closed = False
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, lane: Hashable, value: Value, deadline: float = math.inf) -> Future[Done[Result]]:
        """Queue a request; a future that is cancelled while it waits is not served.

        Args:
            lane: requests of different lanes are not served together.
            value: for `work`.
            deadline: on the clock of `time.monotonic`.

        Returns:
            A future, which raises DeadlinePassed if the request was not served in time, or what `work` raised for it.

        Raises:
            Closed: `close` was called.
        """
        waiting: _Waiting[Value, Result] = _Waiting(value, deadline)
        with self._changed:
            if self._is_closed:
                raise Closed("no more requests are taken")
            self._lanes.setdefault(lane, deque()).append(waiting)
            self._changed.notify()
        return waiting.future

    @property
    def depth(self) -> int:
        """The number of requests that wait."""
        with self._changed:
            return self._waiting()

    def _waiting(self) -> int:
        return sum(map(len, self._lanes.values()))

    def close(self) -> None:
        """Take no more requests, serve those that wait, and end the threads."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        served, end = 0, -math.inf
        while True:
            with self._changed:
                wanted = min(served + self._waiting(), self._size)
                self._changed.wait_for(lambda: self._lanes or self._is_closed)
                self._wait_for_company(wanted, end + wanted * self._max_wait)
                if not self._lanes:
                    if self._is_closed:
                        return
                    continue  # another thread was first
                lane, waiting = self._lanes.popitem(last=False)
                taken = [waiting.popleft() for _ in range(min(len(waiting), self._size))]
                if waiting:  # behind the other lanes
                    self._lanes[lane] = waiting
            self._serve(lane, [entry for entry in taken if _is_wanted(entry)])
            served, end = len(taken), time.monotonic()

    def _wait_for_company(self, wanted: int, end: float) -> None:
        """Wait until so many requests wait, at most until a time on the clock of `time.monotonic`.

        No request waits so for more than half of its time, so that none comes too late because of others.
        """
        while not self._is_closed and self._waiting() < wanted:
            halves = ((entry.entered + entry.deadline) / 2 for lane in self._lanes.values() for entry in lane)
            left = min(end, *halves, math.inf) - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _serve(self, lane: Hashable, entries: list[_Waiting[Value, Result]]) -> None:
        if not entries:
            return
        start = time.monotonic()
        try:
            results = self._work(lane, [entry.value for entry in entries])
        except Exception as error:
            if len(entries) == 1:
                entries[0].future.set_exception(error)
            else:
                for entry in entries:
                    self._serve(lane, [entry])
            return
        self._on_batch(len(entries))
        spent = 1000 * (time.monotonic() - start)
        for entry, result in zip(entries, results, strict=True):
            if isinstance(result, Exception):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(Done(result, 1000 * (start - entry.entered), spent, len(entries)))


def then(future: Future[Result], step: Callable[[Result], Future[Next]]) -> Future[Next]:
    """Return the future of a second step, which the thread that ends the first one starts with its result.

    An error of either step becomes that of the returned future; cancelling it cancels the step that is under way.
    """
    end: Future[Next] = Future()
    running: list[Future[Any]] = [future]

    def start(first: Future[Result]) -> None:
        if end.cancelled():
            return
        try:
            second = step(first.result())
        except BaseException as error:  # CancelledError is one, too
            _settle(end, error)
            return
        running[0] = second
        second.add_done_callback(finish)
        if end.cancelled():  # meanwhile
            second.cancel()

    def finish(second: Future[Next]) -> None:
        try:
            result = second.result()
        except BaseException as error:
            _settle(end, error)
        else:
            if end.set_running_or_notify_cancel():
                end.set_result(result)

    end.add_done_callback(lambda ended: running[0].cancel() if ended.cancelled() else None)
    future.add_done_callback(start)
    return end


def _settle(future: Future[Any], error: BaseException) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


def _is_wanted(entry: _Waiting) -> bool:
    """Return whether the caller of a request still waits, and tell one whose deadline has passed."""
    if not entry.future.set_running_or_notify_cancel():
        return False
    if time.monotonic() < entry.deadline:
        return True
    entry.future.set_exception(DeadlinePassed("the deadline passed before the request was served"))
    return False
