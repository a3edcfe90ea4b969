"""Run by test_svd_linear_replay.py on the stub of CUDA: launches of svd_linear, through Triton and repeated.

Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hystar_fast as hf
from hystar_fast.kernels import prepared
from hystar_fast.kernels.svd_linear import gemm
from hystar_fast.ops.svd_linear import replay
from hystar_fast.ops.svd_linear.fp8 import Fp8Factors
from tests.support.cuda_stub import Launch, launches, record_parameters


def tensors(
    batch: int, rank: int, kind: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return x, u, scale, vh, bias and index on the stub. Their content is never read."""
    rows = {"shared": (), "sample": (batch,), "bank": (7,)}[kind]
    shapes = ((batch, 257, 1024), (3072, rank), (*rows, rank), (rank, 1024), (3072,))
    dtypes = (dtype, dtype, torch.float32, dtype, dtype)
    x, u, scale, vh, bias = (torch.empty(s, device="cuda", dtype=d) for s, d in zip(shapes, dtypes, strict=True))
    return x, u, scale, vh, bias, torch.empty(batch, device="cuda", dtype=torch.int64) if kind == "bank" else None


def quantised(u: Tensor, vh: Tensor) -> Fp8Factors:
    def e4m3(factor: Tensor) -> Tensor:
        return torch.empty(factor.shape, device="cuda", dtype=torch.float8_e4m3fn)

    lengths = [torch.empty(n, device="cuda") for n in (len(u), len(vh), len(vh))]
    return Fp8Factors(e4m3(u), lengths[0], e4m3(vh), lengths[1], lengths[2])


def cases() -> Iterator[tuple[str, partial[object]]]:
    """Yield calls on the packed qkv of ViT-L/14: two kernels, and one kernel at small rank."""
    for batch, rank in product((1, 48), (1024, 64)):
        for kind in ("sample", "bank") if rank == 1024 else ("shared", "sample"):
            for dtype in (torch.bfloat16, torch.float16) if (batch, kind) == (48, "sample") else (torch.bfloat16,):
                x, u, scale, vh, bias, index = tensors(batch, rank, kind, dtype)
                forward = partial(hf.svd_linear, x, u, scale, vh, bias, index=index)
                calls: dict[str, partial[object]] = {
                    "forward": forward,
                    "training": partial(train, x, u, scale, vh, bias, index),
                }
                if dtype == torch.bfloat16:
                    calls["sum"] = partial(calls["training"], summed=True)
                    if (batch, rank) == (48, 1024):
                        calls["specialised"] = partial(calls["training"], specialised=True)
                    calls["fp8"] = partial(forward, precision="fp8", factors=quantised(u, vh))
                for name, call in calls.items():
                    yield f"B{batch} r{rank} {kind} {str(dtype)[6:]} {name}", call


def train(
    x: Tensor,
    u: Tensor,
    scale: Tensor,
    vh: Tensor,
    bias: Tensor,
    index: Tensor | None,
    *,
    summed: bool = False,
    specialised: bool = False,
) -> None:
    """Take the gradients of x and scale from a dense upstream gradient, or from that of a sum, whose strides are 0."""
    x, scale = x.detach().requires_grad_(), scale.detach().requires_grad_()
    y = hf.svd_linear(x, u, scale, vh, bias, index=index)
    upstream = torch.empty(() if summed else y.shape, device="cuda", dtype=y.dtype).expand(y.shape)
    with mock.patch.object(gemm, "SPECIALISE", specialised):
        torch.autograd.grad(y, (x, scale), upstream)


def normal(found: list[Launch], names: dict[str, str]) -> list[dict[str, Any]]:
    """Return launches in which inputs have their names, and other addresses the number of their first appearance."""
    names = dict(names)

    def named(parameter: str) -> str:
        start = parameter[:16]
        if len(start) < 16 or int.from_bytes(bytes.fromhex(start), "little") < 1 << 32:
            return parameter
        return f"{names.setdefault(start, f'tensor {len(names)}')} {parameter[16:]}".strip()

    return [launch._asdict() | {"parameters": [named(p) for p in launch.parameters]} for launch in found]


def compared(call: partial[object]) -> dict[str, Any]:
    """Run a call through Triton, so that it is compiled; again through Triton; and repeated from what was kept."""
    names = ("x", "u", "scale", "vh", "bias", "index", "u8", "u_scale", "vh8", "vh_scale", "vh_norm")
    given = [*call.args, *([call.keywords.get("index")] if len(call.args) == 5 else [])]
    given += call.keywords.get("factors", ())
    named = {address(tensor): name for name, tensor in zip(names, given, strict=False) if tensor is not None}
    replay._calls.clear()
    call()
    replay._calls.clear()
    launches()
    call()
    through_triton = launches()
    assert replay._calls
    call()
    return {"triton": normal(through_triton, named), "repeated": normal(launches(), named)}


