"""The CUDA StyleNCE: its kernels run on the CPU, by tests of the CPU's implementation too; on a GPU, the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hystar_fast as hf
from hystar_fast import ref
from hystar_fast.ops.style_nce import cpu as style_nce_cpu
from hystar_fast.ops.style_nce import cuda as style_nce_cuda
from hystar_fast.ops.style_nce import torch as style_nce_torch
from tests.support.gpu import requires_cuda
from tests.support.sinkhorn_cuda_host import Host, argument_counts, pretend_cuda
from tests.support.style_nce_contract import (  # noqa: F401 - collected here, with the `path` below
    test_a_sample_that_is_not_finite_affects_only_itself,
    test_a_second_backward_gives_the_same_gradient,
    test_extreme_options_stay_finite,
    test_gradient_of_one_input_alone,
    test_gradient_of_the_mean_is_that_of_equal_rows,
    test_parity_with_masks,
    test_poisoned_buffers,
    test_size_of_the_embeddings_does_not_matter,
    test_strides,
    test_without_negatives_loss_and_gradients_are_zero,
    test_zero_vector_has_cosine_zero_and_no_gradient,
)
from tests.support.style_nce_cuda_host import NceHost
from tests.support.style_nce_parity import assert_parity, make_pair, run, same_class
from tests.support.tolerance import assert_as_accurate

WEIGHTS = ["paper", "authors", "uniform"]


@pytest.fixture(scope="module")
def nce_host(host: Host, host_folder: Path) -> NceHost:
    return NceHost(host_folder, host)


@pytest.fixture
def path(nce_host: NceHost, monkeypatch: pytest.MonkeyPatch) -> str:
    """Lets the op take the implementation of CUDA for float32 tensors of the CPU, its kernels emulated."""
    in_torch = {name: getattr(style_nce_torch, name) for name in ("forward", "backward")}
    taken = {"forward": style_nce_cuda.forward, "backward": style_nce_cuda.backward}

    def route(name: str) -> Any:
        def implementation(*arguments: Any) -> Any:
            single = torch.float64 not in (arguments[0].dtype, arguments[1].dtype)
            return (taken if single else in_torch)[name](*arguments)

        return implementation

    pretend_cuda(monkeypatch, nce_host, style_nce_cuda)
    monkeypatch.setattr(style_nce_cpu, "extension", lambda: None)
    for name in in_torch:
        monkeypatch.setattr(style_nce_torch, name, route(name))
    return "CUDA"


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 5), (2, 3), (5, 16), (31, 17), (48, 768), (67, 131)])
def test_parity(n: int, d: int, dtype: torch.dtype, weights: str, path: str) -> None:
    assert_parity(*make_pair(n, d, dtype), weights=weights)


@pytest.mark.parametrize("option", ["temperature=0.01", "lam=0.3", "lam=10", "gamma=1e-3", "gamma=1e6", "n_iter=1"])
def test_parity_of_options(option: str, path: str) -> None:
    name, value = option.split("=")
    number = int(value) if name == "n_iter" else float(value)
    for weights in ("paper", "authors"):
        assert_parity(*make_pair(24, 16), weights=weights, **{name: number})


@pytest.mark.parametrize("plan_grad", ["unroll", "implicit"])
def test_plan_gradients_compose_around_the_same_backward(plan_grad: str, path: str) -> None:
    assert_parity(*make_pair(19, 12), plan_grad=plan_grad, epsilon=0.5, mask=same_class(19, 7))


def test_the_op_runs_the_kernels(path: str, monkeypatch: pytest.MonkeyPatch, nce_host: NceHost) -> None:
    """One call of each kernel a direction, and none of torch's loss."""
    called: list[str] = []
    for name in ("normalise", "forward", "project"):
        kept = getattr(nce_host, f"style_nce_cuda_{name}")
        counted = lambda *a, kept=kept, name=name: called.append(name) or kept(*a)  # noqa: E731
        monkeypatch.setattr(nce_host, f"style_nce_cuda_{name}", counted)
    monkeypatch.setattr(style_nce_torch, "loss_and_slope", lambda *_: called.append("torch"))
    run(hf.style_nce, *make_pair(9, 8))
    assert called == ["normalise", "forward", "project"]


