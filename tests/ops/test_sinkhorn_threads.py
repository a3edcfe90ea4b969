"""The threads of the CPU kernels: an error in one reaches the caller, and there are no more than were asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parents[1] / "support"
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

COUNTED = """
import ctypes, json
import torch
import hystar_fast as hf

most_threads = ctypes.CDLL(None).most_threads
one, many = torch.rand(1, 1536, 1536), torch.rand(80, 200, 200)
leaf = torch.rand(80, 200, 200, requires_grad=True)
rows, scores = torch.randn(2, 600, 256, requires_grad=True), torch.rand(8, 400)
def gradient(grad):
    hf.sinkhorn(leaf, 0.1, 20, grad=grad).sum().backward()
calls = {
    "sinkhorn, one problem": lambda: hf.sinkhorn(one, 0.1, 20, grad="none"),
    "sinkhorn, a batch": lambda: hf.sinkhorn(many, 0.1, 20, grad="none"),
    "unrolled gradient": lambda: gradient("unroll"),
    "implicit gradient": lambda: gradient("implicit"),
    "style_nce": lambda: hf.style_nce(*rows).backward(),
    "perturbed_topk": lambda: hf.perturbed_topk(scores, 10, sigma=0.1, samples=500),
}
found = {}
for threads in (1, 3, 64):
    torch.set_num_threads(threads)
    found[threads] = {}
    for name, call in calls.items():
        call()  # starts the threads that torch keeps
        most_threads()
        call()
        found[threads][name] = most_threads()
print(json.dumps(found))
"""


@pytest.mark.parametrize(("batch", "threads"), [(1, 2), (1, 1), (3, 2)], ids=["team", "alone", "batch"])
def test_memory_that_fails_in_a_thread_is_an_error_of_the_call(batch: int, threads: int, tmp_path: Path) -> None:
    """The members of a team wait for each other; in a batch every thread solves its own problems."""
    failing = {"NO_MEMORY_FOR": str(8 * N * WORDS_OF_A_ROW)}
    printed = run_with("no_memory", PROGRAM.format(batch=batch, threads=threads), tmp_path, **failing)
    assert printed.split() == ["MemoryError", "True"]


def test_a_call_starts_no_more_threads_than_torch_has(tmp_path: Path) -> None:
    """Those of a call and its own are torch.get_num_threads() at most, and 32 share one problem at most."""
    most = json.loads(run_with("count_threads", COUNTED, tmp_path))
    teams = {"1": 1, "3": 3, "64": 32}
    assert {threads: found["sinkhorn, one problem"] + 1 for threads, found in most.items()} == teams
    for threads, found in most.items():
        assert len(found) == 6 and max(found.values()) < int(threads), found
        assert min(found.values()) > 0 or threads == "1", found


def run_with(source: str, program: str, folder: Path, **environment: str) -> str:
    """Run a program in a process that has a library of tests/support loaded first, and return what it prints."""
    library = folder / f"{source}.so"
    command = ["g++", "-shared", "-fPIC", "-O1", str(SUPPORT / f"{source}.cpp"), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"LD_PRELOAD": str(library)} | environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
