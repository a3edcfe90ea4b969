"""The launches of svd_linear's Triton kernels on a stub of CUDA, and the repetition of a call without Triton."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hystar_fast.ops.svd_linear import replay
from tests.support.cuda_stub import build, run_stubbed

MULTIPROCESSORS = 132
KERNELS = {
    ("forward", False): ["gemm", "cublas"],
    ("forward", True): ["fused"],
    ("training", False): ["gemm", "cublas", "gemm", "reduce", "cublas"],
    ("training", True): ["fused", "fused", "reduce"],
    ("specialised", False): ["gemm", "cublas", "specialised", "reduce", "cublas"],
    ("fp8", False): ["quantise", "fp8", "fp8"],
    ("fp8", True): ["quantise", "fp8", "fp8"],
}
pytestmark = pytest.mark.xdist_group("svd_linear replay")  # all calls are launched once, not once a worker
GEMMS = ("_svd_linear_gemm_kernel", "_svd_linear_fp8_kernel")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    library = build(tmp_path_factory.mktemp("stub"))
    printed = run_stubbed(library, "tests.support.svd_linear_stubbed").splitlines()
    result: dict[str, Any] = json.loads(printed[-1])
    return result


def test_the_first_call_of_a_process(tmp_path: Path) -> None:
    """Compiles three kernels; how long that takes is a row of the benchmark, as it depends on what else runs."""
    library = build(tmp_path)
    seen = json.loads(run_stubbed(library, "tests.support.svd_linear_first_call").splitlines()[-1])
    first, second = seen["first"], seen["second"]
    kernels = ["gemm", "cublas", "gemm", "reduce", "cublas"]
    for call in (first, second):
        launched = [name.removeprefix("_svd_linear_").removesuffix("_kernel") for name in call["launched"]]
        assert launched == kernels
    assert first["compiled"] == ["_svd_linear_gemm_kernel"] * 2 + ["_svd_linear_reduce_kernel"]
    assert second["compiled"] == second["packages"] == [] and second["modules"] == 0
    # sympy and mpmath are imported by torch.autograd.grad
    assert {*first["packages"]} <= {"cuda_utils", "hystar_fast", "triton", "torch", "sympy", "mpmath"}
    assert first["modules"] <= 90  # of ours and of Triton; 82 today
    assert second["seconds"] <= 0.05 * first["seconds"], seen


def test_a_repeated_call_launches_what_triton_does(found: dict[str, Any]) -> None:
    """Kernel, grid, threads, shared memory, stream and every parameter, with its tensor maps, to the byte."""
    assert len(found["cases"]) == 38
    for name, case in found["cases"].items():
        assert case["repeated"] == case["triton"], name
        kind = name.split()[-1].replace("sum", "training")
        kernels = [launch["kernel"].removeprefix("_svd_linear_").removesuffix("_kernel") for launch in case["triton"]]
        assert kernels == KERNELS[kind, " r64 " in name], name
        assert all(len(launch["parameters"]) > 2 for launch in case["triton"]), name


def test_production_launches(found: dict[str, Any]) -> None:
    """At batch 48 the GEMMs are persistent; the driver of the stub has checked shared memory and tensor maps."""
    for name, case in found["cases"].items():
        for launch in case["triton"]:
            if name.startswith("B48") and " r1024 " in name and launch["kernel"] in GEMMS:
                assert (launch["grid"], launch["threads"]) == ([MULTIPROCESSORS, 1], 256), name
                assert launch["shared"] > 160_000, name
            if name.startswith("B1 ") and launch["kernel"] in GEMMS:
                assert launch["grid"][0] < MULTIPROCESSORS, name


def test_the_specialised_backward_launches(found: dict[str, Any]) -> None:
    """Three groups of four warps a multiprocessor. The stub's driver has checked tensor maps and shared memory."""
    for kind in ("sample", "bank"):
        case = found["cases"][f"B48 r1024 {kind} bfloat16 specialised"]["triton"]
        launch = next(one for one in case if "specialised" in one["kernel"])
        assert (launch["grid"], launch["threads"]) == ([MULTIPROCESSORS, 1], 384)
        assert 220_000 < launch["shared"] <= 227 * 1024


def test_the_gradient_of_a_sum_takes_the_same_kernels(found: dict[str, Any]) -> None:
    """Its strides are 0, and no tensor map can address it."""
    shown = ("kernel", "grid", "threads", "shared")
    for name, case in found["cases"].items():
        if name.endswith("sum"):
            dense = found["cases"][name.replace("sum", "training")]
            seen = [[[row[k] for k in shown] for row in each["triton"]] for each in (case, dense)]
            assert seen[0] == seen[1], name


def test_threads_share_kept_calls(found: dict[str, Any]) -> None:
    """No launch mixes the tensors or streams of two threads; a thread without a context launches through Triton."""
    assert found["threads"] == {"launches": 600, "pairs": 2, "mixed": 0, "without context": 2}


def test_a_result_can_be_changed_in_place(found: dict[str, Any]) -> None:
    assert found["view"] is False


def test_a_kept_call_is_checked_where_it_differs(found: dict[str, Any]) -> None:
    assert found["checked"] == {
        "u that requires grad": "ValueError",
        "bias of another dtype": "TypeError",
        "bias of another shape": "ValueError",
        "index of a float dtype": "TypeError",
        "scale for another batch": "ValueError",
        "counted by a mode": "seen",
        "autocast": "torch.float16",
    }


def test_gradients_of_a_repeated_call(found: dict[str, Any]) -> None:
    """Each runs the kernels that it needs; what autograd refuses, it refuses here."""
    seen = found["gradients"]
    assert seen["of x"] == ["_RepeatedBackward", "gemm", "cublas", True]
    assert seen["of scale"] == ["_RepeatedBackward", "gemm", "reduce", True]
    assert seen["of bias"] == ["_RepeatedBackward", True]  # a sum of torch
    both = ["gemm", "reduce", "cublas"]
    assert seen["of x scale bias"] == ["_RepeatedBackward", *both, True]
    assert seen["of scale alone"] == seen["twice, retained"] == seen["saved on the host"] == both
    assert "backward through the graph a second time" in seen["twice"]
    assert seen["create_graph"].startswith("create_graph must be False")
    for name in ("u", "scale", "vh"):
        assert "modified by an inplace operation" in seen[f"{name} changed"]
    assert seen["batched"] == [2, 8, 1024]


def test_what_a_repeated_call_could_get_wrong_is_not_repeated(found: dict[str, Any]) -> None:
    repeated = [name for name, was in found["repeated"].items() if was]
    assert repeated == ["plain", "parameter", "the newest", "256 at most"] and len(found["repeated"]) == 19


def test_without_the_extension_or_its_functions_no_call_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(*_: object) -> None:
        raise RuntimeError("torch has no aoti_torch_get_layout in libtorch_cpu.so")

    for module in (None, SimpleNamespace(KeptCalls=older)):
        replay.calls.cache_clear()
        monkeypatch.setattr(replay, "extension", lambda m=module: m)
        assert replay.calls() is None
        replay.keep([0], (torch.empty(2),) * 4, [], [])
    replay.calls.cache_clear()


def test_host_calls_of_a_repeated_call(found: dict[str, Any]) -> None:
    """Python and C functions that run before the GPU has its work: 385 of a forward before calls were kept.

    More than half of those of training are the test's own.
    """
    counts = {name.split()[-1]: count for name, count in found["host calls"].items()}
    assert counts["forward"] <= 18 and counts["training"] <= 125 and counts["fp8"] <= 70, counts
