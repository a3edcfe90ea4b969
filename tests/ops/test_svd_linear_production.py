"""svd_linear at the sizes of production on a GPU: the checks of bench/first_minute.py, which a session runs first.

Persistent kernels start above one tile a multiprocessor, which needs B = 48; every row is held on its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import first_minute

from tests.support.gpu import requires_cuda


@requires_cuda
@pytest.mark.parametrize(("kind", "dtype", "rank"), list(first_minute.layers()), ids=str)
def test_persistent_kernels_give_the_bits_of_one_tile_a_program(kind: str, dtype: torch.dtype, rank: int) -> None:
    first_minute.check_persistent(kind, dtype, rank)


@requires_cuda
@pytest.mark.parametrize("keep_h", [False, True])
def test_persistent_kernels_of_fp8_give_the_bits_of_one_tile_a_program(keep_h: bool) -> None:
    first_minute.check_persistent_fp8(keep_h)


@requires_cuda
@pytest.mark.parametrize("check", list(first_minute.op_checks()), ids=lambda check: check.name)
def test_no_row_is_wrong(check: first_minute.OpCheck) -> None:
    check()


def test_the_first_layer_is_persistent_on_every_hopper_gpu() -> None:
    """Its tiles are more than the multiprocessors of an H200 (132), so no GPU test could miss the persistent path."""
    kind, dtype, rank = next(first_minute.layers())
    kernels, rows = first_minute.kernels, first_minute.BATCH * first_minute.TOKENS
    gpu = kernels.Gpu((9, 0), 132)
    tile = kernels.svd_linear_tile(gpu, dtype.itemsize, first_minute.TOKENS, rows, rank, aligned=True)
    tiles = kernels.tiles_of(tile, rows, rank)
    assert kind == "sample" and tile.persistent and tiles > 2 * 132
