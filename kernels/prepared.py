"""Launches of compiled Triton kernels, in a form in which they can be repeated with other addresses.

Triton binds, specialises and unpacks every argument of every call. For tensors of the same shapes, strides and dtypes
nothing of that changes but the addresses. `recorded` collects the launches of a call in this form. Triton's hooks for
launches (`triton.knobs.runtime.launch_enter_hook`) do not see repeated ones.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor

_TENSOR_MAP = 128  # bytes
_INTEGERS = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8}
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.([a-z]+)(\d+)[^,\[]*?\w+(?:\[(\d+)\])?\s*(?:,|$)")


class Launch(NamedTuple):
    """One launch of a compiled kernel."""

    compiled: Any  # when it is collected, its code is unloaded
    function: int
    grid: tuple[int, int]
    threads: int
    shared: int
    parameters: list[Any]
    """A number; None for an address; the facts of a matrix that TMA finds by its address (`_matrix`)."""
    tensors: list[Tensor]
    """Those whose addresses are parameters or in tensor maps, in their order."""


_recording = threading.local()


@contextmanager
def recorded() -> Iterator[list[Launch | None]]:
    """Collect the launches of `launch` in this thread. One that cannot be repeated is None."""
    _recording.launches = launches = []
    try:
        yield launches
    finally:
        del _recording.launches


def launch(kernel: Any, grid: int | tuple[int, int], *arguments: Any, **options: Any) -> None:
    """Launch a kernel through Triton, which compiles it at its first call."""
    programs = (grid, 1) if isinstance(grid, int) else grid
    compiled = kernel[programs](*arguments, **options)
    launches = getattr(_recording, "launches", None)
    if launches is not None:
        launches.append(_prepare(compiled, programs, arguments))


def _prepare(compiled: Any, grid: tuple[int, int], arguments: Sequence[Any]) -> Launch | None:
    """Return the launch in a form that can be repeated, or None where its parameters are not as expected."""
    metadata = getattr(compiled, "metadata", None)
    if metadata is None:  # the interpreter
        return None
    plain = metadata.num_ctas == 1 and not metadata.launch_pdl and not metadata.launch_cooperative_grid
    scratch = metadata.global_scratch_size or metadata.profile_scratch_size
    names = compiled.src.fn.arg_names
    flat = list(_flat([compiled.src.signature[name] for name in names[: len(arguments)]], arguments))
    flat += [("i64", 0), ("i64", 0)]  # the two addresses of scratch memory, which Triton adds
    sizes = [_TENSOR_MAP if kind == "map" else 8 if kind[0] == "*" else _INTEGERS.get(kind) for kind, _ in flat]
    if not plain or scratch or metadata.shared > 227 * 1024 or sizes != _parameter_sizes(compiled.asm["ptx"]):
        return None
    maps = iter(metadata.tensordesc_meta or ())
    parameters: list[Any] = []
    tensors = []
    for kind, value in flat:
        if kind == "map":
            parameters.append(_matrix(value, next(maps)))
            tensors.append(value.base)
        elif isinstance(value, Tensor):
            parameters.append(None)
            tensors.append(value)
        else:
            parameters.append(int(value))
    return Launch(compiled, compiled.function, grid, 32 * metadata.num_warps, metadata.shared, parameters, tensors)


def _matrix(descriptor: Any, meta: dict[str, Any]) -> tuple[int, list[int], list[int], list[int], int]:
    """Return type, sizes, strides in bytes, box and swizzle of a tensor map, the innermost dimension first."""
    from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST

    strides = [meta["elem_size"] * stride for stride in reversed(descriptor.strides[:-1])]
    box = [*reversed(meta["block_size"])]
    return TMA_DTYPE_DEVICE_TO_HOST[meta["elem_type"]], [*reversed(descriptor.shape)], strides, box, meta["swizzle"]


def _flat(signature: Sequence[Any], values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yield type and value of each parameter of the compiled kernel; a tensor map brings its shape and strides."""
    for kind, value in zip(signature, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, value)
        elif kind.startswith("tensordesc"):
            yield "map", value
            yield from (("i32", size) for size in value.shape)
            yield from (("i64", stride) for stride in value.strides)
        elif kind != "constexpr":
            yield kind, value


@lru_cache(256)
def _parameter_sizes(ptx: str) -> list[int]:
    """Return the bytes of each parameter of the kernel."""
    entry = re.search(r"\.entry\s+\w+\((.*?)\)", ptx, re.DOTALL)
    found = _PARAMETER.findall(" ".join(entry[1].split())) if entry else []
    return [int(count) if count else int(bits) // 8 for _, bits, count in found]
