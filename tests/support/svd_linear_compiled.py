"""The launches of svd_linear, compiled without a GPU: registers, shared memory and instructions of every kernel.

A process of its own, so that the folder of another Triton can come first on its path:
``python -m tests.support.svd_linear_compiled <architecture> [--instructions]`` prints one JSON object; instructions are
counted in a listing, which takes longer than to compile. The launchers run on CPU tensors;
Triton specialises and compiles their launches for the architecture, but a stub driver stands for the GPU's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from hystar_fast.kernels.svd_linear import fp8, fused, gemm
from hystar_fast.kernels.svd_linear.launch import Modulation
from hystar_fast.kernels.tuning import SPECIALISED, Gpu
from hystar_fast.ops.svd_linear.fp8 import fp8_problem

# The kernels of production whose instructions are counted on sm_90, by kind
LISTED = {
    "_svd_linear_gemm_kernel bf16 forward persistent pair of samples",
    "_svd_linear_gemm_kernel bf16 backward persistent pair of samples",
    "_svd_linear_fp8_kernel first pair",
    "_svd_linear_fp8_kernel second pair",
    "_svd_linear_specialised_kernel bf16 sample",
    "_svd_linear_fused_kernel bf16 forward tall r64",
    "_svd_linear_fused_kernel bf16 backward tall r64",
    "_svd_linear_reduce_kernel bf16 pair of samples",
    "_svd_linear_quantise_kernel pair",
    "_svd_linear_quantise_kernel shared",
}
OPCODE = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?!(?:@!?U?P\w+ )?NOP)")
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass
class Launch:
    """A launch that was recorded: a Triton function, its arguments by name, and what it is called in the report."""

    function: JITFunction
    arguments: dict[str, Any]
    label: str = ""

    @property
    def kernel(self) -> str:
        return self.function.__name__

    def has(self, argument: str) -> bool:
        return self.arguments.get(argument) is not None


class StubDriver:
    """The driver of a GPU of one architecture, as far as compiling needs it."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Record every launch instead of launching it."""
    launches: list[Launch] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append(Launch(self, dict(zip(self.arg_names, args, strict=False)) | options))

    with mock.patch.object(JITFunction, "run", run):
        yield launches


def modulation(kind: str, batch: int, tokens: int, rank: int) -> Modulation:
    scale = torch.empty(*{"shared": (), "sample": (batch,), "bank": (8,)}[kind], rank)
    return Modulation(scale, torch.zeros(batch, dtype=torch.long) if kind == "bank" else None, tokens)


def gemm_cases() -> Iterator[tuple[str, torch.dtype, str, int, int, int]]:
    """(name, dtype, kind, batch, tokens, features): one scale, two or many samples a tile, short samples; odd sizes."""
    for dtype in (torch.bfloat16, torch.float32):
        yield "shared", dtype, "shared", 1, 512, 1024
        yield "pair", dtype, "bank", 8, 257, 1024
        yield "many", dtype, "bank", 4, 50, 1024
        yield "short", dtype, "bank", 64, 5, 1024
        yield "odd many", dtype, "bank", 4, 50, 1021
        yield "odd short", dtype, "sample", 64, 5, 1021
    yield "odd pair", torch.float16, "sample", 2, 257, 1021
    for dtype in (torch.bfloat16, torch.float16):
        yield "pair of samples", dtype, "sample", 2, 257, 1024
    for batch in SMALL_BATCHES:
        yield f"batch of {batch}", torch.bfloat16, "bank", batch, 257, 1024


FEW, MANY = 4, 132  # multiprocessors: fewer than there are tiles, so that programs are persistent, and more
SMALL_BATCHES = (1, 2, 4)  # each has a tile of its own on an H200


