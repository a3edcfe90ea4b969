"""Check first on a GPU: are the kernels of svd_linear right at the sizes of production? Prints as it goes.

    python bench/first_minute.py            # on a GPU
    TRITON_INTERPRET=1 python bench/first_minute.py --toy    # on a CPU, at toy sizes
    python bench/first_minute.py --specialised    # on a Hopper GPU: the backward with warps of three kinds alone

The outputs are held to float64 row by row, so that one wrong row of 12,336 is found. Persistent kernels are compared
with those of one tile a program, bit for bit, many times, with NaN in every fresh buffer and copies on another stream.
A line for every check, and in the end one for each group: RIGHT or WRONG. Exits with 1 if a check fails.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic algorithms need

import device_time
import kernel_variants as kernels
import torch
from harness import DEVICE
from svd_linear_cases import Case
from svd_linear_providers import tf32
from torch import Tensor

import hystar_fast as hf
from hystar_fast.kernels.tuning import SPECIALISED

TOY = "--toy" in sys.argv
REPEATS = 1 if TOY else 20
BATCH, TOKENS, INNER, OUTER, RANK, SMALL = (3, 33, 48, 64, 80, 16) if TOY else (48, 257, 1024, 3072, 1024, 128)
QKV = Case(48, 257, 1024, 3072, 1024)
LIMIT = {torch.bfloat16: 1.5e-2, torch.float16: 2.5e-3, torch.float32: 4e-3}  # of a row; float32 is TF32 on a GPU
FP8_LIMIT = 0.12
SPECIALISED_LAYERS = (("sample", torch.bfloat16), ("bank", torch.bfloat16), ("sample", torch.float16))
Check = Callable[[], str]


class WrongResultError(Exception):
    """A check failed; the text says how."""


def row_error(actual: Tensor, truth: Tensor) -> float:
    """Return the largest ||row - truth|| / ||truth||; a row far smaller than the others counts by a tenth of theirs."""
    if actual.shape != truth.shape:
        raise WrongResultError(f"the shape is {tuple(actual.shape)} and not {tuple(truth.shape)}")
    actual, truth = (a.detach().double().reshape(-1, a.shape[-1]) for a in (actual, truth))
    size = truth.norm(dim=1)
    error = (actual - truth).norm(dim=1) / size.clamp_min(0.1 * size.square().mean().sqrt().item() + 1e-300)
    return error.nan_to_num(nan=float("inf")).max().item()


def hold(names: str, actual: Sequence[Tensor], truth: Sequence[Tensor], limit: float) -> str:
    """Compare outputs with float64, and return their row errors as text."""
    errors = {n: row_error(a, t) for n, a, t in zip(names.split(), actual, truth, strict=True)}
    text = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    if not all(error <= limit for error in errors.values()):
        raise WrongResultError(f"row errors {text}, limit {limit:.0e}")
    return f"row errors {text}"


def equal(names: str, actual: Sequence[Tensor], expected: Sequence[Tensor], when: str) -> None:
    for name, a, e in zip(names.split(), actual, expected, strict=True):
        if not torch.equal(a.contiguous().view(torch.uint8), e.contiguous().view(torch.uint8)):  # NaN equals itself
            rows = (a != e).reshape(-1, a.shape[-1]).any(1).sum().item()
            raise WrongResultError(f"{name} differs in {rows} of {a.numel() // a.shape[-1]} rows {when}")


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill every fresh buffer with NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def disturbed(on: bool) -> Iterator[None]:
    """Copy memory on another stream meanwhile, which moves the times at which loads arrive."""
    if not on or DEVICE == "cpu":
        yield
        return
    side, source = torch.cuda.Stream(), torch.empty(1 << 28, dtype=torch.uint8, device=DEVICE)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(4):
            source.clone()
    yield
    torch.cuda.current_stream().wait_stream(side)


def compare_with_one_tile(
    names: str, run: Callable[[kernels.Tile], list[Tensor]], tile: kernels.Tile, tiles: int, gpu: kernels.Gpu
) -> list[Tensor]:
    """Assert that a persistent kernel gives the bits of one tile a program, every time; return them."""
    if not tile.persistent or tiles <= gpu.multiprocessors:
        raise WrongResultError(f"{tiles} tiles are not persistent on {gpu.multiprocessors} multiprocessors: {tile}")
    with poisoned():
        expected = run(kernels.not_persistent(tile))
        equal(names, run(kernels.not_persistent(tile)), expected, "of two runs, one tile a program")
        for repeat in range(REPEATS):
            with disturbed(repeat % 2 == 1):
                equal(names, run(tile), expected, f"in run {repeat + 1} of the persistent kernel")
    return expected


def layers() -> Iterator[tuple[str, torch.dtype, int]]:
    """Yield kind, dtype and rank of the layers whose kernels are compared."""
    if TOY:
        yield from (("sample", torch.bfloat16, RANK), ("shared", torch.float16, RANK))
        return
    yield from (("sample", torch.bfloat16, RANK), ("bank", torch.bfloat16, RANK), ("shared", torch.bfloat16, RANK))
    yield from (("sample", torch.float16, RANK), ("sample", torch.bfloat16, RANK // 2))


def check_persistent(kind: str, dtype: torch.dtype, rank: int) -> str:
    """Forward with and without h, and backward of both, x alone and the scale alone."""
    layer, gpu = kernels.make_layer(BATCH, TOKENS, INNER, OUTER, rank, kind=kind, dtype=dtype), kernels.gpu_here()
    tile = kernels.shipped_tile(layer, layer.x.itemsize, gpu)
    tiles = kernels.tiles_of(tile, len(layer.x), rank)
    g, h = compare_with_one_tile("g h", lambda t: kernels.forward(layer, t, gpu, keep_h=True), tile, tiles, gpu)
    found = hold("g h", [g, h], kernels.exact_forward(layer), LIMIT[dtype])
    alone = compare_with_one_tile("g", lambda t: kernels.forward(layer, t, gpu, keep_h=False), tile, tiles, gpu)
    equal("g", alone, [g], "without h")
    both = compare_with_one_tile("dg dscale", lambda t: kernels.backward(layer, h, t, gpu), tile, tiles, gpu)
    found += "; " + hold("dg dscale", both, kernels.exact_backward(layer, h), LIMIT[dtype])
    of_x = compare_with_one_tile("dg", lambda t: kernels.backward(layer, None, t, gpu), tile, tiles, gpu)
    of_scale = compare_with_one_tile(
        "dscale", lambda t: kernels.backward(layer, h, t, gpu, needs_dg=False), tile, tiles, gpu
    )
    equal("dg dscale", [*of_x, *of_scale], both, "alone")
    return f"{tiles} tiles, {REPEATS} runs, {found}"


def check_specialised(kind: str, dtype: torch.dtype) -> str:
    """The backward with warps of three kinds: many runs, bit for bit, and float64."""
    layer, gpu = kernels.make_layer(BATCH, TOKENS, INNER, OUTER, RANK, kind=kind, dtype=dtype), kernels.gpu_here()
    h = kernels.forward(layer, kernels.shipped_tile(layer, layer.x.itemsize, gpu), gpu, keep_h=True)[1]
    with poisoned():
        expected = kernels.backward(layer, h, SPECIALISED, gpu)
        for repeat in range(REPEATS):
            with disturbed(repeat % 2 == 1):
                equal("dg dscale", kernels.backward(layer, h, SPECIALISED, gpu), expected, f"in run {repeat + 2}")
    found = hold("dg dscale", expected, kernels.exact_backward(layer, h), LIMIT[dtype])
    return f"{REPEATS + 1} runs, {found}"


def check_persistent_fp8(keep_h: bool) -> str:
    layer, gpu = kernels.make_layer(BATCH, TOKENS, INNER, OUTER, RANK, dtype=torch.bfloat16), kernels.gpu_here()
    tile, factors = kernels.shipped_tile(layer, 1, gpu), layer.factors
    tiles, names = kernels.tiles_of(tile, len(layer.x), RANK), "y g h" if keep_h else "y g"

    def run(tile: kernels.Tile) -> list[Tensor]:
        return kernels.fp8_forward(layer, factors, tile, gpu, keep_h=keep_h)

    y, *rest = compare_with_one_tile(names, run, tile, tiles, gpu)
    g, h = kernels.exact_forward(layer)
    found = hold("y h" if keep_h else "y", [y, *rest[1:]], [g @ layer.u.double().T, h][: 1 + keep_h], FP8_LIMIT)
    return f"{tiles} tiles, {REPEATS} runs, {found}"


def arguments(case: Case) -> tuple[list[Tensor], Tensor | None, Tensor]:
    """Return x, u, scale and vh of a call of the op, its index, and a dense upstream gradient."""
    sizes = (case.batch, case.tokens, case.in_features, case.out_features, case.rank)
    layer = kernels.make_layer(*sizes, kind=case.kind, dtype=case.dtype)
    x, dy = (a.view(case.batch, case.tokens, -1) for a in (layer.x, layer.dy))
    return [x, layer.u, layer.scale, layer.vh], layer.index, dy


def step(
    given: list[Tensor],
    index: Tensor | None,
    dy: Tensor,
    function: Callable[..., Tensor] = hf.svd_linear,
    needs: str = "both",
    **options: object,
) -> list[Tensor]:
    """Return y, and those of dx and dscale that are needed."""
    x, u, scale, vh = given
    x = x.detach().requires_grad_(needs in ("both", "x"))
    scale = scale.detach().requires_grad_(needs in ("both", "scale"))
    y = function(x, u, scale, vh, index=index, **options)
    leaves = [a for a in (x, scale) if a.requires_grad]
    return [y, *(torch.autograd.grad(y, leaves, dy) if leaves else [])]


@dataclass(frozen=True)
class OpCheck:
    """A call of the op, and the gradients that it needs: "both", "x", "scale" or "none"."""

    case: Case = QKV
    needs: str = "both"
    fp8: bool = False
    dense: bool = True  # or the upstream gradient of y.sum(), which has no strides

    @property
    def name(self) -> str:
        words = [str(self.case), str(self.case.dtype).removeprefix("torch.")] + ["fp8"] * self.fp8
        return ", ".join([*words, f"gradients: {self.needs}"] + ["upstream of sum()"] * (not self.dense))

    def __call__(self) -> str:
        given, index, dy = arguments(self.case.toy() if TOY else self.case)
        dy = dy if self.dense else torch.ones((), dtype=dy.dtype, device=DEVICE).expand(dy.shape)
        options: dict[str, object] = {"precision": "fp8"} if self.fp8 else {}
        names = {"both": "y dx dscale", "x": "y dx", "scale": "y dscale", "none": "y"}[self.needs]
        with tf32(dy.dtype), poisoned():
            actual = step(given, index, dy, needs=self.needs, **options)
            again = step(given, index, dy, needs=self.needs, **options)
            equal(names, again, actual, "of two calls")
        truth = step([a.double() for a in given], index, dy.double(), hf.ref.svd_linear, needs=self.needs)
        return hold(names, actual, truth, FP8_LIMIT if self.fp8 else LIMIT[dy.dtype])


def op_checks() -> Iterator[OpCheck]:
    """Yield calls of the op that launch every kernel of docs/benchmarks/gpu-coverage.md."""
    yield from (OpCheck(), OpCheck(dense=False), OpCheck(replace(QKV, rank=128)), OpCheck(fp8=True))
    layers = [QKV, *(replace(QKV, kind=kind) for kind in ("bank", "shared"))]
    layers += [replace(QKV, batch=batch) for batch in (1, 8)]
    layers += [replace(QKV, rank=rank, batch=batch) for rank in (128, 64) for batch in (48, 1)]
    layers += [replace(QKV, tokens=50), *(replace(QKV, dtype=dtype) for dtype in (torch.float16, torch.float32))]
    for layer, needs in product(layers, ("both", "x", "scale", "none")):
        if (layer, needs) not in ((QKV, "both"), (replace(QKV, rank=128), "both")):
            yield OpCheck(layer, needs)
    layers = [QKV, *(replace(QKV, kind=kind) for kind in ("bank", "shared"))]
    layers += [replace(QKV, batch=1), replace(QKV, tokens=50), replace(QKV, dtype=torch.float16)]
    layers += [replace(QKV, rank=512), replace(QKV, in_features=4096, out_features=1024)]
    for layer, needs in product(layers, ("both", "none")):
        if (layer, needs) != (QKV, "both"):
            yield OpCheck(layer, needs, fp8=True)


def check_graph(rank: int, options: dict[str, object]) -> str:
    """A captured forward and backward gives the bits of eager calls, for inputs written after the capture."""
    given, index, dy = arguments(Case(BATCH, TOKENS, INNER, OUTER, rank))
    factors = hf.ops.svd_linear.quantise_factors(given[1], given[3]) if options else None
    call = lambda: step(given, index, dy, factors=factors, **options)  # noqa: E731
    with device_time.on_stream():
        replay, how = device_time.replayed(call)
        if DEVICE == "cuda" and how != "graph":
            raise WrongResultError("the call cannot be captured")
        for seed in (1, 2):
            given[0].copy_(torch.randn(given[0].shape, generator=torch.Generator().manual_seed(seed)))
            captured = [a.clone() for a in replay()]
            equal("y dx dscale", captured, call(), f"in replay {seed}")
    return f"replays equal eager calls ({how})"


def sinkhorn_step(cost: Tensor, dplan: Tensor, function: Callable[..., Tensor], grad: str) -> list[Tensor]:
    cost = cost.detach().requires_grad_()
    plan = function(cost, 0.05, 5 if TOY else 50, grad=grad)
    return [plan, *torch.autograd.grad(plan, cost, dplan)]


def check_sinkhorn(batch: int, size: int) -> str:
    cost, dplan = torch.rand(batch, size, size, device=DEVICE), torch.randn(batch, size, size, device=DEVICE)
    with poisoned():
        actual = sinkhorn_step(cost, dplan, hf.sinkhorn, "unroll")
    return hold("plan dcost", actual, sinkhorn_step(cost.double(), dplan.double(), hf.ref.sinkhorn, "unroll"), 1e-4)


def check_style_nce(size: int) -> str:
    query, target = torch.randn(2, size, 16 if TOY else 768, device=DEVICE)

    def both(function: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
        q, t = (a.detach().requires_grad_() for a in given)
        loss = function(q, t, reduction="none")
        return [loss[:, None], *torch.autograd.grad(loss.sum(), (q, t))]

    with poisoned():
        actual = both(hf.style_nce, query, target)
    return hold("loss dquery dtarget", actual, both(hf.ref.style_nce, query.double(), target.double()), 1e-3)


def checks() -> Iterator[tuple[str, str, Check]]:
    """Yield group, name and check; those that no other test reaches come first."""
    persistent, op, fp8, graph, others = (
        "persistent",
        "svd_linear",
        "fp8",
        "CUDA graphs",
        "sinkhorn and style_nce in torch",
    )
    for kind, dtype, rank in layers():
        name = f"{kind} r{rank} {str(dtype).removeprefix('torch.')}"
        yield persistent, name, lambda k=kind, d=dtype, r=rank: check_persistent(k, d, r)
    for keep_h in (False, True):
        yield fp8, f"persistent, {'with' if keep_h else 'without'} h", lambda k=keep_h: check_persistent_fp8(k)
    for op_check in op_checks():
        yield fp8 if op_check.fp8 else op, op_check.name, op_check
    for rank, options in ((RANK, {}), (SMALL, {}), (RANK, {"precision": "fp8"})):
        yield graph, f"r{rank}{' fp8' * bool(options)}", lambda r=rank, o=options: check_graph(r, o)
    for batch, size in ((2, 9), (1, 20)) if TOY else ((4096, 48), (64, 256), (1, 1024)):
        yield others, f"{batch} of {size}x{size}", lambda b=batch, s=size: check_sinkhorn(b, s)
    yield others, "StyleNCE", lambda: check_style_nce(7 if TOY else 48)


def specialised_checks() -> Iterator[tuple[str, str, Check]]:
    """Yield the checks of the kernel that is not chosen yet, for a process of their own: it may wait for ever."""
    for kind, dtype in SPECIALISED_LAYERS:
        name = f"{kind} {str(dtype).removeprefix('torch.')}"
        yield "specialised backward", name, lambda k=kind, d=dtype: check_specialised(k, d)


def main() -> int:
    torch.manual_seed(0)
    groups: dict[str, list[str]] = {}
    dead = ""
    for group, name, check in specialised_checks() if "--specialised" in sys.argv else checks():
        started, problems = time.perf_counter(), groups.setdefault(group, [])
        try:
            text = check() if not dead else ""
        except Exception as error:
            text = ""
            problem = str(error) if isinstance(error, WrongResultError) else "".join(traceback.format_exception(error))
            problems.append(f"{name}: {problem.strip().splitlines()[-1]}")
            if "CUDA error" in problem:  # after one, the process can run nothing more
                dead = "not run after a CUDA error"
            print(problem.strip(), flush=True)
        else:
            problems.append(f"{name}: {dead}" if dead else "")
        state = "FAIL" if problems[-1] else "ok  "
        print(f"{state} {group}, {name}, {time.perf_counter() - started:.1f} s: {text or problems[-1]}", flush=True)
    for group, problems in groups.items():
        wrong = [problem for problem in problems if problem]
        first = f"; {wrong[0]}" if wrong else ""
        print(f"{'WRONG' if wrong else 'RIGHT'} {group}: {len(problems) - len(wrong)} of {len(problems)} checks{first}")
    return int(any(problem for problems in groups.values() for problem in problems))


if __name__ == "__main__":
    sys.exit(main())
