"""Tiles of svd_linear's products, measured: tile, stages, persistent or not, flattened or not, at several batches.

`measure.py` runs it. A configuration whose result is not that of the shipped one, or that does not fit, is named and
not timed. The file has one entry for each kernel and batch, with every configuration, the fastest first, so that
kernels/tuning.py can be changed by reading it, and a commit can keep it beside the results.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import device_time
import kernel_variants as kernels
import torch
from harness import DEVICE, relative_error
from torch import Tensor

from hystar_fast.kernels.svd_linear import fp8, gemm
from hystar_fast.kernels.tuning import SPECIALISED, Tile

SECONDS, BATCHES, SAME = 0.5, (48, 1, 8), 1e-2
LAYER = (257, 1024, 3072, 1024)  # tokens, in, out, rank
TOY_LAYER = (22, 48, 64, 80)
# (rows, columns, step, warps, stages); those of few rows are for batches that do not fill the GPU
LARGE = ((128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (128, 128, 64, 8, 4), (128, 128, 64, 4, 4), (256, 128, 64, 8, 3))
SMALL = ((64, 256, 64, 4, 4), (64, 128, 64, 4, 5), (64, 64, 64, 4, 6), (128, 64, 64, 4, 5))
FP8 = ((128, 256, 128, 8, 3), (128, 256, 128, 8, 4), (128, 128, 128, 8, 4), (128, 128, 128, 4, 4), (64, 256, 128, 4, 4))


@dataclass(frozen=True)
class Configuration:
    """A tile, and whether the loops of a persistent program are flattened into one."""

    tile: Tile
    flattened: bool = True

    def __str__(self) -> str:
        t = self.tile
        loop = "one tile" if not t.persistent else "persistent" + ("" if self.flattened else ", not flattened")
        loop = "specialised" if t.specialised else loop
        return f"{t.block_m}x{t.block_n}x{t.block_k}, {t.num_warps} warps, {t.num_stages} stages, {loop}"


class TileFile:
    """The entries on disk; the file is written after each of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, name: str, entry: dict[str, Any]) -> None:
        self.entries[name] = entry
        self.path.write_text(json.dumps(self.entries, indent=1) + "\n")


def configurations(batch: int, itemsize: int, toy: bool) -> Iterator[Configuration]:
    """Yield the configurations of a batch: persistent ones for those that have more tiles than multiprocessors."""
    if toy:
        yield Configuration(kernels.TOY_TILE)
        yield Configuration(kernels.TOY_TILE, flattened=False)
        return
    for m, n, k, warps, stages in FP8 if itemsize == 1 else LARGE if batch >= 48 else (*LARGE[:3], *SMALL):
        tile = Tile(m, n, k, warps, stages, descriptors=True)
        yield Configuration(tile)
        if batch >= 48:
            yield Configuration(replace(tile, persistent=True))
            if itemsize > 1:
                yield Configuration(replace(tile, persistent=True), flattened=False)


def specialised() -> Iterator[Configuration]:
    """Yield the configurations of the backward with warps of three kinds."""
    yield Configuration(SPECIALISED)
    yield Configuration(replace(SPECIALISED, block_k=32, num_stages=8))


def products(layer: kernels.Layer, gpu: kernels.Gpu) -> Iterator[tuple[str, int, Tile, Callable[..., list[Tensor]]]]:
    """Yield name, itemsize, shipped tile, and a function of a configuration, of each product."""
    size, shipped = layer.x.itemsize, kernels.shipped_tile
    h = kernels.forward(layer, shipped(layer, size, gpu), gpu, keep_h=True)[1]

    def module(chosen: Configuration) -> Any:
        return gemm if chosen.flattened else kernels.unflattened()

    for name, keep_h in (("forward", False), ("training forward", True))[: 1 + (len(layer.x) > LAYER[0] * 8)]:
        yield (
            name,
            size,
            shipped(layer, size, gpu),
            lambda c, k=keep_h: kernels.forward(layer, c.tile, gpu, keep_h=k, module=module(c)),
        )
    yield (
        "backward",
        size,
        shipped(layer, size, gpu),
        lambda c: kernels.backward(layer, h, c.tile, gpu, module=module(c)),
    )
    factors = layer.factors
    x8, x_scale, g_scale = fp8.quantise(layer.x, factors.vh_norm, layer.modulation, gpu=gpu)
    parts = (factors.vh, factors.vh_scale, layer.modulation)

    def first(chosen: Configuration) -> list[Tensor]:
        return [fp8.first_product(x8, x_scale, g_scale, *parts, gpu=gpu, h_dtype=None, tile=chosen.tile)[0]]

    g8 = first(Configuration(shipped(layer, 1, gpu)))[0]

    def second(chosen: Configuration) -> list[Tensor]:
        y = layer.x.new_empty(len(layer.x), len(layer.u))
        fp8.second_product(g8, g_scale, factors.u, factors.u_scale, None, y, gpu=gpu, tile=chosen.tile)
        return [y]

    yield "fp8, first product", 1, shipped(layer, 1, gpu), first
    yield "fp8, second product", 1, shipped(layer, 1, gpu), second