def test_float64_is_left_to_torch(path: str, monkeypatch: pytest.MonkeyPatch, nce_host: NceHost) -> None:
    monkeypatch.setattr(nce_host, "style_nce_cuda_forward", None)
    assert_parity(*make_pair(9, 8, torch.float64))


def test_the_emulation_has_the_extension_s_signatures() -> None:
    counts = {"normalise": 9, "workspace": 1, "forward": 15, "project": 10}
    assert argument_counts("style_nce_cuda_") in (
        {},
        {f"style_nce_cuda_{name}": count for name, count in counts.items()},
    )


def on_gpu(query: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, ...]:
    mask = options.pop("mask", None)
    inputs = [tensor.cuda().requires_grad_() for tensor in (query, target)]
    held = None if mask is None else mask.cuda()
    loss = hf.style_nce(*inputs, mask=held, reduction="none", **options)
    weight = torch.linspace(0.5, 1.5, len(loss), device="cuda")
    return tuple(result.cpu() for result in (loss, *torch.autograd.grad((loss * weight).sum(), inputs)))


@requires_cuda
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("n", "d"), [(1, 5), (2, 3), (48, 768), (130, 33), (192, 64), (300, 40), (1030, 24)])
def test_the_gpu_agrees_with_the_reference(n: int, d: int, weights: str) -> None:
    query, target = make_pair(n, d)
    for options in ({}, {"gamma": "auto", "mask": same_class(n, max(1, n // 2))}, {"mask": same_class(n, 1)}):
        truth = run(ref.style_nce, query.double(), target.double(), weights=weights, **options)
        same = run(ref.style_nce, query, target, weights=weights, **options)
        for actual, close, true in zip(on_gpu(query, target, weights=weights, **options), same, truth, strict=True):
            assert_as_accurate(actual, close, true)


@requires_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("plan_grad", ["none", "unroll", "implicit"])
def test_the_gpu_takes_half_precision_and_plan_gradients(dtype: torch.dtype, plan_grad: str) -> None:
    query, target = make_pair(48, 64, dtype)
    truth = run(ref.style_nce, query.double(), target.double(), plan_grad=plan_grad, epsilon=0.5)
    same = run(ref.style_nce, query, target, plan_grad=plan_grad, epsilon=0.5)
    actual = on_gpu(query, target, plan_grad=plan_grad, epsilon=0.5)
    for got, close, true in zip(actual, same, truth, strict=True):
        assert_as_accurate(got, close, true)


@requires_cuda
def test_the_gpu_contains_a_sample_that_is_not_finite_and_its_mean_is_that_of_the_rows() -> None:
    query, target = make_pair(48, 20)
    mean = hf.style_nce(query.cuda(), target.cuda())
    torch.testing.assert_close(mean, hf.style_nce(query.cuda(), target.cuda(), reduction="none").mean())
    query[3, 1] = torch.nan
    loss, dquery, dtarget = on_gpu(query, target)
    assert loss.isnan().nonzero().tolist() == [[3]]
    assert not dquery[3].any() and not dtarget[3].any() and dquery.isfinite().all() and dquery[0].any()


@requires_cuda
def test_the_gpu_can_capture_both_directions() -> None:
    query, target = (tensor.cuda().requires_grad_() for tensor in make_pair(48, 64))
    expected = torch.autograd.grad(hf.style_nce(query, target), (query, target))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.autograd.grad(hf.style_nce(query, target), (query, target))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.autograd.grad(hf.style_nce(query, target), (query, target))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, captured, strict=True))
