"""Processes of a test that share work by torch.distributed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def in_processes(work: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Call ``work(rank, *arguments)`` in each of `count` processes, and raise what one of them raises.

    They are forked from one process that has imported torch and this package and has done nothing else: importing takes
    seconds, and a process in which autograd has run cannot be forked.
    """
    multiprocessing.set_forkserver_preload(["hystar_fast.train.run", "pytest"])
    mp.start_processes(work, args=arguments, nprocs=count, start_method="forkserver")