def record_gemm(capability: tuple[int, int]) -> Iterator[Launch]:
    """Yield the launches of gemm.py, and of the reduction after it."""
    for name, dtype, kind, batch, tokens, features in gemm_cases():
        x = torch.empty(batch * tokens, features, dtype=dtype)
        factor = torch.empty(features, features, dtype=dtype)
        scales = modulation(kind, batch, tokens, features)
        usual = dtype == torch.bfloat16 and features % 16 == 0
        with recorded() as launches:
            counts = (FEW, MANY) if usual and name in ("shared", "pair") else (FEW,)
            for multiprocessors in (MANY,) if name.startswith("batch") else counts:
                gpu = Gpu(capability, multiprocessors)
                gemm.forward(x, factor, scales, gpu=gpu, keep_h=True)
                gemm.backward(x, factor, x, scales, gpu=gpu, needs_dg=True)
                # inference; gradients of x alone, and of the scale alone
                if usual and name != "short" and not name.startswith("batch"):
                    gemm.forward(x, factor, scales, gpu=gpu, keep_h=False)
                if usual and name == "pair":
                    gemm.backward(x, factor, None, scales, gpu=gpu, needs_dg=True)
                    gemm.backward(x, factor, x, scales, gpu=gpu, needs_dg=False)
        for launch in launches:
            reduction = launch.kernel == "_svd_linear_reduce_kernel"
            if reduction and name not in ("pair", "pair of samples"):
                continue  # its code depends on nothing but whether there is an index
            launch.label = f"{launch.kernel} {NAMES[dtype]} {'' if reduction else role(launch)}{name}"
            yield launch


def record_specialised(capability: tuple[int, int]) -> Iterator[Launch]:
    """Yield the launches of specialised.py, which is for Hopper."""
    fine = replace(SPECIALISED, block_k=32, num_stages=8)  # bench/tune.py measures it too
    for dtype, kind, tile in (
        (torch.bfloat16, "sample", SPECIALISED),
        (torch.bfloat16, "bank", SPECIALISED),
        (torch.float16, "sample", SPECIALISED),
        (torch.bfloat16, "sample", fine),
    ):
        dy, u = torch.empty(2 * 257, 1024, dtype=dtype), torch.empty(1024, 1024, dtype=dtype)
        on: dict[str, Any] = {"gpu": Gpu(capability, FEW), "needs_dg": True, "tile": tile}
        with recorded() as launches:
            gemm.backward(dy, u, dy.clone(), modulation(kind, 2, 257, 1024), **on)
        launches[0].label = f"{launches[0].kernel} {NAMES[dtype]} {kind}{' fine' * (tile is fine)}"
        yield launches[0]


def role(launch: Launch) -> str:
    """Name the purpose of a launch of the GEMM kernel."""
    if launch.arguments["B_BY_COLUMN"]:
        purpose = "forward " if launch.has("h") else "inference "
    else:
        purpose = "backward " + "of x " * (not launch.has("partials")) + "of scale " * (not launch.has("g"))
    return purpose + "persistent " * launch.arguments["PERSISTENT"]


def record_fused(capability: tuple[int, int]) -> Iterator[Launch]:
    """Yield the launches of fused.py: one scale, two or many samples a tile; many rows; several ranks; odd sizes."""
    for name, dtype, kind, batch, tokens, features, rank in (
        ("tall", torch.bfloat16, "bank", 40, 257, 1024, 128),
        ("pair", torch.bfloat16, "bank", 2, 257, 1024, 128),
        ("short", torch.bfloat16, "sample", 64, 5, 1024, 128),
        ("pair", torch.float32, "bank", 2, 257, 1024, 128),
        ("odd pair", torch.bfloat16, "sample", 2, 257, 1021, 127),
        ("odd short", torch.float32, "shared", 2, 257, 1021, 127),
        ("tall", torch.bfloat16, "sample", 48, 257, 1024, 64),
        ("pair", torch.bfloat16, "sample", 2, 257, 1024, 16),
        ("odd pair", torch.bfloat16, "bank", 2, 257, 1024, 13),
    ):
        x = torch.empty(batch * tokens, features, dtype=dtype)
        u, vh = torch.empty(features, rank, dtype=dtype), torch.empty(rank, features, dtype=dtype)
        scales, bias = modulation(kind, batch, tokens, rank), torch.empty(features, dtype=dtype)
        on: dict[str, Any] = {"gpu": Gpu(capability, FEW), "shares": 4}
        with recorded() as launches:
            h = fused.forward(x, u, vh, bias, scales, x.clone(), keep_h=True, **on)
            fused.backward(x, u, vh, h, scales, x.clone(), **on)
        both = [launch for launch in launches if launch.kernel == "_svd_linear_fused_kernel"]
        for direction, launch in zip(("forward", "backward"), both, strict=True):
            launch.label = f"{launch.kernel} {NAMES[dtype]} {direction} {name} r{rank}"
            yield launch


