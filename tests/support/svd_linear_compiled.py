"""Run by test_svd_linear_compile.py, with the Triton to try first on the path: compile what the launcher launches.

No GPU and no driver are needed. The launches are recorded, with the arguments they would have, and compiled for the
architecture given; one JSON row a kernel says what ptxas made of it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from hystar_fast.kernels import svd_linear_fp8_launch as fp8
from hystar_fast.kernels import svd_linear_fused_launch as fused
from hystar_fast.kernels import svd_linear_launch as launch
from hystar_fast.ops.svd_linear_fp8 import why_not

NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int64: "i64"}
NAMES |= {torch.float8_e4m3fn: "fp8e4nv"}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass
class Recorder:
    """Stands for a Triton function: keeps the arguments of its launches instead of launching."""

    function: Any
    launches: list[tuple[Any, dict[str, Any]]]

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: self.launches.append(
            (self.function, dict(zip(self.function.arg_names, args, strict=False)) | kwargs)
        )


def cases() -> Iterator[tuple[str, torch.dtype, str, int, int, int]]:
    """(name, dtype, kind, batch, tokens, features): one scale, two or many samples a tile, short samples; odd sizes."""
    for dtype in (torch.bfloat16, torch.float32):
        yield "shared", dtype, "shared", 1, 512, 1024
        yield "pair", dtype, "bank", 2, 257, 1024
        yield "many", dtype, "bank", 4, 50, 1024
        yield "short", dtype, "bank", 64, 5, 1024
        yield "odd many", dtype, "bank", 4, 50, 1021
        yield "odd short", dtype, "sample", 64, 5, 1021
    yield "odd pair", torch.float16, "sample", 2, 257, 1021
    for dtype in (torch.bfloat16, torch.float16):
        yield "pair of samples", dtype, "sample", 2, 257, 1024


FEW, MANY = 4, 132  # multiprocessors: fewer than there are tiles, so that programs are persistent, and more


def record(capability: tuple[int, int]) -> list[tuple[str, Any, dict[str, Any]]]:
    """The distinct launches of every case."""
    found: dict[str, tuple[str, Any, dict[str, Any]]] = {}
    launches: list[tuple[Any, dict[str, Any]]] = []
    gemm, reduce = launch._svd_linear_gemm_kernel, launch._svd_linear_reduce_kernel
    with (
        mock.patch.object(launch, "_svd_linear_gemm_kernel", Recorder(gemm, launches)),
        mock.patch.object(launch, "_svd_linear_reduce_kernel", Recorder(reduce, launches)),
    ):
        for name, dtype, kind, batch, tokens, features in cases():
            x = torch.empty(batch * tokens, features, dtype=dtype)
            factor = torch.empty(features, features, dtype=dtype)
            scale = torch.empty(*{"shared": (), "sample": (batch,), "bank": (8,)}[kind], features)
            index = torch.zeros(batch, dtype=torch.long) if kind == "bank" else None
            options: dict[str, Any] = {"capability": capability, "tf32": dtype == torch.float32}
            usual = dtype == torch.bfloat16 and features % 16 == 0
            for multiprocessors in (FEW, MANY) if usual and name in ("shared", "pair") else (FEW,):
                options["multiprocessors"] = multiprocessors
                launch.forward(x, scale, factor, index, tokens, True, **options)
                launch.backward(x, factor, x, scale, index, tokens, True, **options)
                if usual and name != "short":  # inference; gradients of x alone, and of the scale alone
                    launch.forward(x, scale, factor, index, tokens, False, **options)
                if usual and name == "pair":
                    launch.backward(x, factor, None, scale, index, tokens, True, **options)
                    launch.backward(x, factor, x, scale, index, tokens, False, **options)
            for function, arguments in launches:
                if function is reduce and name not in ("pair", "pair of samples"):
                    continue  # one kernel, which no case but the presence of an index changes
                label = f"{function.__name__} {NAMES[dtype]} {role(arguments)}{name}"
                key = str([(k, described(v)) for k, v in arguments.items()]) + function.__name__
                found.setdefault(key, (label, function, arguments))
            launches.clear()
    return list(found.values())


def role(arguments: dict[str, Any]) -> str:
    """What a launch of the GEMM kernel is for; nothing for another kernel."""
    if "B_BY_COLUMN" not in arguments:
        return ""
    if arguments["B_BY_COLUMN"]:
        said = "forward " if arguments["WRITE_H"] else "inference "
    else:
        said = "backward " + "of x " * (not arguments["SUM"])
        said += "of scale " * (not arguments["WRITE_G"])
    return said + "persistent " * arguments["PERSISTENT"]


def record_fp8(capability: tuple[int, int]) -> list[tuple[str, Any, dict[str, Any]]]:
    """Every launch of the fp8 path: a tile in a sample, over two, over many, short samples; odd sizes."""
    launches: list[tuple[Any, dict[str, Any]]] = []
    found = []
    names = ("_svd_linear_fp8_kernel", "_svd_linear_quantise_kernel", "_svd_linear_reach_kernel")
    for name, kind, batch, tokens, features in (
        ("shared", "shared", 1, 512, 1024),
        ("pair", "bank", 2, 257, 1024),
        ("many", "sample", 4, 50, 1024),
        ("short", "bank", 64, 5, 1024),
        ("odd pair", "sample", 2, 257, 1021),
    ):
        x = torch.empty(batch * tokens, features, dtype=torch.bfloat16)
        factor, norm = torch.empty(features, features, dtype=fp8.E4M3), torch.empty(features)
        scale = torch.empty(*{"shared": (), "sample": (batch,), "bank": (8,)}[kind], features)
        index = torch.zeros(batch, dtype=torch.long) if kind == "bank" else None
        save = torch.bfloat16 if name == "pair" else None
        with ExitStack() as stack:
            for kernel in names:
                stack.enter_context(mock.patch.object(fp8, kernel, Recorder(getattr(fp8, kernel), launches)))
            quantised, x_scale, g_scale = fp8.quantise(x, scale, norm, index, tokens)
            options: dict[str, Any] = {"capability": capability, "multiprocessors": 4}
            g, _ = fp8.first(quantised, x_scale, g_scale, factor, norm, scale, index, tokens, save, **options)
            fp8.second(g, g_scale, factor, norm, norm.bfloat16(), torch.empty_like(x), **options)
            for columns in (512, 4096) if name == "short" else ():  # a narrower model, and the MLP of a ViT-L
                fp8.quantise(torch.empty(8, columns, dtype=torch.bfloat16), scale, norm, index, tokens)
        for function, arguments in launches:
            label = {True: " first", False: " second"}.get(arguments.get("MODULATE"), "")
            found.append((f"{function.__name__}{label} {name}", function, arguments))
        launches.clear()
    return found


def record_fused(capability: tuple[int, int]) -> list[tuple[str, Any, dict[str, Any]]]:
    """The fused kernel at its widest: a tile in a sample, over two, over many; many rows; odd sizes."""
    launches: list[tuple[Any, dict[str, Any]]] = []
    found = []
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
        scale = torch.empty(*{"shared": (), "sample": (batch,), "bank": (8,)}[kind], rank)
        index = torch.zeros(batch, dtype=torch.long) if kind == "bank" else None
        options: dict[str, Any] = {"capability": capability, "shares": 4, "tf32": dtype == torch.float32}
        recorder = Recorder(fused._svd_linear_fused_kernel, launches)
        with (
            mock.patch.object(fused, "_svd_linear_fused_kernel", recorder),
            mock.patch.object(fused, "reduce", lambda *_: None),
        ):
            h = fused.forward(x, u, scale, vh, u[:, 0].contiguous(), index, tokens, True, x.clone(), **options)
            fused.backward(x, u, h, scale, vh, index, tokens, x.clone(), **options)
        for direction, (function, arguments) in zip(("forward", "backward"), launches, strict=True):
            label = f"{function.__name__} {NAMES[dtype]} {direction} {name} r{rank}"
            found.append((label, function, arguments))
        launches.clear()
    return found


def described(value: Any) -> str:
    """The type Triton's signature gives an argument, a constant where it specialises on the value."""
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{NAMES[value.base.dtype]}{list(value.block_shape)}>"
    if isinstance(value, torch.Tensor):
        return "*" + NAMES[value.dtype]
    if value is None or isinstance(value, bool) or value == 1:
        return f"constexpr {value}"
    return "i32" + (" divisible by 16" if value % 16 == 0 else "")


