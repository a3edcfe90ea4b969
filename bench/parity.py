"""Parity check of each op against its float64 reference, forward and gradients, on small odd shapes.

An op that fails it is not measured. In addition, every row of ours has its error on the inputs of the measurement,
which may not exceed `harness.error_limit`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from harness import DEVICE, relative_error
from torch import Tensor

import hystar_fast as hf

LIMIT = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def _compare(name: str, ours: list[Tensor], truth: list[Tensor], limit: float) -> None:
    error = relative_error(ours, truth)
    if not error <= limit:
        pytest.fail(f"parity check: {name} has an error of {error:.2e} (limit {limit:.0e}), so it is not measured")


def _random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE)


def _svd_linear() -> None:
    for dtype, limit in LIMIT.items():
        x, u, vh, scale = _random(3, 37, 65), _random(130, 48) / 7, _random(48, 65) / 8, _random(3, 48)
        dy = _random(3, 37, 130)
        results = []
        for function, kind in ((hf.svd_linear, dtype), (hf.ref.svd_linear, torch.float64)):
            # the reference gets the rounded inputs of the op
            xs, us, vs = (a.to(dtype).to(kind) for a in (x, u, vh))
            ss = scale.float() if kind == dtype else scale.float().double()
            xs.requires_grad_()
            ss.requires_grad_()
            y = function(xs, us, ss, vs)
            results.append([y, *torch.autograd.grad(y, (xs, ss), dy.to(y.dtype))])
        _compare(f"svd_linear {dtype}", *results, limit)


def _sinkhorn() -> None:
    cost, dplan = _random(4, 23, 31).abs(), _random(4, 31, 23).mT
    results = []
    for function, kind in ((hf.sinkhorn, torch.float32), (hf.ref.sinkhorn, torch.float64)):
        c = cost.float().to(kind).requires_grad_()
        plan = function(c, 0.1)
        results.append([plan, *torch.autograd.grad(plan, c, dplan.to(kind))])
    _compare("sinkhorn", *results, LIMIT[torch.float32])


def _style_nce() -> None:
    query, target = _random(29, 40), _random(40, 29).mT
    results = []
    for function, kind in ((hf.style_nce, torch.float32), (hf.ref.style_nce, torch.float64)):
        q, t = (a.float().to(kind).requires_grad_() for a in (query, target))
        loss = function(q, t)
        results.append([loss, *torch.autograd.grad(loss, (q, t))])
    _compare("style_nce", *results, LIMIT[torch.float32])


def _perturbed_topk() -> None:
    scores, dsoft = _random(3, 41).sigmoid(), _random(3, 7, 41)
    results = []
    for function, kind in ((hf.perturbed_topk, torch.float64), (hf.ref.perturbed_topk, torch.float64)):
        leaf = scores.to(kind).requires_grad_()
        soft = function(leaf, 7, sigma=0.05, samples=50, generator=torch.Generator(DEVICE).manual_seed(0))
        results.append([soft, *torch.autograd.grad(soft, leaf, dsoft.to(kind))])
    _compare("perturbed_topk", *results, 1e-12)


_OPS: dict[str, Callable[[], None]] = {
    "svd_linear": _svd_linear,
    "sinkhorn": _sinkhorn,
    "style_nce": _style_nce,
    "perturbed_topk": _perturbed_topk,
}
_OPS_OF_BENCH = {"ceiling": (), "model": ("svd_linear", "style_nce"), "experts": ("svd_linear",)}


def check_parity(bench: str) -> None:
    """Fail, before anything is timed, unless every op that a benchmark measures agrees with its reference."""
    for op in _OPS_OF_BENCH.get(bench, (bench,)):
        _OPS[op]()
