"""svd_linear at the shapes of a ViT: who is measured is in svd_linear_providers.py, on what in svd_linear_cases.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import pytest
import svd_linear_cases
import torch
from harness import DEVICE, Outputs, Run, forward, forward_backward, graphed, peak_mib
from svd_linear_cases import GRAPH, Case
from svd_linear_providers import PROVIDERS, Inputs, factored, tf32
from torch import Tensor

from hystar_fast.ops.svd_linear_fp8 import quantise_factors


@lru_cache(maxsize=4)
def layer(in_features: int, out_features: int) -> tuple[Tensor, Tensor, Tensor]:
    w = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(0)) / in_features**0.5
    return torch.linalg.svd(w.to(DEVICE), full_matrices=False)


@lru_cache(maxsize=1)
def problem(case: Case) -> tuple[Inputs, Tensor, Outputs]:
    """Inputs, upstream gradient, and the float64 output and gradients of x and delta."""
    generator = torch.Generator().manual_seed(1)
    u, s, vh = layer(case.in_features, case.out_features)
    u, s, vh = u[:, : case.rank], s[: case.rank], vh[: case.rank]
    rows = {"sample": (case.batch,), "bank": (8,), "shared": ()}[case.kind]
    x = torch.randn(case.batch, case.tokens, case.in_features, generator=generator)
    delta = 0.1 * torch.randn(*rows, len(s), generator=generator).to(DEVICE)
    index = torch.randint(0, 8, (case.batch,), generator=generator).to(DEVICE) if case.kind == "bank" else None
    dy = torch.randn(case.batch, case.tokens, case.out_features, generator=generator).to(DEVICE, case.dtype)
    x, u, vh, w = (a.to(DEVICE, case.dtype).contiguous() for a in (x, u, vh, (u * s) @ vh))
    needs_fp8 = any("fp8" in name for name in case.providers)
    inputs = Inputs(x, u, s, delta, vh, w, index, quantise_factors(u, vh) if needs_fp8 else None)
    leaves = [x.double().requires_grad_(), delta.double().requires_grad_()]
    exact = Inputs(leaves[0], u.double(), s.double(), leaves[1], vh.double(), w, index)
    truth = forward_backward(lambda: factored(exact), leaves, dy.double())()
    return inputs, dy, [a.detach() for a in truth]


def backward(y: Tensor, inputs: list[Tensor], upstream: Tensor) -> Run:
    """The gradients of a forward that has run, alone."""
    return lambda: torch.autograd.grad(y, inputs, upstream, retain_graph=True)


def prepared(case: Case, provider: str, mode: str) -> tuple[Run, Outputs | None]:
    """The call to measure and the truth it is held to."""
    who, (inputs, dy, truth) = PROVIDERS[provider.removesuffix(GRAPH)], problem(case)
    x, delta = inputs.x.detach().requires_grad_(), inputs.delta.detach().requires_grad_()
    arguments, wanted = replace(inputs, x=x, delta=delta), [x, delta] if who.adaptive else [x]
    call = who.call if who.prepare is None else who.prepare(inputs)
    if mode == "forward":
        run, exact = forward(lambda: call(arguments)), truth[:1]
    elif mode == "backward":
        run, exact = backward(call(arguments), wanted, dy), truth[1:]
    else:
        run, exact = forward_backward(lambda: call(arguments), wanted, dy), truth
    return graphed(run) if provider.endswith(GRAPH) else run, exact if who.adaptive else None


def beyond_results(run: Run) -> float:
    """Peak memory in MiB beyond the results themselves, which the plain layer has too."""
    results = sum(out.numel() * out.itemsize for out in run()) / 2**20
    return peak_mib(run) - results


def measurements() -> Iterator[object]:
    for case in getattr(svd_linear_cases, DEVICE)():
        for mode in case.modes:
            for provider in case.providers:
                dtype = str(case.dtype).removeprefix("torch.")
                yield pytest.param(case, mode, provider, id=f"{case}-{dtype}-{mode}-{provider}")


@pytest.mark.parametrize(("case", "mode", "provider"), measurements())
def bench_svd_linear(record: Callable[..., None], quick: bool, case: Case, mode: str, provider: str) -> None:
    case = case.toy() if quick else case
    with tf32(case.dtype), PROVIDERS[provider.removesuffix(GRAPH)].during():
        run, truth = prepared(case, provider, mode)
        once = 2 if mode == "forward+backward" else 1
        gflop = once * 2 * case.batch * case.tokens * case.rank * (case.in_features + case.out_features) / 1e9
        memory = {"extra_mib": beyond_results(run)} if DEVICE == "cuda" and not provider.endswith(GRAPH) else {}
        moved = [case.batch * case.tokens * width for width in (case.in_features, case.out_features)]
        factors = case.rank * (case.in_features + case.out_features)
        gib = once * (sum(moved) + factors) * case.dtype.itemsize / 2**30  # input, output and factors, each way
        in_tf32 = DEVICE == "cuda" and case.dtype == torch.float32
        need = {} if in_tf32 else {"gflop": gflop, "gib": gib}  # there is no ceiling of TF32 to hold it to
        name = f"{case} tf32" if in_tf32 else str(case)
        record("svd_linear", name, provider, mode, case.dtype, run, truth, **need, **memory)
