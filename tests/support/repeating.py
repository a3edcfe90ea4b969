"""Work that threads repeat while a test does something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event


@contextmanager
def repeating(work: Callable[[], object], threads: int = 1) -> Iterator[list[Future[None]]]:
    """Repeat work in threads while a block runs, and raise what ended one of them.

    The threads end with the block, also where it raises: one that went on would keep the process alive.

    Yields:
        A future of each thread, done if the work raised.
    """
    stop = Event()

    def repeat() -> None:
        while not stop.is_set():
            work()

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(repeat) for _ in range(threads)]
        try:
            yield futures
        finally:
            stop.set()
    for future in futures:
        future.result()