def record_fp8(capability: tuple[int, int]) -> Iterator[Launch]:
    """Yield the launches of fp8.py: one scale, two or many samples a tile, short samples; odd sizes."""
    gpu = Gpu(capability, FEW)
    for name, kind, batch, tokens, features in (
        ("shared", "shared", 1, 512, 1024),
        ("pair", "bank", 2, 257, 1024),
        ("many", "sample", 4, 50, 1024),
        ("short", "bank", 64, 5, 1024),
        ("odd pair", "sample", 2, 257, 1021),
    ):
        x = torch.empty(batch * tokens, features, dtype=torch.bfloat16)
        factor, norm = torch.empty(features, features, dtype=fp8.E4M3), torch.empty(features)
        scales = modulation(kind, batch, tokens, features)
        h_dtype = torch.bfloat16 if name == "pair" else None
        with recorded() as launches:
            quantised, x_scale, g_scale = fp8.quantise(x, norm, scales, gpu=gpu)
            g, _ = fp8.first_product(quantised, x_scale, g_scale, factor, norm, scales, gpu=gpu, h_dtype=h_dtype)
            fp8.second_product(g, g_scale, factor, norm, norm.bfloat16(), torch.empty_like(x), gpu=gpu)
            for columns in (512, 4096) if name == "short" else ():  # a narrower model, and the MLP of a ViT-L
                fp8.quantise(torch.empty(8, columns, dtype=torch.bfloat16), norm, scales, gpu=gpu)
        for launch in launches:
            product = " first" if launch.has("scale") else " second"
            launch.label = f"{launch.kernel}{product * (launch.kernel == '_svd_linear_fp8_kernel')} {name}"
            yield launch


def compile_one(launch: Launch, count_instructions: bool) -> dict[str, Any]:
    """Compile a launch as Triton would specialise it for its arguments, and describe the code."""
    compiled = launch.function.warmup(**launch.arguments, grid=(1,))
    listed = count_instructions or (launch.label in LISTED and compiled.metadata.target.arch == 90)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "kernel.cubin")
        binary.write_bytes(compiled.asm["cubin"])
        command = [str(tool), "-res-usage", *["-sass"] * listed, str(binary)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    resources = {name.lower(): int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", listing)}
    ptx = compiled.asm["ptx"]
    instructions = {"wgmma": "wgmma.mma_async", "tma": "cp.async.bulk.tensor", "tcgen05": "tcgen05.mma"}
    instructions["registers"] = "setmaxnreg"
    fp8_product = re.search(r"mma[^;\n]*e4m3\.e4m3|tcgen05\.mma[^;\n]*f8f6f4", ptx)
    return {
        "kernel": launch.label,
        "hash": compiled.hash,
        "shared": compiled.metadata.shared,
        "instructions": len(INSTRUCTION.findall(listing)) if count_instructions else None,
        "descriptors": hasattr(launch.arguments.get("a"), "block_shape"),
        "persistent": launch.arguments.get("PERSISTENT", False),
        "fp8": fp8_product is not None,
        "opcodes": Counter(OPCODE.findall(listing)) if listed else None,
        **resources,
        **{name: text in ptx for name, text in instructions.items()},
    }


def main(architecture: int, count_instructions: bool) -> None:
    """Print the report of one architecture: the version of Triton, and one row for each kernel that was compiled."""
    capability = architecture // 10, architecture % 10
    launches = [*record_gemm(capability), *record_fused(capability)]
    if capability == (9, 0):
        launches += record_specialised(capability)
    if fp8_problem(capability) is None:
        launches += record_fp8(capability)
    triton.runtime.driver.set_active(StubDriver(architecture))
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        rows = list(pool.map(partial(compile_one, count_instructions=count_instructions), launches))
    rows = list(
        {(row["kernel"], row["hash"]): row for row in rows}.values()
    )  # one for several launches of the same code
    print(json.dumps({"triton": triton.__version__, "rows": rows}))


if __name__ == "__main__":
    main(int(sys.argv[1]), "--instructions" in sys.argv)