def source(function: Any, arguments: dict[str, Any]) -> ASTSource:
    """The source as the just-in-time compiler would specialise it for these arguments."""
    signature, constants, attributes = {}, {}, {}
    for position, parameter in enumerate(function.params):
        value = arguments[parameter.name]
        kind = described(value)
        if parameter.is_constexpr or kind.startswith("constexpr"):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = kind.removesuffix(" divisible by 16")
        if kind.startswith("*") or kind.endswith("16"):
            attributes[(position,)] = [["tt.divisibility", 16]]
    return ASTSource(function, signature, constants, attributes)


def compile_one(architecture: int, label: str, function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    options = {name: arguments[name] for name in OPTIONS if name in arguments}
    compiled = triton.compile(source(function, arguments), target=GPUTarget("cuda", architecture, 32), options=options)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "kernel.cubin")
        binary.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    resources = {name.lower(): int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    ptx = compiled.asm["ptx"]
    instructions = {"wgmma": "wgmma.mma_async", "tma": "cp.async.bulk.tensor", "tcgen05": "tcgen05.mma"}
    fp8_product = re.search(r"mma[^;\n]*e4m3\.e4m3|tcgen05\.mma[^;\n]*f8f6f4", ptx)
    return {
        "kernel": label,
        "shared": compiled.metadata.shared,
        "descriptors": arguments.get("DESCRIPTORS", False),
        "persistent": arguments.get("PERSISTENT", False),
        "fp8": fp8_product is not None,
        **resources,
        **{name: text in ptx for name, text in instructions.items()},
    }


def main(architecture: int) -> None:
    capability = architecture // 10, architecture % 10
    launches = (
        record(capability) + record_fused(capability) + (record_fp8(capability) if why_not(capability) is None else [])
    )
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        rows = list(pool.map(lambda row: compile_one(architecture, *row), launches))
    print(json.dumps({"triton": triton.__version__, "rows": rows}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
