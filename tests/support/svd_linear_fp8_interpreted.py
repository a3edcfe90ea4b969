"""Run by test_svd_linear_fp8.py with TRITON_INTERPRET=1: the fp8 kernels of svd_linear against emulation.

Interpreting is chosen when Triton is imported, hence a process of its own. Prints one line for every failure.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
import triton
import triton.language as tl

from hystar_fast.kernels.svd_linear import fp8
from hystar_fast.kernels.svd_linear.fp8 import _e4m3
from hystar_fast.kernels.tuning import Gpu, Tile
from hystar_fast.ops.svd_linear import fp8 as op
from tests.support.svd_linear_cases import KINDS, make_inputs
from tests.support.svd_linear_interpreted import DESCRIPTORS, PERSISTENT, POINTERS
from tests.support.tolerance import FLOOR, relative_error

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import interpreter

# (batch, tokens, in, out, rank), tile: inside a sample, over two, over many; odd; one; aligned
CASES = [
    ((2, 45, 48, 64, 80), PERSISTENT),
    ((2, 45, 64, 64, 80), PERSISTENT),  # whole steps of the inner dimension: interleaved columns
    ((1, 33, 16, 16, 16), DESCRIPTORS),
    ((5, 7, 48, 64, 80), DESCRIPTORS),
    ((5, 7, 37, 29, 41), POINTERS),
    ((2, 45, 37, 29, 41), POINTERS),
    ((33, 1, 37, 29, 41), POINTERS),
    ((1, 1, 1, 1, 1), POINTERS),
    ((3, 2, 16, 16, 1100), POINTERS),  # the bound of a scale is found in two steps
]


@triton.jit
def _round_kernel(value, rounded, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(rounded + at, _e4m3(tl.load(value + at)))


def check_rounding() -> list[str]:
    """The bytes are torch's: every e4m3 value, the middle between any two and its neighbours, NaN, both signs."""
    every = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middle = (every[1:] + every[:-1]) / 2
    near = torch.cat([middle.nextafter(torch.tensor(toward)) for toward in (-1e9, 1e9)])
    value = torch.cat([every, middle, near, torch.tensor([float("nan"), 1e-20, 1e-38])])
    value = torch.cat([value, -value])
    value = torch.cat([value, torch.zeros(1024 - len(value))])
    rounded = torch.empty(1024, dtype=torch.float8_e4m3fn)
    _round_kernel[(1,)](value, rounded, COUNT=1024)
    expected = value.to(torch.float8_e4m3fn).float()
    wrong = ~((rounded.float() == expected) | (rounded.float().isnan() & expected.isnan()))
    return [f"e4m3 of {value[wrong].tolist()} is {rounded.float()[wrong].tolist()}"] if wrong.any() else []


def forward(tile: Tile, *arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
    with (
        mock.patch.object(torch.cuda, "device", lambda _: nullcontext()),
        mock.patch.object(op.cuda, "gpu", lambda _: Gpu((9, 0), 2)),
        mock.patch.object(fp8, "svd_linear_tile", lambda *_, **__: tile),
    ):
        return op.forward_cuda(*arguments)  # type: ignore[arg-type]


def check_case(dtype: torch.dtype, kind: str, case: tuple[int, int, int, int, int], tile: Tile) -> list[str]:
    """y and h are the emulation's but for the few values that float32's last bit rounds to the other neighbour."""
    x, u, scale, vh, bias, index = make_inputs(*case, kind, dtype)
    if tile is POINTERS:  # strides
        x, bias = x.repeat_interleave(2, -1)[..., ::2], bias.repeat_interleave(2)[::2]
        scale = scale.repeat_interleave(2, -1)[..., ::2]
    factors = op.quantise_factors(u, vh)
    failures = []
    for save, added in ((True, bias), (False, None))[: 1 + (kind == "shared")]:
        arguments = (x, scale, *factors, added, index, save)
        for name, actual, same in zip("yh", forward(tile, *arguments), op.forward_cpu(*arguments), strict=True):
            assert actual.dtype == same.dtype == dtype
            if (error := relative_error(actual, same)) > max(FLOOR[dtype], 2e-3):
                failures.append(f"{dtype} {kind} {case} {tile}: {name} differs from the emulation by {error:.1e}")
    return failures


def check_poison() -> list[str]:
    """NaN or inf in a row stays in it, NaN in a scale and an index outside the bank in their samples."""
    failures = []
    for tokens, poison in ((45, float("nan")), (7, float("inf"))):
        x, u, scale, vh, _, _ = make_inputs(4, tokens, 37, 29, 41, "sample", torch.float32)
        x[1, 0, 5] = poison
        scale[3, 2] = float("nan")
        y, _ = forward(POINTERS, x, scale, *op.quantise_factors(u, vh), None, torch.tensor([0, 1, 7, 3]), False)
        finite = y[0].isfinite().all() and y[1, 1:].isfinite().all()
        if not (finite and y[1, 0].isnan().all() and y[2].isnan().all() and y[3].isnan().all()):
            failures.append(f"T={tokens} {poison}: a poisoned row or sample is not alone")
    return failures


def check_extremes() -> list[str]:
    """Zero rows are exact zeros, and rows of any size are as accurate as others."""
    x, u, scale, vh, _, _ = make_inputs(2, 5, 37, 29, 41, "sample", torch.float32)
    factors = op.quantise_factors(u, vh)
    y, _ = forward(POINTERS, x, scale, *factors, None, None, False)
    failures = []
    for factor in (0.0, 2.0**-60, 2.0**60):
        other, _ = forward(POINTERS, x * factor, scale, *factors, None, None, False)
        if not torch.allclose(other, y * factor, rtol=1e-4, atol=0):
            failures.append(f"x times {factor} does not give y times {factor}")
    return failures


def main() -> int:
    interpreter.patch_once()
    torch.manual_seed(0)
    failures = check_rounding() + check_poison() + check_extremes()
    for kind in KINDS:
        for case, tile in CASES:
            failures += check_case(torch.float32, kind, case, tile)
        for dtype in (torch.bfloat16, torch.float16):
            failures += check_case(dtype, kind, *CASES[0])
    print("\n".join(failures))
    return len(failures) > 0


if __name__ == "__main__":
    sys.exit(main())
