"""Every kernel of svd_linear that production launches on a GPU has a check and a row in a GPU session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import first_minute
import gpu_coverage
import svd_linear_cases


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
    assert gpu_coverage.PAGE.read_text() == gpu_coverage.page(), "run PYTHONPATH=. python bench/gpu_coverage.py"
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
