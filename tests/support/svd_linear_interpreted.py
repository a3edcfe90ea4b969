"""Run by test_svd_linear_kernel.py with TRITON_INTERPRET=1: the Triton kernels of svd_linear on CPU tensors.

Interpreting is chosen when Triton is imported, hence a process of its own. Prints one line for every failure.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from hystar_fast.kernels.svd_linear import gemm
from hystar_fast.kernels.svd_linear.launch import Modulation, empty_partials
from hystar_fast.kernels.tuning import Gpu, Tile
from hystar_fast.ops.svd_linear import cuda as svd_linear_cuda
from hystar_fast.ref.svd_linear import svd_linear as reference
from tests.support.svd_linear_cases import make_large
from tests.support.tolerance import FLOOR, relative_error

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import interpreter

POINTERS, DESCRIPTORS = Tile(32, 32, 32, 4, 3), Tile(32, 64, 32, 4, 3, descriptors=True)
PERSISTENT = Tile(32, 64, 32, 4, 3, descriptors=True, persistent=True)
GPU = Gpu((9, 0), 4)
# (batch, tokens, in_features, rank, out_features, tile): a tile inside a sample, over two, over many; odd; one; aligned
CASES = [
    (3, 45, 40, 72, 56, DESCRIPTORS),
    (5, 7, 40, 72, 56, DESCRIPTORS),
    (5, 7, 37, 41, 29, POINTERS),
    (3, 45, 40, 72, 56, POINTERS),
    (2, 32, 64, 32, 64, POINTERS),
    (35, 1, 37, 41, 29, POINTERS),
    (1, 1, 1, 1, 1, POINTERS),
    (3, 31, 33, 16, 34, POINTERS),
    (3, 45, 40, 136, 56, PERSISTENT),
    (3, 70, 40, 128, 56, PERSISTENT),  # whole tiles of columns, which need no mask; tiles of one sample and of two
    (2, 1100, 16, 16, 16, POINTERS),  # 35 row tiles a sample: dscale is added up in two steps
    (1, 4200, 16, 16, 16, DESCRIPTORS),  # 264 strips of rows: two steps of the longer block
]


def row_scale(scale: Tensor, index: Tensor | None, batch: int, tokens: int) -> Tensor:
    rows = scale if index is None else scale[index]
    return rows.expand(batch * tokens, -1) if rows.dim() == 1 else rows.repeat_interleave(tokens, 0)


def poisoned_partials(*arguments: Any) -> Tensor:
    """Return memory for partial sums full of NaN: what is not written must not be read."""
    partials = empty_partials(*arguments)
    assert partials is not None
    return partials.fill_(float("nan"))


def check_case(dtype: torch.dtype, kind: str, case: tuple[int, int, int, int, int, Tile], strided: bool) -> list[str]:
    """Compare both launches with float64; every result is also held to the size of one rounding."""
    batch, tokens, in_features, rank, out_features, tile = case
    rows = batch * tokens
    x, dy = torch.randn(rows, in_features).to(dtype), torch.randn(rows, out_features).to(dtype)
    u, vh = torch.randn(out_features, rank).to(dtype), torch.randn(rank, in_features).to(dtype)
    scale = torch.randn(*{"shared": (), "sample": (batch,), "bank": (3,)}[kind], rank)
    index = torch.randint(0, 3, (batch,)) if kind == "bank" else None
    if strided:
        x, dy, vh = x.t().contiguous().t(), dy.repeat_interleave(2, 1)[:, ::2], vh.t().contiguous().t()
        scale = scale.repeat_interleave(2, -1)[..., ::2]
    modulation = Modulation(scale, index, tokens)
    g, h = gemm.forward(x, vh, modulation, gpu=GPU, keep_h=True, tile=tile)
    assert h is not None
    with mock.patch.object(gemm, "empty_partials", poisoned_partials):
        dg, dscale = gemm.backward(dy, u, h, modulation, gpu=GPU, needs_dg=True, tile=tile)
    assert dg is not None and dscale is not None
    wide = row_scale(scale.double(), index, batch, tokens)
    true_h, true_dg = x.double() @ vh.double().t(), dy.double() @ u.double()
    product = true_dg * h.double()
    if kind == "shared":
        true_dscale = product.sum(0)
    else:
        true_dscale = product.view(batch, tokens, rank).sum(1)
        if index is not None:
            true_dscale = torch.zeros(3, rank, dtype=torch.float64).index_add_(0, index, true_dscale)
    results = {
        "h": (h, true_h, dtype),
        "g": (g, true_h * wide, dtype),
        "dg": (dg, true_dg * wide, dtype),
        "dscale": (dscale, true_dscale, torch.float32),
    }
    return [
        f"{dtype} {kind} {case} strided={strided}: {name} is off by {error:.1e}"
        for name, (actual, truth, kept) in results.items()
        if (error := relative_error(actual, truth)) > FLOOR[kept]
    ]


def check_subsets(dtype: torch.dtype) -> list[str]:
    """Leaving out a result (h, dg, dscale) does not change the others."""
    x, dy, u, vh = (torch.randn(shape).to(dtype) for shape in ((90, 40), (90, 56), (56, 72), (72, 40)))
    modulation, options = Modulation(torch.randn(2, 72), None, 45), {"gpu": GPU, "tile": POINTERS}
    g, h = gemm.forward(x, vh, modulation, keep_h=True, **options)
    lone, nothing = gemm.forward(x, vh, modulation, keep_h=False, **options)
    dg, dscale = gemm.backward(dy, u, h, modulation, needs_dg=True, **options)
    only_dg, no_dscale = gemm.backward(dy, u, None, modulation, needs_dg=True, **options)
    no_dg, only_dscale = gemm.backward(dy, u, h, modulation, needs_dg=False, **options)
    absent = nothing is None and no_dscale is None and no_dg is None
    pairs = ((g, lone), (dg, only_dg), (dscale, only_dscale))
    same = all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)
    return [] if absent and same else [f"{dtype}: leaving a result out changes another"]


def check_poison(dtype: torch.dtype) -> list[str]:
    """NaN in one sample, and an index outside the bank, stay in their own samples and rows."""
    failures = []
    for tokens in (45, 7):
        x, dy = torch.randn(3 * tokens, 37).to(dtype), torch.randn(3 * tokens, 29).to(dtype)
        u, vh, scale = torch.randn(29, 41).to(dtype), torch.randn(41, 37).to(dtype), torch.randn(3, 41)
        x[tokens] = float("nan")
        modulation = Modulation(scale, torch.tensor([0, 9, 2, 9, 7, 9])[::2], tokens)  # strided
        g, h = gemm.forward(x, vh, modulation, gpu=GPU, keep_h=True, tile=POINTERS)
        dg, dscale = gemm.backward(dy, u, h, modulation, gpu=GPU, needs_dg=True, tile=POINTERS)
        assert dg is not None and dscale is not None
        finite = g.view(3, tokens, 41)[0].isfinite().all() and dg.view(3, tokens, 41)[:2].isfinite().all()
        loud = g.view(3, tokens, 41)[2].isnan().all() and dg.view(3, tokens, 41)[2].isnan().all()
        if not (finite and loud and dscale[0].isfinite().all() and not dscale[1].any() and dscale[2].isnan().all()):
            failures.append(f"{dtype} T={tokens}: a poisoned sample is not alone")
    return failures


def check_op(dtype: torch.dtype, shares: int | None) -> list[str]:
    """The CUDA implementation of the op, kernels and GEMMs together or fused, on CPU tensors."""
    failures = []
    fake_gpu = [
        mock.patch.object(svd_linear_cuda, "_shares", lambda *_: shares),
        mock.patch.object(torch.cuda, "device", lambda _: nullcontext()),
        mock.patch.object(svd_linear_cuda, "gpu", lambda _: Gpu((9, 0), 2)),
        mock.patch.object(svd_linear_cuda, "_tf32", lambda: True),
    ]
    for patch in fake_gpu:
        patch.start()
    for kind in ("shared", "sample", "bank"):
        x, u, vh = torch.randn(3, 50, 48).to(dtype), torch.randn(56, 24).to(dtype), torch.randn(24, 48).to(dtype)
        bias, dy = torch.randn(56).to(dtype), torch.randn(3, 50, 56).to(dtype)
        scale = torch.randn(*{"shared": (), "sample": (3,), "bank": (2,)}[kind], 24)
        index = torch.tensor([1, 0, 1]) if kind == "bank" else None
        for materialise in (False, True) if kind != "bank" and shares is None else (False,):
            y, saved = svd_linear_cuda.forward(x, u, scale, vh, bias, index, materialise, True)
            gradients = svd_linear_cuda.backward(dy, x, u, scale, vh, index, saved, materialise, True, True, True)
            leaves = [tensor.double().requires_grad_() for tensor in (x, scale, bias)]
            true_y = reference(leaves[0], u.double(), leaves[1], vh.double(), leaves[2], index=index)
            truths = (true_y, *torch.autograd.grad(true_y, leaves, dy.double()))
            for name, actual, truth in zip(("y", "dx", "dscale", "dbias"), (y, *gradients), truths, strict=True):
                if (error := relative_error(actual, truth)) > FLOOR[dtype]:
                    path = f"shares={shares} materialise={materialise}"
                    failures.append(f"{dtype} {kind} {path}: {name} is off by {error:.1e}")
    if dtype == torch.float16:
        x, u, scale, vh, bias, _ = make_large(50)
        y, _ = svd_linear_cuda.forward(x, u, scale, vh, bias, None, False, False)
        truth = reference(x.double(), u.double(), scale.double(), vh.double(), bias.double())
        if (error := relative_error(y, truth)) > 1e-3:
            failures.append(f"{dtype} shares={shares}: a large g is off by {error:.1e}")
    for patch in fake_gpu:
        patch.stop()
    return failures


def main(dtype_name: str) -> int:
    warnings.simplefilter("error", RuntimeWarning)
    interpreter.patch_once()
    torch.manual_seed(0)
    dtype = getattr(torch, dtype_name)
    failures = check_subsets(dtype) + check_op(dtype, None) + check_op(dtype, 3)
    for kind in ("shared", "sample", "bank"):
        # the branches do not depend on the dtype: every case in float32, one of each span in the half types
        for case in CASES if dtype == torch.float32 else CASES[:4]:
            failures += check_case(dtype, kind, case, strided=False)
    if dtype == torch.float32:
        failures += check_poison(dtype)
        failures += [line for kind in ("sample", "bank") for line in check_case(dtype, kind, CASES[2], strided=True)]
    print("\n".join(failures))
    return len(failures) > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
