"""Independent runs side by side, each in a process of its own with its share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_jobs(work: Callable[[Item], Result], items: Sequence[Item], jobs: int) -> Iterator[Result]:
    """Yield ``work(item)`` of every item as it is done: in order for one job, else as they end.

    Args:
        work: a function of a module, so that another process finds it.
        items: what it is called with; they and the results travel between processes.
        jobs: how many at a time. One works in this process; the processes of more share its threads evenly.

    Raises:
        ValueError: `jobs` is below 1.
        Exception: what `work` raised; items that have not begun are then not begun.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if jobs == 1 or len(items) < 2:
        yield from map(work, items)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    method = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's threads
    with ProcessPoolExecutor(min(jobs, len(items)), method, _begin, (threads,)) as pool:
        try:
            for future in as_completed([pool.submit(work, item) for item in items]):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker of a process that was killed would finish its work for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
