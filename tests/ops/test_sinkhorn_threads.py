"""The threads of the CPU Sinkhorn: an error in one of them reaches the caller, and the process goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "support/no_memory.cpp"
N = 1031
WORDS_OF_A_ROW = -(-N // 64)
# The first five rows may only use one column, so that the exact decision whether a plan exists needs its memory.
PROGRAM = f"""
import torch
import hystar_fast as hf

torch.set_num_threads({{threads}})
cost = torch.rand({{batch}}, {N}, {N})
cost[:, :5, 1:] = float("inf")
try:
    hf.sinkhorn(cost, 0.1, 60, grad="none")
except MemoryError:
    print("MemoryError")
print(bool(hf.sinkhorn(cost[:, 5:], 0.1, 60, grad="none").isfinite().all()))
"""


@pytest.mark.parametrize(("batch", "threads"), [(1, 2), (1, 1), (3, 2)], ids=["team", "alone", "batch"])
def test_memory_that_fails_in_a_thread_is_an_error_of_the_call(batch: int, threads: int, tmp_path: Path) -> None:
    """The members of a team wait for each other; in a batch every thread solves its own problems."""
    library = tmp_path / "no_memory.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-O1", str(SOURCE), "-o", str(library)], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "NO_MEMORY_FOR": str(8 * N * WORDS_OF_A_ROW)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(batch=batch, threads=threads)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["MemoryError", "True"]
