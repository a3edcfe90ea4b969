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

_alive: list[object] = []


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
    replay.calls().clear()
    call()
    replay.calls().clear()
    launches()
    call()
    through_triton = launches()
    assert len(replay.calls())
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
    """Return the launches of a kept call in a thread that has not used the GPU before, and allocates nothing new."""
    given = (*tensors(1, 1024, "sample", torch.bfloat16)[:5], None)
    _alive.extend(given)  # memory of the caching allocator must not be freed once it is off
    for _ in range(2):
        hf.svd_linear(*given[:5])  # type: ignore[arg-type]
    assert replay.run(0, *given) is not None
    launches()
    repeated: list[object] = []

    def work() -> None:
        repeated.append(replay.run(0, *given))
        with torch.no_grad():
            hf.svd_linear(*given[:5])  # type: ignore[arg-type]

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert repeated == [None]
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
    assert index is not None and replay.run(0, x, u, scale, vh, bias, index) is not None
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


def raised(call: Callable[[], object]) -> str:
    """Return the words of the error of a call that end its first line; empty if there is none."""
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


def kernels() -> list[str]:
    return [launch.kernel.removeprefix("_svd_linear_").removesuffix("_kernel") for launch in launches()]


def gradients() -> dict[str, Any]:
    """Take gradients of repeated calls in every way that autograd has."""
    x, u, scale, vh, bias, _ = tensors(8, 1024, "sample", torch.bfloat16)
    leaves = {"x": x, "scale": scale, "bias": bias}
    found: dict[str, Any] = {}

    def layer(*needed: str) -> Tensor:
        for name, leaf in leaves.items():
            leaf.requires_grad_(name in needed)
        return hf.svd_linear(x, u, scale, vh, bias)

    for needed in (["x"], ["scale"], ["bias"], ["x", "scale", "bias"]):
        for _ in range(2):
            y = layer(*needed)
            launches()
            given = torch.autograd.grad(y, [leaves[name] for name in needed], torch.empty_like(y))
        shapes = [gradient.shape == leaves[name].shape for gradient, name in zip(given, needed, strict=True)]
        found["of " + " ".join(needed)] = [type(y.grad_fn).__name__, *kernels(), all(shapes)]
    y = layer("x", "scale")
    launches()
    torch.autograd.grad(y, scale, torch.empty_like(y))
    found["of scale alone"] = kernels()
    dy = torch.empty_like(y)
    found["twice"] = raised(lambda: torch.autograd.grad(y, scale, dy))
    y = layer("x", "scale")
    for _ in range(2):
        launches()
        torch.autograd.grad(y, (x, scale), dy, retain_graph=True)
    found["twice, retained"] = kernels()
    found["create_graph"] = raised(lambda: torch.autograd.grad(y, x, dy, create_graph=True))
    found["batched"] = list(torch.autograd.grad(y, scale, torch.stack([dy] * 2), is_grads_batched=True)[0].shape)
    for name, tensor in {"u": u, "scale": scale, "vh": vh}.items():
        y = layer("x", "scale")
        with torch.no_grad():
            tensor.mul_(2)
        found[f"{name} changed"] = raised(lambda y=y: torch.autograd.grad(y, x, dy))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.cpu(), lambda t: t.cuda()):
        y = layer("x", "scale")
    launches()
    torch.autograd.grad(y, (x, scale), dy)
    found["saved on the host"] = kernels()
    return found


class Marked(Tensor):
    """A subclass."""


def not_repeated() -> dict[str, bool]:
    """Return whether calls are repeated that differ from a kept one by what a key has not, and what watches them."""
    x, u, scale, vh, bias, _ = tensors(8, 1024, "sample", torch.bfloat16)
    for _ in range(2):
        hf.svd_linear(x, u, scale, vh, bias)

    def repeats(x: Tensor = x, u: Tensor = u, scale: Tensor = scale) -> bool:
        return replay.checked_forward(x, u, scale, vh, bias, None, True) is not None

    kept = {"plain": repeats(), "parameter": repeats(u=torch.nn.Parameter(u, requires_grad=False))}
    kept["negated"] = repeats(x=torch._neg_view(x))
    kept["zero"] = repeats(scale=torch._efficientzerotensor(scale.shape, device="cuda"))
    kept["shifted"] = repeats(x=torch.empty(x.numel() + 1, device="cuda", dtype=x.dtype)[1:].view(x.shape))
    kept["subclass"] = repeats(x=x.as_subclass(Marked))
    kept["transposed"] = repeats(x=x.transpose(0, 1).contiguous().transpose(0, 1))
    places = torch.empty(3, 5, device="cuda", dtype=torch.int64)
    kept["sparse"] = repeats(x=torch.sparse_coo_tensor(places, x[0, 0, :5], x.shape, check_invariants=False))
    kept["on the host"] = repeats(u=u.cpu())
    with torch.autograd.profiler.profile():
        kept["profiled"] = repeats()
    with torch.autograd.forward_ad.dual_level():
        kept["forward mode"] = repeats()
    with Seen():
        kept["dispatch mode"] = repeats()
    with torch.overrides.BaseTorchFunctionMode():
        kept["function mode"] = repeats()
    torch.func.vmap(lambda _: kept.update(transformed=repeats()) or x[0, 0, 0])(torch.empty(2))
    torch.jit.trace(lambda _: kept.update(traced=repeats()) or x[0, 0, 0], torch.empty(2), check_trace=False)
    square = torch.empty(1024, 1024, device="cuda", dtype=torch.bfloat16)
    for _ in range(2):
        hf.svd_linear(x, square, scale, square)
    kept["u is vh"] = replay.run(0, x, square, scale, square, None, None) is not None
    replay.calls().clear()
    replay.calls().keep(range(300), (x,), (), 0, [], None)
    kept["the newest"], kept["the oldest"] = (replay.run(option, x) is not None for option in (299, 0))
    kept["256 at most"] = len(replay.calls()) == 256
    return kept


def host_calls(call: Callable[[], object]) -> int:
    """Return the number of Python and C functions that a repeated call runs."""
    call()
    call()
    count = 0
    torch.autograd.set_multithreading_enabled(False)  # the backward in this thread, to be counted

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    call()
    sys.setprofile(None)
    torch.autograd.set_multithreading_enabled(True)
    return count


def main() -> None:
    without_context = thread_without_context()
    torch.cuda.caching_allocator_enable(False)  # from here on, every tensor has an address of its own
    record = prepared._prepare

    def prepare(compiled: Any, grid: tuple[int, int], arguments: Any) -> prepared.Launch | None:
        record_parameters(compiled.function, prepared._parameter_sizes(compiled.asm["ptx"]))
        return record(compiled, grid, arguments)

    prepared._prepare = prepare
    calls = dict(cases())
    counted = [name for name in calls if name.startswith("B48 r1024 sample bfloat16")]
    measured = {name: host_calls(calls[name]) for name in counted}
    found = {name: compared(call) for name, call in calls.items()}
    threads = two_threads() | {"without context": without_context}
    rest = {"host calls": measured, "view": result_is_a_view(), "checked": checked()}
    rest |= {"gradients": gradients(), "repeated": not_repeated()}
    print(json.dumps({"cases": found, "threads": threads, **rest}), flush=True)
    os._exit(0)  # torch's threads do not end on the stub


if __name__ == "__main__":
    main()
