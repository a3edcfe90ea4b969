"""The Triton kernels of svd_linear: numerics in the interpreter, the choice of tile, and on a GPU the whole op."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

import hystar_fast as hf
from hystar_fast.kernels.tuning import SHARED_MEMORY, Gpu, svd_linear_tile
from hystar_fast.ops.svd_linear import cuda as svd_linear_cuda
from hystar_fast.ops.svd_linear import status
from hystar_fast.ops.svd_linear.torch import scale_rows, sum_dscale
from hystar_fast.ref.svd_linear import svd_linear as reference
from tests.support.gpu import requires_cuda
from tests.support.shapes import SVD_LINEAR
from tests.support.svd_linear_cases import DTYPES, KINDS, make_inputs, make_large, run
from tests.support.tolerance import assert_as_accurate, relative_error


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_numerics_in_the_interpreter(dtype: str, pytestconfig: pytest.Config) -> None:
    """Every branch: one scale, two or many samples a tile, banks, odd sizes, strides, descriptors, poison."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.svd_linear_interpreted", dtype],
        cwd=pytestconfig.rootpath,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (13, 0)], ids=str)
@pytest.mark.parametrize("itemsize", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 31, 32, 50, 64, 257, 100_000])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("batch", [1, 48])
def test_tiles_suit_the_architecture(
    capability: tuple[int, int], itemsize: int, tokens: int, aligned: bool, batch: int
) -> None:
    tile = svd_linear_tile(Gpu(capability, 132), itemsize, tokens, batch * tokens, 1024, aligned=aligned)
    staged = (tile.block_m + tile.block_n) * tile.block_k * itemsize * tile.num_stages
    assert staged <= SHARED_MEMORY.get(capability[0] * 10 + capability[1], min(SHARED_MEMORY.values()))
    assert aligned or not tile.descriptors
    assert capability >= (9, 0) or not tile.descriptors
    assert not tile.persistent or (tile.descriptors and tokens >= tile.block_m)
    if not aligned and itemsize > 1 and tokens >= 32:
        assert tokens >= tile.block_m, "with many samples a tile, element-wise addresses leave too few registers"


@pytest.mark.parametrize(
    ("batch", "rank", "tile"),
    [
        (1, 1024, (64, 64)),  # 80 tiles on 132 multiprocessors, where tiles of 128 x 256 are 12
        (2, 1024, (64, 128)),  # 72 tiles
        (4, 1024, (128, 128)),  # 72 tiles; of 64 x 128 there are 136, so four would wait for the rest
        (8, 1024, (128, 256)),  # 68 tiles; smaller ones need two waves
        (16, 1024, (128, 256)),
        (48, 1024, (128, 256)),
        (1, 256, (64, 64)),
    ],
)
def test_fewer_rows_take_smaller_tiles(batch: int, rank: int, tile: tuple[int, int]) -> None:
    chosen = svd_linear_tile(Gpu((9, 0), 132), 2, 257, batch * 257, rank, aligned=True)
    assert (chosen.block_m, chosen.block_n) == tile
    assert chosen.persistent == (batch >= 16), "tiles that fill the GPU take one program a multiprocessor"


