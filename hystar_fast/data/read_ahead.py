"""Work in threads, some items ahead of the caller: decoding goes on while a model encodes; and batches of items."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

THREADS = 8
Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, window: int, threads: int = THREADS
) -> Iterator[Result]:
    """Yield the result of a function for each item, in their order.

    Pillow and hashlib release the interpreter's lock, so the threads work while the caller does.

    Args:
        function: called in threads.
        items: its arguments.
        window: results that may wait for the caller, which limits the memory.
        threads: the most; there is at most one for each core.

    Raises:
        ValueError: `window` is not positive.
        Exception: what the function raises, when its result is due; the items after it are given up.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(min(threads, os.cpu_count() or 1))
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield items in lists of `size`, the last one of what is left; no list is empty."""
    iterator = iter(items)
    while batch := [*islice(iterator, size)]:
        yield batch
