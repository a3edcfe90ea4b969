"""Run by test_svd_linear_fused.py with TRITON_INTERPRET=1: the fused kernel of svd_linear on CPU tensors.

Interpreting is chosen when Triton is imported, hence a process of its own. Prints one line for every failure.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from hystar_fast.kernels.svd_linear import fused as kernels
from hystar_fast.kernels.svd_linear.launch import Modulation
from hystar_fast.kernels.tuning import Gpu, Tile
from hystar_fast.ref.svd_linear import svd_linear as reference
from tests.support.svd_linear_cases import KINDS, make_inputs
from tests.support.tolerance import FLOOR, relative_error

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import interpreter

POINTERS, DESCRIPTORS = Tile(32, 32, 32, 4, 3), Tile(32, 32, 32, 4, 3, descriptors=True)
# (batch, tokens, in, out, rank), tile, shares: inside a sample, over two, over many; odd; one; aligned; full width
CASES = [
    ((2, 45, 48, 104, 24), DESCRIPTORS, 3),
    ((5, 7, 48, 40, 16), DESCRIPTORS, 1),
    ((5, 7, 37, 71, 13), POINTERS, 2),
    ((2, 45, 37, 29, 128), POINTERS, 1),
    ((33, 1, 37, 29, 41), POINTERS, 9),
    ((1, 1, 1, 1, 1), POINTERS, 1),
]


def fused(
    inputs: tuple[Tensor, ...], dy: Tensor, tile: Tile, shares: int, *, save: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, dx and dscale; without dscale where h is not saved."""
    x, u, scale, vh, bias, index = inputs
    rows, upstream = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    if tile is POINTERS:
        rows, upstream = rows.t().contiguous().t(), upstream.repeat_interleave(2, 1)[:, ::2]
    y, dx = rows.new_empty(len(rows), len(u)), torch.empty_like(rows, memory_format=torch.contiguous_format)
    modulation = Modulation(scale, index, x.shape[1])
    options = {"gpu": Gpu((9, 0), 4), "tile": tile, "shares": shares}
    h = kernels.forward(rows, u, vh, bias, modulation, y, keep_h=save, **options)
    dscale = kernels.backward(upstream, u, vh, h, modulation, dx, **options)
    return y.view(*x.shape[:-1], len(u)), dx.view(x.shape), dscale


def check_case(
    dtype: torch.dtype, kind: str, case: tuple[int, int, int, int, int], tile: Tile, shares: int
) -> list[str]:
    x, u, scale, vh, bias, index = make_inputs(*case, kind, dtype)
    dy = torch.randn(*x.shape[:-1], len(u)).to(dtype)
    if tile is POINTERS:  # strides
        vh, u = vh.t().contiguous().t(), u.repeat(1, 2)[:, : u.shape[1]]
        scale, bias = scale.repeat_interleave(2, -1)[..., ::2], bias.repeat_interleave(2)[::2]
    leaves = [x.double().requires_grad_(), scale.double().requires_grad_()]
    truth = reference(leaves[0], u.double(), leaves[1], vh.double(), bias.double(), index=index)
    truths = (truth, *torch.autograd.grad(truth, leaves, dy.double()))
    actual = fused((x, u, scale, vh, bias, index), dy, tile, shares)
    failures = [
        f"{dtype} {kind} {case} {tile}: {name} is off by {error:.1e}"
        for name, one, other in zip(("y", "dx", "dscale"), actual, truths, strict=True)
        if one is None or (error := relative_error(one, other)) > FLOOR[dtype]
    ]
    y, dx, dscale = fused((x, u, scale, vh, None, index), dy, tile, shares + 1, save=False)
    same = torch.allclose(y + bias, actual[0], atol=0.05, rtol=0.02) and torch.equal(dx, actual[1])
    return failures + ([] if same and dscale is None else [f"{dtype} {kind} {case}: what is left out changes another"])


def check_poison() -> list[str]:
    """NaN in one sample, and an index outside the bank, stay in their own samples and rows."""
    failures = []
    for tokens in (45, 7):
        x, u, scale, vh, bias, _ = make_inputs(3, tokens, 37, 29, 41, "bank", torch.float32)
        x[1, 0] = float("nan")
        y, dx, dscale = fused((x, u, scale, vh, bias, torch.tensor([0, 2, 7])), torch.randn(3, tokens, 29), POINTERS, 2)
        assert dscale is not None
        finite = y[0].isfinite().all() and y[1, 1:].isfinite().all() and dx[:2].isfinite().all()
        loud = y[1, 0].isnan().all() and y[2].isnan().all() and dx[2].isnan().all()
        if not (finite and loud and dscale[0].isfinite().all() and not dscale[1].any() and dscale[2].isnan().all()):
            failures.append(f"T={tokens}: a poisoned sample is not alone")
    return failures


def main() -> int:
    interpreter.patch_once()
    torch.manual_seed(0)
    failures = check_poison()
    for kind in KINDS:
        for case in CASES:
            failures += check_case(torch.float32, kind, *case)
        for dtype in (torch.bfloat16, torch.float16):
            failures += check_case(dtype, kind, *CASES[0])
    print("\n".join(failures))
    return len(failures) > 0


if __name__ == "__main__":
    sys.exit(main())