def test_the_path_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """It warns once, and status says why."""
    svd_linear_cuda._triton_works.cache_clear()
    monkeypatch.setattr(svd_linear_cuda, "triton_problem", lambda: "Triton cannot be imported: gone")
    with pytest.warns(RuntimeWarning, match="svd_linear runs on torch's GEMMs: Triton cannot be imported: gone"):
        assert not svd_linear_cuda.runs_triton(torch.ones(1, 1, dtype=torch.bfloat16))
    assert not svd_linear_cuda.runs_triton(torch.ones(1, 1, dtype=torch.bfloat16))
    cuda = next(row for row in status() if row.device == "cuda")
    assert cuda.implementation.startswith("torch") and cuda.reason == "Triton cannot be imported: gone"
    svd_linear_cuda._triton_works.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_path_of_cuda(dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the path that float64 and full float32 take on a GPU, on CPU tensors."""
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(svd_linear_cuda, "runs_triton", lambda _: False)
    for shape in SVD_LINEAR:
        x, u, scale, vh, bias, index = make_inputs(*shape, kind, dtype)
        dy = torch.randn(*x.shape[:-1], u.shape[0]).to(dtype)
        y, saved = svd_linear_cuda.forward(x, u, scale, vh, bias, index, False, True)
        gradients = svd_linear_cuda.backward(dy, None, u, scale, vh, index, saved, False, True, True, True)
        same_dtype = run(reference, (x, u, scale, vh, bias, index), dy)
        wide = (x.double(), u.double(), scale.double(), vh.double(), bias.double(), index)
        truth = run(reference, wide, dy)
        for actual, same, true in zip((y, *gradients), same_dtype, truth, strict=True):
            assert_as_accurate(actual, same, true, dtype=dtype)


@pytest.mark.parametrize("bias", [True, False])
def test_torch_path_of_cuda_in_float16_is_finite_where_y_is(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(svd_linear_cuda, "runs_triton", lambda _: False)
    x, u, scale, vh, given, _ = make_large(5)
    y, _ = svd_linear_cuda.forward(x, u, scale, vh, given if bias else None, None, False, False)
    truth = reference(x.double(), u.double(), scale.double(), vh.double(), given.double() if bias else None)
    assert relative_error(y, truth) < 1e-3


def test_torch_path_of_cuda_never_reads_outside_the_bank() -> None:
    h, scale, index = torch.ones(6, 2), torch.ones(3, 2), torch.tensor([0, 3, -1])
    scaled = scale_rows(h, scale, index, 3, 2)
    assert scaled[:2].isfinite().all() and scaled[2:].isnan().all()
    assert sum_dscale(h, h, scale, index, 3, 2).tolist() == [[2, 2], [0, 0], [0, 0]]


@requires_cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SVD_LINEAR, (3, 257, 1024, 3072, 1024)], ids=str)
def test_on_a_gpu(shape: tuple[int, int, int, int, int], dtype: torch.dtype, kind: str) -> None:
    cpu = make_inputs(*shape, kind, dtype)
    inputs = tuple(None if tensor is None else tensor.cuda() for tensor in cpu)
    dy = torch.randn(*cpu[0].shape[:-1], shape[3]).to("cuda", dtype)
    wide = tuple(None if t is None else t.double() if t.is_floating_point() else t for t in inputs)
    actual = run(hf.svd_linear, inputs, dy)  # type: ignore[arg-type]
    again = run(hf.svd_linear, inputs, dy)  # type: ignore[arg-type]
    for first, second, same, true in zip(
        actual,
        again,
        run(reference, inputs, dy),
        run(reference, wide, dy),
        strict=True,  # type: ignore[arg-type]
    ):
        assert_as_accurate(first, same, true, dtype=dtype)
        assert torch.equal(first, second)


@requires_cuda
@pytest.mark.parametrize("tokens", [5, 257])
def test_float16_on_a_gpu_is_finite_where_y_is(tokens: int) -> None:
    x, u, scale, vh, bias, _ = (tensor if tensor is None else tensor.cuda() for tensor in make_large(tokens))
    truth = reference(x.double(), u.double(), scale.double(), vh.double(), bias.double())
    assert relative_error(hf.svd_linear(x, u, scale, vh, bias), truth) < 1e-3
    wide = (torch.cat([u.T, u.new_zeros(200, 56)]).T, torch.cat([scale, scale.new_zeros(2, 200)], 1))  # two kernels
    padded = hf.svd_linear(x, wide[0].contiguous(), wide[1], torch.cat([vh, vh.new_zeros(200, 48)]), bias)
    assert relative_error(padded, truth) < 1e-3


@requires_cuda
def test_in_a_cuda_graph() -> None:
    x, u, scale, vh, bias, _ = (
        t if t is None else t.cuda() for t in make_inputs(4, 257, 256, 768, 256, "sample", torch.bfloat16)
    )
    hf.svd_linear(x, u, scale, vh, bias)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = hf.svd_linear(x, u, scale, vh, bias)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(y, hf.svd_linear(x, u, scale, vh, bias), rtol=0, atol=0)
