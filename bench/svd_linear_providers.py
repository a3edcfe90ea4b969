"""Providers of bench_svd_linear.py: the plain layer, the floor, the published path, its peers, and ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import pytest
import torch
from harness import DEVICE, compiled
from torch import Tensor, nn
from torch.nn import functional as F

import hystar_fast as hf
from hystar_fast.ops.svd_linear import cuda as svd_linear_cuda
from hystar_fast.ops.svd_linear.fp8 import Fp8Factors


@dataclass(frozen=True)
class Inputs:
    """A layer w = u diag(s) vh, what is added to s, and an input."""

    x: Tensor
    u: Tensor
    s: Tensor
    delta: Tensor
    vh: Tensor
    w: Tensor
    index: Tensor | None
    factors: Fp8Factors | None = None

    def scale(self) -> Tensor:
        return self.s + self.delta


Provider = Callable[[Inputs], Tensor]


def plain(a: Inputs) -> Tensor:
    """The frozen nn.Linear that the layer replaces."""
    return F.linear(a.x, a.w)


def two_gemms(a: Inputs) -> Tensor:
    """The floor: the two products through vh and u. The scale is made, as for ours, and not used."""
    a.scale()
    return F.linear(F.linear(a.x, a.vh), a.u)


def authors(a: Inputs) -> Tensor:
    """The published path: every sample's weight is built and multiplied with bmm."""
    delta_w = a.u @ torch.diag_embed(a.delta.to(a.x.dtype)) @ a.vh
    return torch.bmm(a.x, (a.w.repeat(len(a.x), 1, 1) + delta_w).transpose(1, 2))


def materialised(a: Inputs) -> Tensor:
    """The cheaper way to build every sample's weight: scale U, one product, bmm."""
    return torch.bmm(a.x, ((a.u * a.scale().to(a.x.dtype)[:, None]) @ a.vh).transpose(1, 2))


def factored(a: Inputs) -> Tensor:
    return hf.ref.svd_linear(a.x, a.u, a.scale(), a.vh, index=a.index)


def ours(a: Inputs) -> Tensor:
    return hf.svd_linear(a.x, a.u, a.scale(), a.vh, index=a.index)


def ours_fp8(a: Inputs) -> Tensor:
    return hf.svd_linear(a.x, a.u, a.scale(), a.vh, index=a.index, precision="fp8", factors=a.factors)


def unfused() -> Any:
    """Rule out the fused kernel, so that a small rank takes two kernels."""
    return mock.patch.object(svd_linear_cuda, "_shares", lambda *_: None)


def not_persistent() -> Any:
    """One program a tile."""
    from hystar_fast.kernels.svd_linear import gemm

    tile = gemm.svd_linear_tile
    return mock.patch.object(gemm, "svd_linear_tile", lambda *k, **o: replace(tile(*k, **o), persistent=False))


def fp8_then_cublas(a: Inputs) -> Tensor:
    """Ours in fp8, with the second product by torch's own scaled matrix product. Forward, one scale a sample, bf16."""
    from hystar_fast.kernels.svd_linear import fp8
    from hystar_fast.kernels.svd_linear.launch import Modulation

    assert a.factors is not None
    modulation, gpu = Modulation(a.scale(), a.index, a.x.shape[1]), svd_linear_cuda.gpu(a.x.device)
    x8, x_scale, g_scale = fp8.quantise(a.x.flatten(0, -2), a.factors.vh_norm, modulation)
    factors = (a.factors.vh, a.factors.vh_scale)
    g, _ = fp8.first_product(x8, x_scale, g_scale, *factors, modulation, gpu=gpu, h_dtype=None)
    u, u_scale = a.factors.u.t(), a.factors.u_scale[None]
    y = torch._scaled_mm(g, u, scale_a=g_scale[:, None], scale_b=u_scale, out_dtype=a.x.dtype)
    return y.view(*a.x.shape[:-1], y.shape[-1])


def plain_fp8(a: Inputs) -> Callable[[Inputs], Tensor]:
    """The plain layer in fp8 as torch has it, a scale a row and a column; x is quantised at every call."""

    def quantised(matrix: Tensor) -> tuple[Tensor, Tensor]:
        scale = matrix.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 448.0
        return (matrix.float() / scale).to(torch.float8_e4m3fn), scale

    weight, w_scale = quantised(a.w)

    def call(b: Inputs) -> Tensor:
        x, x_scale = quantised(b.x.flatten(0, -2))
        y = torch._scaled_mm(x, weight.t(), scale_a=x_scale, scale_b=w_scale.t(), out_dtype=b.x.dtype)
        return y.view(*b.x.shape[:-1], -1)

    return call


def lora(a: Inputs) -> Callable[[Inputs], Tensor]:
    """peft's mixed batch: a LoRA of rank 1 a sample, the smallest there is: in + out values, where ours has r."""
    peft = pytest.importorskip("peft")
    with torch.device("meta"):
        linear = nn.Linear(a.w.shape[1], a.w.shape[0], bias=False)
    linear.weight = nn.Parameter(a.w, requires_grad=False)
    config = peft.LoraConfig(r=1, target_modules=["0"])
    model = peft.get_peft_model(nn.Sequential(linear), config, adapter_name="0", autocast_adapter_dtype=False).eval()
    for sample in range(1, len(a.x)):
        model.add_adapter(str(sample), config)
    model.to(a.x.device, a.x.dtype)
    names = [str(sample) for sample in range(len(a.x))]
    layer = model.base_model.model[0]
    return lambda b: layer(b.x, adapter_names=names)


@dataclass(frozen=True)
class Who:
    """A provider: how it is called, what it computes, where it runs, and what is to be done before."""

    call: Provider
    adaptive: bool = True  # it computes the modulated layer: its error counts, and delta has a gradient
    exact: Provider | None = None  # what its forward is held to where it is not that layer
    cuda_only: bool = False
    prepare: Callable[[Inputs], Provider] | None = None
    during: Callable[[], Any] = nullcontext  # entered while it is measured


def autotuned(_: Inputs) -> Provider:
    if DEVICE == "cpu":
        return compiled(factored)
    torch.compiler.reset()
    return torch.compile(factored, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs")


PROVIDERS = {
    "plain linear": Who(plain, adaptive=False),
    "hystar_fast": Who(ours),
    "reference, eager": Who(factored),
    "reference, torch.compile": Who(factored, prepare=autotuned),
    "materialised": Who(materialised),
    "authors' path": Who(authors),
    "two GEMMs": Who(two_gemms, adaptive=False),
    "hystar_fast, fp8": Who(ours_fp8),
    "hystar_fast, not persistent": Who(ours, cuda_only=True, during=not_persistent),
    "hystar_fast, two kernels": Who(ours, cuda_only=True, during=unfused),
    "hystar_fast, fp8, second product by torch": Who(fp8_then_cublas, cuda_only=True),
    "plain linear, fp8": Who(plain, adaptive=False, exact=plain, cuda_only=True, prepare=plain_fp8),
    "peft, a LoRA a sample": Who(plain, adaptive=False, prepare=lora),
}


@contextmanager
def tf32(dtype: torch.dtype) -> Iterator[None]:
    """float32 on a GPU runs in TF32, where Triton has a tensor-core path."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if dtype == torch.float32:
        matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before
