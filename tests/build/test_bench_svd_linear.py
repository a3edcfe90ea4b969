"""Tests of svd_linear's GPU benchmark on a CPU: every case at toy size, with every provider that needs no CUDA."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import bench_svd_linear
import goals
import svd_linear_cases
from harness import relative_error
from svd_linear_providers import PROVIDERS, tf32

from hystar_fast.nn.factors import svd_factors

LIMIT = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("case", list(svd_linear_cases.cuda_cases()), ids=str)
def test_every_provider_agrees_with_the_truth_in_every_case(case: svd_linear_cases.Case) -> None:
    for mode in case.modes:
        for provider in case.providers:
            if "compile" in provider or PROVIDERS[provider].cuda_only:
                continue
            with tf32(case.dtype):
                run, truth = bench_svd_linear.prepare_run(case.toy(), provider, mode)
                outputs = run()
            gradients = 1 + PROVIDERS[provider].adaptive
            counts = {"backward": gradients, "forward+backward": 1 + gradients}
            assert len(outputs) == counts.get(mode, 1)
            assert all(output.isfinite().all() for output in outputs)
            if truth is not None:
                limit = 0.1 if "fp8" in provider else LIMIT[case.dtype]
                assert relative_error(outputs, truth) < limit, (provider, mode)


def test_the_goals_come_first_and_the_cases_cover_every_size_dtype_and_provider() -> None:
    cases = list(svd_linear_cases.cuda_cases())
    goal = cases[0]
    assert (goal.batch, goal.tokens, goal.in_features, goal.out_features, goal.rank) == (48, 257, 1024, 3072, 1024)
    assert {"hystar_fast, fp8", "peft, a LoRA a sample", "authors' path", "two GEMMs"} <= set(goal.providers)
    assert {case.batch for case in cases} >= {1, 8, 48, 256}
    assert {case.tokens for case in cases} >= {50, 197, 257, 577}
    assert {case.rank for case in cases} >= {1024, 512, 128, 64}
    assert {case.dtype for case in cases} == {torch.float16, torch.bfloat16, torch.float32}
    assert {case.kind for case in cases} == {"sample", "bank", "shared"}
    names = {name for case in [*cases, *svd_linear_cases.cpu_cases()] for name in case.providers}
    assert names == set(PROVIDERS)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_case_is_measured_for_every_goal(device: str) -> None:
    cases = list(getattr(svd_linear_cases, f"{device}_cases")())
    for goal in goals.read(device):
        if goal.op == "svd_linear" and not goal.case.startswith(("first call", "host time")):
            wanted = {goal.over, goal.under} - {None}
            assert any(
                str(case) == goal.case
                and str(case.dtype) == f"torch.{goal.dtype}"
                and goal.mode in case.modes
                and wanted <= set(case.providers)
                for case in cases
            ), goal


def test_the_precision_of_products_is_restored_after_tf32():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with tf32(torch.float32):
        assert matmul.fp32_precision == "tf32"
    assert matmul.fp32_precision == before
    with pytest.raises(ZeroDivisionError), tf32(torch.float32):
        raise ZeroDivisionError
    assert matmul.fp32_precision == before


def test_the_cpu_cases_are_two_layers_of_vit_l_14_in_two_dtypes() -> None:
    cases = list(svd_linear_cases.cpu_cases())
    assert [str(case) for case in cases] == ["B16 T257 1024->3072 r1024"] * 2 + ["B16 T257 1024->1024 r1024"] * 2
    assert all(len(case.providers) == 6 and len(case.modes) == 2 for case in cases)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (7, 7)])
@pytest.mark.parametrize("rank", [None, 3])
def test_the_gram_factors_of_a_weight_are_its_svd(shape, rank):
    from bench_model import gram_factors

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, truth = gram_factors(weight, rank), svd_factors(weight, rank)
    assert torch.allclose((found.u * found.s) @ found.vh, (truth.u * truth.s) @ truth.vh, atol=1e-5)
    assert torch.allclose(found.s, truth.s, atol=1e-5)
    for a in (found.u.mT @ found.u, found.vh @ found.vh.mT):
        assert torch.allclose(a, torch.eye(len(a)), atol=1e-5)
