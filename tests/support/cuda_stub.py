"""Runs a module with cuda_stub/ in the place of CUDA: torch finds a GPU, which checks and records launches."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

SOURCES = Path(__file__).with_suffix("")


class Launch(NamedTuple):
    """A launch as the driver got it; the parameters are the bytes of each in hexadecimal."""

    kernel: str
    grid: list[int]
    threads: int
    shared: int
    stream: int
    parameters: tuple[str, ...]


def build(folder: Path) -> Path:
    """Compile the stub and return the library, which also stands for libcuda.so.1."""
    packages = Path(torch.__file__).parents[1]
    runtime = next(packages.glob("nvidia/cu*/include/cuda_runtime_api.h")).parent  # that of torch
    rest = Path(triton.__file__).parent / "backends/nvidia/include"  # what torch's wheels leave out
    library = folder / "libcuda.so.1"
    objects = []
    for source, command in (("stub.cpp", ["g++", "-std=c++17", "-Wall", "-Werror"]), ("succeed.c", ["gcc"])):
        objects.append(str(folder / f"{source}.o"))
        run([*command, "-O1", "-fPIC", "-c", f"-I{runtime}", f"-I{rest}", str(SOURCES / source), "-o", objects[-1]])
    run(["g++", "-shared", "-Wl,-soname,libcuda.so.1", *objects, "-o", str(library), "-ldl"])
    return library


def run_stubbed(library: Path, module: str, *arguments: str) -> str:
    """Run a module in a process that has the stub, and return what it prints."""
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "TRITON_LIBCUDA_PATH": str(library.parent),
        "TRITON_CACHE_DIR": str(library.parent / "triton"),
        "TRITON_DISABLE_LINE_INFO": "1",  # a tenth of the time, and no launch depends on it
    }
    return run([sys.executable, "-m", module, *arguments], environment)


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def launches() -> list[Launch]:
    """Return the launches of this process since the last call."""
    take = ctypes.CDLL(None).stub_launches
    take.restype = ctypes.c_char_p
    rows: list[dict[str, Any]] = [json.loads(line) for line in take().decode().splitlines()]
    return [Launch(**row | {"parameters": tuple(row["parameters"].split())}) for row in rows]


def record_parameters(function: int, sizes: list[int]) -> None:
    """Record the parameters of later launches of a kernel, which have these sizes in bytes."""
    ctypes.CDLL(None).stub_parameters(ctypes.c_void_p(function), (ctypes.c_int * len(sizes))(*sizes), len(sizes))
