"""The gate: each op against its float64 reference, forward and gradients, on small odd shapes."""

from __future__ import annotations

import pytest
import torch
from harness import relative_error
from torch import Tensor

import hystar_fast as hf

LIMIT = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def _compare(name: str, ours: list[Tensor], truth: list[Tensor], limit: float) -> None:
    error = relative_error(ours, truth)
    if not error <= limit:
        pytest.exit(
            f"parity gate: {name} is off by {error:.2e} (limit {limit:.0e}); nothing was measured", returncode=3
        )


def check_parity(device: str) -> None:
    """Stop the session, before anything is timed, unless every op agrees with its reference."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    for dtype, limit in LIMIT.items():
        x, u, vh, scale = random(3, 37, 65), random(130, 48) / 7, random(48, 65) / 8, random(3, 48)
        dy = random(3, 37, 130)
        results = []
        for function, kind in ((hf.svd_linear, dtype), (hf.ref.svd_linear, torch.float64)):
            # the truth sees the inputs the op sees
            xs, us, vs = (a.to(dtype).to(kind) for a in (x, u, vh))
            ss = scale.float() if kind == dtype else scale.float().double()
            xs.requires_grad_()
            ss.requires_grad_()
            y = function(xs, us, ss, vs)
            results.append([y, *torch.autograd.grad(y, (xs, ss), dy.to(y.dtype))])
        _compare(f"svd_linear {dtype}", *results, limit)

    cost, dplan = random(4, 23, 31).abs(), random(4, 23, 31)
    results = []
    for function, kind in ((hf.sinkhorn, torch.float32), (hf.ref.sinkhorn, torch.float64)):
        c = cost.float().to(kind).requires_grad_()
        plan = function(c, 0.1)
        results.append([plan, *torch.autograd.grad(plan, c, dplan.to(kind))])
    _compare("sinkhorn", *results, LIMIT[torch.float32])

    query, target = random(29, 40), random(29, 40)
    results = []
    for function, kind in ((hf.style_nce, torch.float32), (hf.ref.style_nce, torch.float64)):
        q, t = (a.float().to(kind).requires_grad_() for a in (query, target))
        loss = function(q, t)
        results.append([loss, *torch.autograd.grad(loss, (q, t))])
    _compare("style_nce", *results, LIMIT[torch.float32])
