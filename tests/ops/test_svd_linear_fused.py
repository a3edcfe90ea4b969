"""The fused kernel of svd_linear at small rank: numerics in the interpreter, and on a GPU against the two kernels."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import hystar_fast as hf
from hystar_fast.kernels.tuning import svd_linear_fused_tile
from hystar_fast.ops.svd_linear import cuda as svd_linear_cuda
from hystar_fast.ref.svd_linear import svd_linear as reference
from tests.support.gpu import requires_cuda
from tests.support.svd_linear_cases import KINDS, make_inputs, run
from tests.support.tolerance import assert_as_accurate


def test_numerics_in_the_interpreter(pytestconfig: pytest.Config) -> None:
    """Every branch: one scale, two or many samples a tile, banks, odd sizes, strides, descriptors, bias, shares."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.svd_linear_fused_interpreted"],
        cwd=pytestconfig.rootpath,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0), (13, 0)], ids=str)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_use_descriptors_where_there_are_any(capability: tuple[int, int], itemsize: int) -> None:
    for rows in (1, 10**6):
        for width in (16, 128):
            assert not svd_linear_fused_tile(capability, itemsize, rows, width, aligned=False).descriptors
            tile = svd_linear_fused_tile(capability, itemsize, rows, width, aligned=True)
            assert tile.descriptors == (itemsize == 2 and capability[0] in (9, 10))


@requires_cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 7, 37, 71, 13), (3, 257, 1024, 3072, 64), (48, 257, 768, 768, 128)], ids=str)
def test_on_a_gpu(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = make_inputs(*shape, kind, dtype)
    inputs = tuple(None if tensor is None else tensor.cuda() for tensor in cpu)
    dy = torch.randn(*cpu[0].shape[:-1], shape[3]).to("cuda", dtype)
    wide = tuple(None if t is None else t.double() if t.is_floating_point() else t for t in inputs)
    same, truth = run(reference, inputs, dy), run(reference, wide, dy)  # type: ignore[arg-type]
    for shares in (None, 1, 3):
        monkeypatch.setattr(svd_linear_cuda, "_shares", lambda *_, shares=shares: shares)
        actual = run(hf.svd_linear, inputs, dy)  # type: ignore[arg-type]
        for one, other, true in zip(actual, same, truth, strict=True):
            assert_as_accurate(one, other, true, dtype=dtype)
