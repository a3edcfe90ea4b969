"""Independent work on several weights at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_MOST = 8  # each factors a weight in float64: some hundred megabytes
_worker = threading.local()


def map_in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Return ``[function(item) for item in items]``, computed by up to eight threads that share torch's threads.

    A matrix decomposition waits for its threads at many barriers, so two that have one core each are faster than one
    after the other on both; on busy cores by a factor of ten. Inside of `function` it is a plain loop.

    Raises:
        Whatever `function` raises for the first item where it does.
    """
    items = list(items)
    threads = torch.get_num_threads()
    workers = min(threads, len(items), _MOST)
    if workers < 2 or getattr(_worker, "is_busy", False):
        return [function(item) for item in items]
    grad = torch.is_grad_enabled()  # which is a setting of each thread

    def run(item: _Item) -> _Result:
        _worker.is_busy = True
        torch.set_num_threads(threads // workers)
        with torch.set_grad_enabled(grad):
            return function(item)

    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(run, items))
    finally:
        torch.set_num_threads(threads)  # the number of MKL's is one of the process
