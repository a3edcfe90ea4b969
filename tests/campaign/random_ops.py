"""Random calls of the ops, forward and backward, against the reference in float64: shapes, strides, dtypes, modes."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

import hystar_fast as hf
from hystar_fast import ref
from hystar_fast.ref.sinkhorn import GRADS
from tests.campaign.rows import Row, fault

CASES = 100_000
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Result: TypeAlias = "tuple[str, float]"
"""The group of a case, and its error as a multiple of what rounding explains."""


def random_ops(share: float = 1.0) -> list[Row]:
    """Run a share of the cases; a case depends only on its number."""
    worst: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, -1))
    count: dict[str, int] = defaultdict(int)
    faults: list[Row] = []
    kinds = (svd_linear, svd_linear, sinkhorn, style_nce, perturbed_topk)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are tiny
    for number in range(int(CASES * share)):
        draw = random.Random(number)
        torch.manual_seed(number)
        case = kinds[number % len(kinds)]
        try:
            group, error = case(draw)
        except Exception as problem:  # any error is a fault: all these calls are valid
            faults.append(fault("ops", f"{case.__name__} {number}", problem))
            continue
        count[group] += 1
        worst[group] = max(worst[group], (error, number))
        if not error <= 1:
            faults.append(Row("ops", f"{group} {number}", "failed", f"error {error:.3g} times what rounding explains"))
    torch.set_num_threads(threads)
    explained = "of what rounding explains"
    return faults + [
        Row("ops", group, "passed", f"{count[group]} cases, largest error {worst[group][0]:.2g} {explained}")
        for group in sorted(count)
    ]


def svd_linear(draw: random.Random) -> Result:
    """One layer: the bound of an element is that of its products, which the reference gives for absolute values."""
    dtype = draw.choice(DTYPES)
    batch, tokens = draw.choice([0, 1, 2, 3, 5]), draw.choice([None, 0, 1, 2, 7])
    in_features, out_features = draw.randint(1, 24), draw.randint(1, 24)
    rank, kind = draw.randint(1, min(in_features, out_features)), draw.choice(["shared", "sample", "bank"])
    lead = (batch,) if tokens is None else (batch, tokens)
    x = strided(draw, (*lead, in_features), dtype)
    u, vh = strided(draw, (out_features, rank), dtype), strided(draw, (rank, in_features), dtype)
    rows = {"shared": (), "sample": (batch,), "bank": (draw.randint(1, 4),)}[kind]
    scale = strided(draw, (*rows, rank), draw.choice([dtype, torch.promote_types(dtype, torch.float32)]))
    bias = strided(draw, (out_features,), dtype) if draw.random() < 0.6 else None
    index = torch.randint(rows[0], (batch,)) if kind == "bank" else None
    dy = strided(draw, (*lead, out_features), dtype)
    wanted = [draw.random() < 0.7, draw.random() < 0.7, bias is not None and draw.random() < 0.7]

    def run(function: Callable[..., Tensor], change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        inputs: list[Any] = [None if t is None else change(t.detach()) for t in (x, scale, bias)]
        differentiable = [t.requires_grad_() for t, needed in zip(inputs, wanted, strict=True) if needed]
        y = function(inputs[0], change(u), inputs[1], change(vh), inputs[2], index=index)
        gradients = torch.autograd.grad(y, differentiable, change(dy)) if differentiable else ()
        return [y.detach(), *gradients]

    # every stage rounds once; float32 sums of half types do not count, and those of wider types do
    stages = 8.0 if dtype in (torch.bfloat16, torch.float16) else 8.0 + in_features + out_features + dy.numel() ** 0.5
    error = 0.0
    calls = ((hf.svd_linear, same), (ref.svd_linear, wide), (ref.svd_linear, size))
    found, truth, sizes = (run(*call) for call in calls)
    for actual, true, bound in zip(found, truth, sizes, strict=True):
        info = torch.finfo(actual.dtype)
        smallest = info.smallest_normal if dtype != torch.float16 else 1e-7  # float16 loses bits below 6e-5
        limit = stages * torch.finfo(dtype).eps * bound + info.eps * bound + smallest * (1 + bound)
        error = max(error, excess(actual, true, limit))
    return f"svd_linear {name(dtype)} {kind}", error


def sinkhorn(draw: random.Random) -> Result:
    """One batch of problems: a plan's logarithm has the error of cost / epsilon."""
    dtype, grad = draw.choice(DTYPES), draw.choice(GRADS)
    n, m = draw.randint(1, 12), draw.randint(1, 12)
    lead = draw.choice([(), (0,), (1,), (3,), (2, 2)])
    epsilon, n_iter = draw.choice([0.05, 0.1, 0.5, 2.0]), draw.choice([1, 2, 5, 30, 100])
    cost = strided(draw, (*lead, n, m), dtype, torch.rand)
    mask = torch.rand(*lead, n, m) < 0.2 if draw.random() < 0.4 else None
    dplan = strided(draw, (*lead, n, m), dtype)

    def run(function: Callable[..., Tensor], change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        values = change(cost.detach())
        if grad == "none":
            return [function(values, epsilon, n_iter, mask=mask, grad=grad)]
        values.requires_grad_()
        plan = function(values, epsilon, n_iter, mask=mask, grad=grad)
        return [plan.detach(), *torch.autograd.grad(plan, values, change(dplan))]

    error, eps = 0.0, torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    truth = run(ref.sinkhorn, wide)
    terms = [truth[0], truth[0] * dplan.double().abs().amax() / epsilon] if dplan.numel() else truth
    if grad == "implicit" and dplan.numel():
        terms[1] = terms[1] * condition(truth[0])
    for actual, true, term in zip(run(hf.sinkhorn, same), truth, terms, strict=False):
        if not true.numel():
            continue
        largest = torch.maximum(true.abs(), term.abs()).nan_to_num().amax((-2, -1), keepdim=True)
        limit = (4 * torch.finfo(actual.dtype).eps + 4 * eps * (1 / epsilon + n + m)) * largest
        error = max(error, excess(actual, true, limit + 1e-7 * (actual.dtype == torch.float16)))
    return f"sinkhorn {name(dtype)} {grad}", error


def style_nce(draw: random.Random) -> Result:
    """One loss: its error is that of the cosines, divided by the temperature and by epsilon."""
    dtype, weights = draw.choice(DTYPES), draw.choice(["paper", "authors", "uniform"])
    n, d = draw.randint(2, 24), draw.randint(1, 16)
    query = strided(draw, (n, d), dtype)
    target = (query.double() + torch.randn(n, d)).to(dtype)
    options: dict[str, Any] = {
        "temperature": draw.choice([0.05, 0.07, 0.5]),
        "epsilon": draw.choice([0.1, 0.5]),
        "gamma": draw.choice(["auto", 1.0, 2.5]),
        "n_iter": draw.choice([1, 10, 50]),
        "weights": weights,
        "reduction": "none",
    }
    if draw.random() < 0.4:
        options["mask"] = torch.rand(n, n) < 0.2
    dloss = strided(draw, (n,), torch.promote_types(dtype, torch.float32))

    def run(function: Callable[..., Tensor], change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        pair = [change(t.detach()).requires_grad_() for t in (query, target)]
        loss = function(*pair, **options)
        return [loss.detach(), *torch.autograd.grad(loss, pair, dloss.to(loss.dtype))]

    error, eps = 0.0, torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    scale = 4 * (1 / options["temperature"] + 1 / options["epsilon"] + n + d)
    slope = dloss.double().abs().sum() / options["temperature"]
    terms = [torch.ones(()), *(slope / t.double().norm(dim=1, keepdim=True) for t in (query, target))]
    for actual, true, term in zip(run(hf.style_nce, same), run(ref.style_nce, wide), terms, strict=True):
        limit = (4 * torch.finfo(actual.dtype).eps + scale * eps) * (true.abs().nan_to_num() + term)
        error = max(error, excess(actual, true, limit + 1e-7 * (actual.dtype == torch.float16)))
    return f"style_nce {name(dtype)} {weights}", error


def perturbed_topk(draw: random.Random) -> Result:
    """One batch: the reference's result in the same dtype bit for bit; only sums of the gradient round."""
    dtype = draw.choice(DTYPES)
    b, n, k = draw.choice([0, 1, 3]), draw.randint(1, 40), draw.randint(1, 12)
    scores = strided(draw, (b, n), dtype)
    options: dict[str, Any] = {"sigma": draw.choice([1e-3, 0.1, 3.0]), "samples": draw.randint(2, 40)}
    if draw.random() < 0.4:
        options["mask"] = torch.rand(b, n) < draw.choice([0.2, 0.8])
    dsoft = strided(draw, (b, k, n), torch.promote_types(dtype, torch.float32))

    def run(function: Callable[..., Tensor]) -> list[Tensor]:
        leaf = scores.detach().requires_grad_()
        soft = function(leaf, k, generator=torch.Generator().manual_seed(1), **options)
        return [soft.detach(), *torch.autograd.grad(soft, leaf, dsoft)]

    found, truth = run(hf.perturbed_topk), run(ref.perturbed_topk)
    if not torch.equal(found[0], truth[0]):
        return f"perturbed_topk {name(dtype)}", float("inf")
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    terms = 10 * k * dsoft.double().abs().amax() / options["sigma"] if dsoft.numel() else 0.0
    limit = (8 * torch.finfo(dtype).eps * truth[1].double().abs() + 4 * (n + 40) * eps * terms) + 1e-7
    return f"perturbed_topk {name(dtype)}", excess(found[1], truth[1].double(), limit)


def condition(plan: Tensor) -> float:
    """Return the condition of the linear system of the implicit gradient, without its null space."""
    rows, columns = torch.diag_embed(plan.sum(-1)), torch.diag_embed(plan.sum(-2))
    system = torch.cat([torch.cat([rows, plan], -1), torch.cat([plan.mT, columns], -1)], -2)
    values = torch.linalg.eigvalsh(system.nan_to_num())
    return float(values.max() / values[values > 1e-12 * values.max()].min()) if values.any() else 1.0


def strided(
    draw: random.Random, shape: tuple[int, ...], dtype: torch.dtype, values: Callable[..., Tensor] = torch.randn
) -> Tensor:
    """Return random values in one of the layouts that views have: a slice, a step, a transposition, an expansion."""
    layout = draw.choice(["dense", "dense", "slice", "step", "transposed", "expanded", "offset"])
    if layout == "slice":
        return values(*shape[:-1], 3 * shape[-1], dtype=torch.float64).to(dtype).chunk(3, -1)[1]
    if layout == "step":
        return values(*shape[:-1], 2 * shape[-1], dtype=torch.float64).to(dtype)[..., ::2]
    if layout == "transposed":
        return values(*reversed(shape), dtype=torch.float64).to(dtype).permute(*reversed(range(len(shape))))
    if layout == "expanded":
        return values(1, *shape[1:], dtype=torch.float64).to(dtype).expand(shape)
    if layout == "offset":
        size = torch.Size(shape).numel()
        return values(size + 1, dtype=torch.float64).to(dtype)[1:].view(shape)
    return values(*shape, dtype=torch.float64).to(dtype)


def same(tensor: Tensor) -> Tensor:
    return tensor


def wide(tensor: Tensor) -> Tensor:
    return tensor.double()


def size(tensor: Tensor) -> Tensor:
    return tensor.double().abs()


def excess(actual: Tensor, true: Tensor, limit: Tensor) -> float:
    """Return the largest error as a multiple of its limit; infinite where one of both is not finite."""
    if actual.shape != true.shape:
        return float("inf")
    if not actual.numel():
        return 0.0
    finite = true.isfinite() & (true.abs() <= torch.finfo(actual.dtype).max)
    if not torch.equal(actual.isfinite(), finite):
        return float("inf")
    multiples = (actual.double() - true)[finite].abs() / limit.expand_as(true)[finite].clamp_min(1e-300)
    return float(multiples.max()) if multiples.numel() else 0.0


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
