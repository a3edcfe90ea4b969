"""Every kernel that production launches on a GPU has a check and a row in a GPU session."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import first_minute
import gpu_coverage
import svd_linear_cases
import transport_coverage

pytestmark = pytest.mark.xdist_group("cuda launches")  # compiled once, not once a worker


def test_no_variant_is_without_a_check_or_a_row() -> None:
    assert gpu_coverage.holes() == []


def test_a_variant_without_a_check_and_a_row_without_a_mode_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [check for check in first_minute.op_checks() if check.needs != "scale"]
    monkeypatch.setattr(first_minute, "op_checks", lambda: iter(checks))
    cases = [case for case in svd_linear_cases.cuda_cases() if case.dtype != torch.float16]
    planned = list(gpu_coverage.production())
    monkeypatch.setattr(gpu_coverage, "production", lambda: iter(planned))
    monkeypatch.setattr(gpu_coverage, "cuda_cases", lambda: iter(cases))
    found = gpu_coverage.holes()
    assert any(hole.startswith("no check: gemm; bf16") and hole.endswith("with h partials") for hole in found)
    assert any(hole.startswith("no row: gemm; fp16") for hole in found)


def test_the_table_is_the_one_that_the_sources_give() -> None:
    page = f"{gpu_coverage.page()}\n{transport_coverage.section()}"
    assert gpu_coverage.PAGE.read_text() == page, "run PYTHONPATH=. python bench/gpu_coverage.py"
    rows = [line for line in gpu_coverage.page().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(gpu_coverage.wanted()) > 60
    for what in ("persistent", "many samples", "one scale", "fused; bf16", "fp8; e4m3", "quantise", "reduce"):
        assert any(what in row for row in rows), what


def test_every_persistent_variant_is_compared_with_one_tile_a_program() -> None:
    """The kinds of tiles, dtypes and products of layers() are those of the table."""
    compared = {(kind, dtype) for kind, dtype, _ in first_minute.layers()}
    spans = {"one scale": "shared", "two samples": "sample"}
    for variant in (one for one in gpu_coverage.wanted() if "; persistent; " in one and one.startswith("gemm")):
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[variant.split("; ")[1]]
        kind = "bank" if variant.endswith("index") else next(k for span, k in spans.items() if span in variant)
        assert (kind, dtype) in compared, variant


def test_every_kernel_of_sinkhorn_and_style_nce_has_a_check_and_a_row() -> None:
    assert transport_coverage.holes() == []
    kernels = {variant.split(", clusters")[0] for variant, _, _ in transport_coverage.table()}
    names = {name: sum(kernel.split()[0] == name for kernel in kernels) for name in (k.split()[0] for k in kernels)}
    assert {name: count for name, count in names.items() if count > 1} == {
        "tile_kernel": 6,
        "cluster_kernel": 3,
        "sweep_kernel": 6,
        "unrolled_kernel": 2,
        "implicit_kernel": 2,
    }
    sources = "".join(path.read_text() for path in (gpu_coverage.PAGE.parents[2] / "csrc").rglob("*.cu"))
    assert set(names) == set(re.findall(r"(\w+_kernel)\(", sources)), "a kernel that no problem takes"


def test_a_kernel_of_sinkhorn_without_a_case_or_a_row_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    checks, rows = list(transport_coverage.checks()), list(transport_coverage.rows())
    monkeypatch.setattr(transport_coverage, "checks", lambda: [run for run in checks if "sweep 1 by one" not in run[0]])
    assert transport_coverage.holes() == []  # a StyleNCE of 1,030 takes it too
    few = [run for run in checks if not run[0].startswith(("tile 96", "cluster 2 x 4"))]
    monkeypatch.setattr(transport_coverage, "checks", lambda: few)
    monkeypatch.setattr(transport_coverage, "rows", lambda: [run for run in rows if "192x192" not in run[0]])
    assert transport_coverage.holes() == [
        "no check: tile_kernel Tile<6, 12, 8, 4, 3>",
        "no row: tile_kernel Tile<8, 12, 16, 12, 1>",
        "no check: cluster_kernel Tile<5, 24, 32, 8, 1, 16>, clusters of 4",
    ]