def two_threads() -> dict[str, int]:
    """Run one shape in two threads, on tensors and streams of their own, and count launches that mix the two."""
    own: set[tuple[str, str, int]] = set()

    def work() -> None:
        x, u, scale, vh, bias, _ = tensors(8, 1024, "sample", torch.bfloat16)
        stream = torch.cuda.Stream()
        own.add((address(x), address(scale), stream.cuda_stream))
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(300):
                hf.svd_linear(x, u, scale, vh, bias)

    work()
    launches()
    own.clear()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    scales = {scale for _, scale, _ in own}
    found = [launch for launch in launches() if launch.kernel != "cublas"]
    seen = [(one.parameters[0][:16], next(p for p in one.parameters if p in scales), one.stream) for one in found]
    return {"launches": len(seen), "pairs": len(own), "mixed": len(set(seen) - own)}


def address(tensor: Tensor) -> str:
    return tensor.data_ptr().to_bytes(8, "little").hex()


def thread_without_context() -> int:
    """Return the launches of a kept call in a thread that has not used the GPU before."""
    arguments = tensors(8, 1024, "sample", torch.bfloat16)[:5]
    hf.svd_linear(*arguments)
    key = next(reversed(replay._calls))
    kernel, pointers = replay._calls[key].kernel, [tensor.data_ptr() for tensor in arguments[:4]]
    launches()
    launched: list[bool] = []

    def work() -> None:
        launched.append(kernel(0, *pointers))
        with torch.no_grad():
            hf.svd_linear(*arguments)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert launched == [False]
    return len(launches())


def result_is_a_view() -> bool:
    """Return whether y of a training call, new or repeated, cannot be changed in place."""
    x, *rest = tensors(8, 1024, "sample", torch.bfloat16)[:5]
    results = [hf.svd_linear(x.requires_grad_(), *rest) for _ in range(2)]
    for y in results:
        y.mul_(2)
    return any(y._is_view() for y in results)


class Seen(TorchDispatchMode):
    """Records the names of the ops it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def checked() -> dict[str, str]:
    """Make calls that are those of a kept one but for one thing, and return what each gives."""
    x, u, scale, vh, bias, index = tensors(8, 1024, "bank", torch.bfloat16)
    hf.svd_linear(x, u, scale, vh, bias, index=index)
    assert replay.kept_key(x, u, scale, vh, bias, index) is not None
    assert index is not None
    wrong: dict[str, partial[object]] = {
        "u that requires grad": partial(hf.svd_linear, x, u.detach().requires_grad_(), scale, vh, bias, index=index),
        "bias of another dtype": partial(hf.svd_linear, x, u, scale, vh, bias.float(), index=index),
        "bias of another shape": partial(hf.svd_linear, x, u, scale, vh, bias[:-8].clone(), index=index),
        "index of a float dtype": partial(hf.svd_linear, x, u, scale, vh, bias, index=index.double()),
        "scale for another batch": partial(hf.svd_linear, x, u, scale, vh, bias),
    }
    found = {}
    for name, call in wrong.items():
        try:
            call()
        except (TypeError, ValueError) as error:
            found[name] = type(error).__name__
    with Seen() as seen:
        hf.svd_linear(x, u, scale, vh, bias, index=index)
    found["counted by a mode"] = "seen" if "hystar_fast.svd_linear_forward.default" in seen.names else "unseen"
    with torch.autocast("cuda", torch.float16):
        found["autocast"] = str(hf.svd_linear(x, u, scale, vh, bias, index=index).dtype)
    return found


def host_calls(call: Callable[[], object]) -> int:
    """Return the number of Python and C functions that a repeated call runs."""
    call()
    call()
    count = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    call()
    sys.setprofile(None)
    return count


def main() -> None:
    record = prepared._prepare

    def prepare(compiled: Any, grid: tuple[int, int], arguments: Any) -> prepared.Prepared | None:
        record_parameters(compiled.function, prepared._parameter_sizes(compiled.asm["ptx"]))
        return record(compiled, grid, arguments)

    prepared._prepare = prepare
    calls = dict(cases())
    counted = [name for name in calls if name.startswith("B48 r1024 sample bfloat16")]
    measured = {name: host_calls(calls[name]) for name in counted}
    found = {name: compared(call) for name, call in calls.items()}
    threads = two_threads() | {"without context": thread_without_context()}
    rest = {"host calls": measured, "view": result_is_a_view(), "checked": checked()}
    print(json.dumps({"cases": found, "threads": threads, **rest}), flush=True)
    os._exit(0)  # torch's threads do not end on the stub


if __name__ == "__main__":
    main()
