"""The kernels of svd_linear one by one, with any tile: persistent or not, flattened or not.

Everything here works in Triton's interpreter too (TRITON_INTERPRET=1), at toy sizes.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType

import interpreter
import torch
import triton
from harness import DEVICE
from torch import Tensor

from hystar_fast.kernels.svd_linear import fp8, gemm
from hystar_fast.kernels.svd_linear.launch import Modulation
from hystar_fast.kernels.tuning import Gpu, Tile, svd_linear_tile
from hystar_fast.ops.svd_linear.fp8 import Fp8Factors, quantise_factors

INTERPRETED = bool(triton.knobs.runtime.interpret)
if INTERPRETED:
    interpreter.patch_once()
TOY_TILE = Tile(32, 64, 32, 4, 3, descriptors=True, persistent=True)
FLATTEN = "flatten=SPAN != MANY"  # of gemm.py, which `unflattened` replaces


@dataclass(frozen=True)
class Layer:
    """Rows x [B T, in] and dy [B T, out] of a batch, and a layer u diag(scale) vh."""

    x: Tensor
    dy: Tensor
    u: Tensor
    vh: Tensor
    scale: Tensor
    index: Tensor | None
    tokens: int

    @property
    def modulation(self) -> Modulation:
        return Modulation(self.scale, self.index, self.tokens)

    @property
    def factors(self) -> Fp8Factors:
        return quantise_factors(self.u, self.vh)

    def row_scale(self) -> Tensor:
        """Return the scale of every row, in float64."""
        scale = self.scale.double() if self.index is None else self.scale.double()[self.index]
        rows = len(self.x)
        return scale.expand(rows, -1) if scale.dim() == 1 else scale.repeat_interleave(self.tokens, 0)


def make_layer(
    batch: int,
    tokens: int,
    inner: int,
    outer: int,
    rank: int,
    *,
    kind: str = "sample",
    dtype: torch.dtype,
    seed: int = 0,
) -> Layer:
    """Draw a layer with one scale a sample, a bank of 5 with an index, or one shared scale."""
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE)

    x, dy = draw(batch * tokens, inner).to(dtype), draw(batch * tokens, outer).to(dtype)
    u, vh = (draw(outer, rank) / rank**0.5).to(dtype), (draw(rank, inner) / inner**0.5).to(dtype)
    scale = 1 + 0.5 * draw(*{"shared": (), "sample": (batch,), "bank": (5,)}[kind], rank)
    index = torch.arange(batch, device=DEVICE) % 5 if kind == "bank" else None
    return Layer(x, dy, u, vh, scale, index, tokens)


def gpu_here() -> Gpu:
    """Return the facts of this GPU; without one, those of an H200 with four multiprocessors."""
    if DEVICE == "cpu":
        return Gpu((9, 0), 4)
    properties = torch.cuda.get_device_properties()
    return Gpu((properties.major, properties.minor), properties.multi_processor_count)


def shipped_tile(layer: Layer, itemsize: int, gpu: Gpu) -> Tile:
    """Return the tile that the op takes for aligned operands; a toy in the interpreter."""
    if INTERPRETED:
        return TOY_TILE
    rows = len(layer.x)
    tokens = layer.modulation.rows_per_sample(rows)
    return svd_linear_tile(gpu, itemsize, tokens, rows, len(layer.vh), aligned=True)


def tiles_of(tile: Tile, rows: int, columns: int) -> int:
    return triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n)


@cache
def unflattened() -> ModuleType:
    """Return gemm.py with the loop over tiles of a persistent program not flattened into that over steps."""
    source = Path(gemm.__file__).read_text()
    if source.count(FLATTEN) != 1:
        raise ValueError(f"kernels/svd_linear/gemm.py must have {FLATTEN!r} once")
    path = Path(mkdtemp()) / "gemm_unflattened.py"  # Triton reads the source of a kernel from its file
    path.write_text(source.replace(FLATTEN, "flatten=False"))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def not_persistent(tile: Tile) -> Tile:
    return replace(tile, persistent=False)


def forward(layer: Layer, tile: Tile, gpu: Gpu, *, keep_h: bool, module: ModuleType = gemm) -> list[Tensor]:
    """Return g, and h if it is kept."""
    g, h = module.forward(layer.x, layer.vh, layer.modulation, gpu=gpu, keep_h=keep_h, tile=tile)
    return [g] if h is None else [g, h]


def backward(
    layer: Layer, h: Tensor | None, tile: Tile, gpu: Gpu, *, needs_dg: bool = True, module: ModuleType = gemm
) -> list[Tensor]:
    """Return those of dg and dscale that are needed: dscale if h is given."""
    found = module.backward(layer.dy, layer.u, h, layer.modulation, gpu=gpu, needs_dg=needs_dg, tile=tile)
    return [tensor for tensor in found if tensor is not None]


def fp8_forward(layer: Layer, factors: Fp8Factors, tile: Tile, gpu: Gpu, *, keep_h: bool) -> list[Tensor]:
    """Return y, g as bytes, and h if it is kept; both products run with this tile."""
    x8, x_scale, g_scale = fp8.quantise(layer.x, factors.vh_norm, layer.modulation, gpu=gpu)
    kept, parts = layer.x.dtype if keep_h else None, (factors.vh, factors.vh_scale)
    g, h = fp8.first_product(x8, x_scale, g_scale, *parts, layer.modulation, gpu=gpu, h_dtype=kept, tile=tile)
    y = layer.x.new_empty(len(layer.x), len(layer.u))
    fp8.second_product(g, g_scale, factors.u, factors.u_scale, None, y, gpu=gpu, tile=tile)
    return [y, g.view(torch.uint8), *([] if h is None else [h])]


def exact_forward(layer: Layer) -> list[Tensor]:
    """Return g and h in float64."""
    h = layer.x.double() @ layer.vh.double().T
    return [h * layer.row_scale(), h]


def exact_backward(layer: Layer, h: Tensor) -> list[Tensor]:
    """Return dg and dscale in float64, for the h that the kernel reads."""
    dg = layer.dy.double() @ layer.u.double()
    product = dg * h.double()
    if layer.scale.dim() == 1:
        return [dg * layer.row_scale(), product.sum(0)]
    sums = product.view(-1, layer.tokens, product.shape[1]).sum(1)
    if layer.index is not None:
        sums = torch.zeros_like(layer.scale, dtype=torch.float64).index_add_(0, layer.index, sums)
    return [dg * layer.row_scale(), sums]
