"""svd_linear at the shapes of a ViT; svd_linear_providers.py has the providers, svd_linear_cases.py the cases."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from harness import DEVICE, OURS, PLAN, Outputs, Row, Run, forward, forward_backward, peak_mib
from svd_linear_cases import Case, cpu_cases, cuda_cases
from svd_linear_providers import PROVIDERS, Inputs, factored, tf32
from torch import Tensor

from hystar_fast.ops.svd_linear.fp8 import quantise_factors


@lru_cache(maxsize=4)
def layer(in_features: int, out_features: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the SVD of a random weight."""
    w = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(0)) / in_features**0.5
    return torch.linalg.svd(w.to(DEVICE), full_matrices=False)


@lru_cache(maxsize=1)
def problem(case: Case) -> tuple[Inputs, Tensor, Outputs]:
    """Return inputs, an upstream gradient, and the output and the gradients of x and delta in float64."""
    generator = torch.Generator().manual_seed(1)
    u, s, vh = layer(case.in_features, case.out_features)
    u, s, vh = u[:, : case.rank], s[: case.rank], vh[: case.rank]
    leading = {"sample": (case.batch,), "bank": (8,), "shared": ()}[case.kind]
    x = torch.randn(case.batch, case.tokens, case.in_features, generator=generator)
    delta = 0.1 * torch.randn(*leading, len(s), generator=generator).to(DEVICE)
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
    """Return a call that computes the gradients only, for a forward that has run."""
    return lambda: torch.autograd.grad(y, inputs, upstream, retain_graph=True)


def prepare_run(case: Case, provider: str, mode: str) -> tuple[Run, Outputs | None]:
    """Return the call to measure and the outputs in float64 that it is compared with, or None."""
    chosen, (inputs, dy, truth) = PROVIDERS[provider], problem(case)
    x, delta = inputs.x.detach().requires_grad_(), inputs.delta.detach().requires_grad_()
    arguments, leaves = replace(inputs, x=x, delta=delta), [x, delta] if chosen.adaptive else [x]
    call = chosen.call if chosen.prepare is None else chosen.prepare(inputs)
    if mode == "forward":
        run, exact = forward(lambda: call(arguments)), truth[:1]
        if chosen.exact is not None:
            exact = [chosen.exact(replace(inputs, x=inputs.x.double(), w=inputs.w.double()))]
    elif mode == "training forward":
        run, exact = (lambda: [call(arguments)]), truth[:1]
    elif mode == "backward of x":
        run, exact = backward(call(replace(arguments, delta=inputs.delta)), [x], dy), truth[1:2]
    elif mode == "backward of scale":
        run, exact = backward(call(replace(arguments, x=inputs.x)), [delta], dy), truth[2:]
    elif mode == "backward":
        run, exact = backward(call(arguments), leaves, dy), truth[1:]
    else:
        run, exact = forward_backward(lambda: call(arguments), leaves, dy), truth
    has_truth = chosen.adaptive or (chosen.exact is not None and mode == "forward")
    return run, exact if has_truth else None


def extra_memory(run: Run) -> float:
    """Measure the peak memory in MiB beyond the results themselves, which the plain layer has too."""
    results = sum(out.numel() * out.itemsize for out in run()) / 2**20
    return peak_mib(run) - results


def measurements() -> Iterator[object]:
    for case in {"cpu": cpu_cases, "cuda": cuda_cases}[PLAN]():
        for mode in case.modes:
            for provider in case.providers:
                dtype = str(case.dtype).removeprefix("torch.")
                yield pytest.param(case, mode, provider, id=f"{case}-{dtype}-{mode}-{provider}")


@pytest.mark.parametrize(("case", "mode", "provider"), measurements())
def bench_svd_linear(record: Callable[..., None], quick: bool, case: Case, mode: str, provider: str) -> None:
    if DEVICE == "cpu" and PROVIDERS[provider].cuda_only:
        pytest.skip("needs CUDA")
    case = case.toy() if quick else case
    with tf32(case.dtype), PROVIDERS[provider].during():
        run, truth = prepare_run(case, provider, mode)
        once = 2 if mode == "forward+backward" else 1
        gflop = once * 2 * case.batch * case.tokens * case.rank * (case.in_features + case.out_features) / 1e9
        memory = {"extra_mib": extra_memory(run)} if DEVICE == "cuda" else {}
        activations = [case.batch * case.tokens * width for width in (case.in_features, case.out_features)]
        factors = case.rank * (case.in_features + case.out_features)
        gib = once * (sum(activations) + factors) * case.dtype.itemsize / 2**30  # input, output and factors, each way
        in_tf32 = PLAN == "cuda" and case.dtype == torch.float32
        demand = {} if in_tf32 else {"gflop": gflop, "gib": gib}  # no ceiling of TF32 is measured
        if "fp8" in provider:
            demand["rate"] = "float8_e4m3fn"
        name = f"{case} tf32" if in_tf32 else str(case)
        record("svd_linear", name, provider, mode, case.dtype, run, truth, **demand, **memory)


FIRST_CALL = """
import sys, time
import torch
import hystar_fast as hf
device, *sizes = sys.argv[1], *map(int, sys.argv[2:])
batch, tokens, inner, outer, rank = sizes
x = torch.randn(batch, tokens, inner, device=device, dtype=torch.bfloat16, requires_grad=True)
u, vh = (torch.randn(*shape, device=device, dtype=torch.bfloat16) for shape in ((outer, rank), (rank, inner)))
scale = torch.randn(batch, rank, device=device, requires_grad=True)
dy = torch.randn(batch, tokens, outer, device=device, dtype=torch.bfloat16)  # dense, as in training; sum() has none
(x[:1] @ vh.mT).sum().item()  # warms up the device
start = time.perf_counter()
sum(a.sum() for a in torch.autograd.grad(hf.svd_linear(x, u, scale, vh), (x, scale), dy)).item()
print(time.perf_counter() - start)
"""


def bench_first_call(add_row: Callable[[Row], None], quick: bool, tmp_path: Path) -> None:
    """Measure forward and backward in a new process whose kernels have never been compiled."""
    case = Case(48, 257, 1024, 3072, 1024)
    case = case.toy() if quick else case
    sizes = [case.batch, case.tokens, case.in_features, case.out_features, case.rank]
    command = [sys.executable, "-c", FIRST_CALL, DEVICE, *map(str, sizes)]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    seconds = float(done.stdout.split()[-1])
    add_row(
        Row("svd_linear", f"first call {case}", OURS, "forward+backward", "bfloat16", seconds * 1e3, 0.0, 1, 0.0, None)
    )
