"""The block algorithms of the CUDA StyleNCE on the CPU, with the emulated Sinkhorn."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from tests.support.sinkhorn_cuda_host import CUDA_HOST, Host, build

Pointer = ctypes.c_void_p


class NceHost:
    """The compiled emulation. Its functions `style_nce_cuda_*` have the signatures of the extension."""

    def __init__(self, folder: Path, sinkhorn: Host) -> None:
        self._library = build(folder, CUDA_HOST / "style_nce.cpp")
        self._library.workspace_host.restype = ctypes.c_int64
        self._sinkhorn = sinkhorn

    def style_nce_cuda_normalise(self, *arguments: Any) -> None:
        query, query_stride, target, target_stride, n, d, units, lengths, _ = arguments
        strides = ctypes.c_int64(query_stride), ctypes.c_int64(target_stride)
        sizes = ctypes.c_int64(n), ctypes.c_int64(d)
        self._library.normalise_host(
            Pointer(query), strides[0], Pointer(target), strides[1], *sizes, Pointer(units), Pointer(lengths)
        )

    def style_nce_cuda_workspace(self, n: int) -> int:
        size: int = self._library.workspace_host(ctypes.c_int64(n))
        return size

    def style_nce_cuda_forward(self, *arguments: Any) -> None:
        sim, lengths, mask, n, temperature, gamma, lam, epsilon, n_iter, weights, loss, mean, slope, _, space = (
            arguments
        )
        parts = (ctypes.c_void_p * 6)()
        for which in (0, 1):
            self._library.pass_host(
                which,
                *(Pointer(pointer) for pointer in (sim, lengths, mask)),
                ctypes.c_int64(n),
                *(ctypes.c_double(number) for number in (temperature, gamma, lam, epsilon)),
                weights,
                Pointer(loss),
                int(mean),
                *(Pointer(pointer) for pointer in (slope, space)),
                parts,
            )
            if which == 0 and weights != 2:
                cost, u, v, error, status, iterations = parts
                outputs = (cost, 0, slope, u, v, status, error, iterations, 1, n, n)
                entropy = epsilon if weights == 0 else lam
                self._sinkhorn.sinkhorn_cuda_forward(*outputs, entropy, n_iter, 0.0, 0, 1)

    def style_nce_cuda_project(self, *arguments: Any) -> None:
        dquery, dtarget, units, lengths, n, d, dloss, dloss_stride, scale, _ = arguments
        self._library.project_host(
            *(Pointer(pointer) for pointer in (dquery, dtarget, units, lengths)),
            *(ctypes.c_int64(size) for size in (n, d)),
            Pointer(dloss),
            ctypes.c_int64(dloss_stride),
            ctypes.c_double(scale),
        )