def others(layer: kernels.Layer, name: str) -> dict[str, Callable[[], Tensor]]:
    """Return what a product is compared with: the library's bare product, and its scaled one in fp8."""
    if name == "backward":
        return {"torch.mm, without the rest": lambda: layer.dy @ layer.u}
    if "fp8" not in name:
        return {"torch.mm, without the rest": lambda: layer.x @ layer.vh.T}
    if name == "fp8, first product" or DEVICE == "cpu":
        return {}
    factors = layer.factors
    g8, g_scale = torch.randn(len(layer.x), len(layer.vh), device=DEVICE).to(fp8.E4M3), torch.ones(len(layer.x), 1)
    scales = {"scale_a": g_scale.to(DEVICE), "scale_b": factors.u_scale[None]}
    return {"torch._scaled_mm": lambda: torch._scaled_mm(g8, factors.u.T, **scales, out_dtype=layer.x.dtype)}


def measure(
    tiles: TileFile,
    layer: kernels.Layer,
    batch: int,
    product: Any,
    more: Iterable[Configuration] = (),
    *,
    toy: bool,
) -> None:
    """Time the configurations of one product in turn, with some more, and write its entry."""
    name, itemsize, shipped, run = product
    found: dict[str, Any] = {"rows": len(layer.x), "rank": len(layer.vh), "shipped": str(Configuration(shipped))}
    ready, problems = {}, {}
    truth = run(Configuration(shipped))
    chosen = {str(c): c for c in [Configuration(shipped), *more, *configurations(batch, itemsize, toy)]}
    for text, configuration in chosen.items():
        try:
            outputs = run(configuration)
            error = relative_error([a.float() for a in outputs], [a.float() for a in truth])
            if not error <= SAME:
                raise ValueError(f"differs from the shipped tile by {error:.1e}")
            ready[text] = device_time.replayed(lambda c=configuration: run(c))
        except Exception as error:  # does not fit, or does not compile
            problems[text] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    ready |= {text: device_time.replayed(call) for text, call in others(layer, name).items()}
    timings = device_time.in_turn(ready, 0.01 if toy else SECONDS)
    ordered = sorted(timings.items(), key=lambda entry: entry[1].median_ms)
    found["timings"] = [{"what": text, **timing._asdict()} for text, timing in ordered]
    best = next(text for text, _ in ordered if text in chosen)
    found |= {"best": best, "tile": asdict(chosen[best].tile), "flattened": chosen[best].flattened}
    found["gain"] = round(timings[found["shipped"]].median_ms / timings[best].median_ms, 4)
    found |= {"problems": problems}
    tiles.add(f"{name}, B{batch}", found)
    print(f"tiles of {name}, B{batch}: {best}, {found['gain']:.3f} of the shipped {found['shipped']}", flush=True)
    for text, timing in ordered[:4]:
        print(f"    {timing.median_ms * 1e3:8.1f} us (IQR {timing.spread_ms * 1e3:.1f})  {text}", flush=True)


def measurements(tiles: TileFile, toy: bool, with_specialised: bool) -> Iterator[Callable[[Any], None]]:
    """Yield a measurement for each product and batch that the file lacks."""
    if toy and not kernels.INTERPRETED:
        raise SystemExit("--toy needs TRITON_INTERPRET=1, because the tiles are those of Triton kernels")
    tokens, *sizes = TOY_LAYER if toy else LAYER
    for batch in (3,) if toy else BATCHES:
        layer = kernels.make_layer(batch, tokens, *sizes, dtype=torch.bfloat16)
        for product in products(layer, kernels.gpu_here()):
            if f"{product[0]}, B{batch}" not in tiles.entries:
                more = [*specialised()] if with_specialised and (product[0], batch) == ("backward", BATCHES[0]) else []
                yield lambda _, p=product, b=batch, a=layer, m=more: measure(tiles, a, b, p, m, toy=toy)
