"""Launches of a compiled Triton kernel that repeat one call with other pointers.

Triton binds, specialises and unpacks every argument of every call. For tensors of the same shapes, strides and dtypes
nothing of that changes but the addresses. `recorded` collects the launches of a call in this form. Triton's hooks for
launches (`triton.knobs.runtime.launch_enter_hook`) do not see repeated ones.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from torch import Tensor

_SLOT = 128  # bytes kept for an argument: the size of a tensor map, which must begin at a multiple of 64
_MAPS = 128  # tensor maps that are kept for one argument
_INTEGERS = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8}
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.([a-z]+)(\d+)[^,\[]*?\w+(?:\[(\d+)\])?\s*(?:,|$)")
_INVALID_CONTEXT = 201


class _Config(ctypes.Structure):
    """CUlaunchConfig of the driver API."""

    _fields_ = [
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    ]


class Prepared:
    """One launch, ready to be repeated. Threads may share it."""

    def __init__(self, compiled: Any, grid: tuple[int, int], arguments: Sequence[tuple[str, Any]]) -> None:
        """Lay the arguments out in memory.

        Args:
            compiled: Triton's compiled kernel.
            grid: Number of programs, along two axes.
            arguments: Type and value of each parameter of the kernel, in its order. The value of a pointer, or of a
                tensor map, is its tensor or its descriptor.
        """
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._compiled = compiled  # when it is collected, its code is unloaded
        memory = ctypes.create_string_buffer(_SLOT * (len(arguments) + 1))
        start = ctypes.addressof(memory) + -ctypes.addressof(memory) % _SLOT
        self._keep = memory
        self._slots: list[_Pointer | _TensorMap] = []
        addresses = [start + _SLOT * place for place in range(len(arguments))]
        maps = iter(compiled.metadata.tensordesc_meta or ())
        for (_, value), address in zip(arguments, addresses, strict=True):
            if hasattr(value, "block_shape"):  # a tensor descriptor, of Triton or of Gluon
                self._slots.append(_TensorMap(address, self._driver, value, next(maps)))
            elif isinstance(value, Tensor):
                self._slots.append(_Pointer(address))
            else:
                ctypes.memmove(address, int(value).to_bytes(8, "little", signed=True), 8)
        self._parameters = (ctypes.c_void_p * len(arguments))(*addresses)
        metadata = compiled.metadata
        self._config = _Config(*grid, 1, 32 * metadata.num_warps, 1, 1, metadata.shared, None, None, 0)
        self._call = (ctypes.byref(self._config), ctypes.c_void_p(compiled.function), self._parameters, None)
        self._lock = threading.Lock()
        self.shapes = [value.shape for _, value in arguments if isinstance(value, Tensor)]
        """Shapes of the tensors that are no descriptors."""

    def __call__(self, stream: int, *pointers: int) -> bool:
        """Launch on a stream, with the addresses of the tensors in the kernel's order.

        Returns:
            False if this thread has no context yet: then nothing was launched.
        """
        with self._lock:  # between the first address and the launch, no other thread may write one
            for slot, pointer in zip(self._slots, pointers, strict=True):
                if slot.pointer != pointer:
                    slot.set(pointer)
            self._config.stream = stream
            error = self._driver.cuLaunchKernelEx(*self._call)
        if error and error != _INVALID_CONTEXT:
            raise RuntimeError(f"a prepared Triton kernel could not be launched: CUDA error {error}")
        return not error


class _Pointer:
    """The place of a tensor's address."""

    def __init__(self, address: int) -> None:
        self._word = ctypes.c_uint64.from_address(address)
        self.pointer = 0

    def set(self, pointer: int) -> None:
        self.pointer = 0  # an interrupt between two lines must not leave a wrong one
        self._word.value = pointer
        self.pointer = pointer


class _TensorMap:
    """The place of a tensor map, by which TMA finds a matrix; maps of addresses seen before are kept."""

    def __init__(self, address: int, driver: ctypes.CDLL, descriptor: Any, meta: dict[str, Any]) -> None:
        from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST

        box, size = meta["block_size"], meta["elem_size"]
        rank = len(box)
        self._address, self._encode = address, driver.cuTensorMapEncodeTiled
        self._kind = (TMA_DTYPE_DEVICE_TO_HOST[meta["elem_type"]], rank)
        strides = [size * stride for stride in reversed(descriptor.strides[:-1])]
        self._layout = (
            (ctypes.c_uint64 * rank)(*reversed(descriptor.shape)),
            (ctypes.c_uint64 * rank)(*strides),
            (ctypes.c_uint32 * rank)(*reversed(box)),
            (ctypes.c_uint32 * rank)(*(1,) * rank),
            0,  # no interleaving
            meta["swizzle"],
            2,  # promotes to 128 bytes of L2
            0,  # zeros outside
        )
        self._known: dict[int, Any] = {}
        self.pointer = 0

    def set(self, pointer: int) -> None:
        self.pointer = 0
        found = self._known.get(pointer)
        if found is None:
            memory = ctypes.create_string_buffer(2 * _SLOT)
            found = ctypes.addressof(memory) + -ctypes.addressof(memory) % _SLOT
            error = self._encode(ctypes.c_void_p(found), *self._kind, ctypes.c_void_p(pointer), *self._layout)
            if error:
                raise RuntimeError(f"a tensor map could not be encoded: CUDA error {error}")
            if len(self._known) >= _MAPS:
                del self._known[next(iter(self._known))]
            self._known[pointer] = found = ctypes.string_at(found, _SLOT)
        ctypes.memmove(self._address, found, _SLOT)
        self.pointer = pointer


_recording = threading.local()


@contextmanager
def recorded() -> Iterator[list[Prepared | None]]:
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


def _prepare(compiled: Any, grid: tuple[int, int], arguments: Sequence[Any]) -> Prepared | None:
    """Return the launch in a form that can be repeated, or None where its parameters are not as expected."""
    metadata = getattr(compiled, "metadata", None)
    if metadata is None:  # the interpreter
        return None
    plain = metadata.num_ctas == 1 and not metadata.launch_pdl and not metadata.launch_cooperative_grid
    scratch = metadata.global_scratch_size or metadata.profile_scratch_size
    names = compiled.src.fn.arg_names
    flat = list(_flat([compiled.src.signature[name] for name in names[: len(arguments)]], arguments))
    flat += [("i64", 0), ("i64", 0)]  # the two addresses of scratch memory, which Triton adds
    sizes = [_SLOT if kind == "map" else 8 if kind[0] == "*" else _INTEGERS.get(kind) for kind, _ in flat]
    if not plain or scratch or metadata.shared > 227 * 1024 or sizes != _parameter_sizes(compiled.asm["ptx"]):
        return None
    return Prepared(compiled, grid, flat)


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
