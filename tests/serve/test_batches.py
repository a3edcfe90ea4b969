"""Requests that wait for company after a call, and those that do not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from hystar_fast.serve.batches import Batches
from tests.support.served import drawing, encoded, until

LONG = 60.0  # seconds, which no test waits for


class Work:
    """Work whose first call waits until it is told to go on.

    Attributes:
        sizes: number of requests of each call.
        began, go_on: of the first call.
    """

    def __init__(self, max_wait: float, workers: int = 1) -> None:
        self.sizes: list[int] = []
        self.began, self.go_on = threading.Event(), threading.Event()
        self.batches = Batches(self._call, size=8, workers=workers, max_wait=max_wait)

    def _call(self, lane: str, values: list[int]) -> list[int]:
        self.sizes.append(len(values))
        if len(self.sizes) == 1:
            self.began.set()
            assert self.go_on.wait(LONG)
        return values

    def start(self, waiting: int) -> list:
        """Let so many requests wait while the first one is served, and end its call."""
        first = self.batches.submit("", 0)
        assert self.began.wait(LONG)
        futures = [self.batches.submit("", number) for number in range(waiting)]
        self.go_on.set()
        assert first.result(LONG).result == 0
        return futures


@pytest.fixture
def work() -> Iterator[Work]:
    made = Work(LONG)
    yield made
    made.batches.close()


def test_those_who_were_served_and_those_who_waited_are_served_together_the_next_time(work):
    futures = work.start(2)
    futures.append(work.batches.submit("", 2))  # who was served comes again
    assert [future.result(LONG / 2).batch for future in futures] == [3, 3, 3]
    assert work.sizes == [1, 3]


def test_a_caller_who_is_alone_never_waits(work):
    work.go_on.set()
    for number in range(5):
        assert work.batches.submit("", number).result(LONG / 2).batch == 1


def test_no_more_are_waited_for_than_a_call_takes(work):
    assert [future.result(LONG / 2).batch for future in work.start(8)] == [8] * 8


def test_those_who_do_not_come_again_are_waited_for_no_longer_than_was_said():
    work = Work(0.3)
    done = [future.result(LONG) for future in work.start(2)]
    assert [one.batch for one in done] == [2, 2] and min(one.queue for one in done) >= 300
    work.batches.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_closing_ends_the_wait(workers):
    work = Work(LONG, workers)
    futures, start = work.start(2), time.monotonic()
    work.batches.close()
    assert time.monotonic() - start < LONG / 2
    assert [future.result(0).result for future in futures] == [0, 1]


def test_the_encoder_of_a_server_waits_as_its_settings_say(held):
    running, method = held(max_wait=LONG)
    with ThreadPoolExecutor(4) as pool:

        def ask(number: int) -> int:
            return int(running.search(image=encoded(drawing(number))).json()["timing"]["batch"])

        first = pool.submit(ask, 0)
        assert method.began.wait(LONG)
        others = [pool.submit(ask, number) for number in (1, 2)]
        until(lambda: "hystar_queue_depth 2.0" in running.client.get("metrics").text)
        method.go_on.set()
        assert first.result(LONG) == 1
        others.append(pool.submit(ask, 3))
        assert [one.result(LONG / 2) for one in others] == [3, 3, 3]


def test_no_request_waits_for_company_for_more_than_half_of_its_time(work):
    first = work.batches.submit("", 0)
    assert work.began.wait(LONG)
    deadline = time.monotonic() + 4
    futures = [work.batches.submit("", number, deadline) for number in range(2)]
    work.go_on.set()
    assert first.result(LONG).batch == 1
    assert [future.result(LONG / 2).batch for future in futures] == [2, 2]  # who was served does not come again
