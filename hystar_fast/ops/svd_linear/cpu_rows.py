"""The element-wise work of svd_linear on the CPU: rows times their scale, and the sums that make dscale.

The extension does both in one pass over the rows, for float32 and bfloat16. Without it, and for float64, torch does the
same in several passes; they are not divided into blocks, because every parallel region ends in a barrier, which takes
milliseconds on a busy machine. Only float32 copies of bfloat16 are made in blocks, which bounds their memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from hystar_fast.ops.native import extension
from hystar_fast.ops.svd_linear.torch import accumulator

ISA = ""
"""The instruction set to use: empty for the widest of this CPU, or a member of ``_C.cpu_instruction_sets()``."""

_BLOCK = 1 << 22  # elements of a block of float32 copies: 16 MiB
_NARROW = (torch.float32, torch.bfloat16)


def scale_rows(h: Tensor, row_scale: Tensor, tokens: int, *, out: Tensor) -> None:
    """Write h [samples * tokens, r] times row_scale [samples, r] into `out`, which may be h; rounded once."""
    native = _extension_for(h, row_scale)
    if native is not None:
        _pass(native, h, None, row_scale, tokens, out, None)
    else:
        _scale(h, row_scale, tokens, out)


def sum_and_scale(dg: Tensor, h: Tensor, row_scale: Tensor, tokens: int, *, scaled: bool) -> Tensor:
    """Return the sums of dg * h over the tokens of a sample, [samples, r]; with `scaled`, multiply dg by row_scale."""
    native = _extension_for(dg, row_scale) if h.dtype == dg.dtype else None  # e4m3 keeps h in float16
    if native is None:
        sums = _segment_sums(dg, h, len(row_scale), tokens)
        if scaled:
            _scale(dg, row_scale, tokens, dg)
        return sums
    sums = dg.new_zeros(row_scale.shape, dtype=torch.float32)
    _pass(native, dg, h.contiguous(), row_scale, tokens, dg if scaled else None, sums)
    return sums


def _extension_for(rows: Tensor, row_scale: Tensor) -> ModuleType | None:
    wanted = rows.dtype in _NARROW and row_scale.dtype in _NARROW and rows.is_contiguous()
    return extension() if wanted else None


def _pass(
    native: ModuleType,
    values: Tensor,
    others: Tensor | None,
    row_scale: Tensor,
    tokens: int,
    scaled: Tensor | None,
    sums: Tensor | None,
) -> None:
    call = native.svd_linear_cpu_rows_f32 if values.dtype == torch.float32 else native.svd_linear_cpu_rows_bf16
    wide = row_scale.float().contiguous()
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (values, others, wide, scaled, sums)]
    call(*addresses, len(wide), tokens, values.shape[1], torch.get_num_threads(), ISA)


def _blocks(samples: int, tokens: int, rank: int) -> Iterator[tuple[slice, slice]]:
    """Divide [samples, tokens, rank] into blocks of whole samples, or of tokens of one sample if it is long."""
    rows = max(1, _BLOCK // max(rank, 1))
    if tokens and tokens < rows:
        step = rows // tokens
        for first in range(0, samples, step):
            yield slice(first, min(first + step, samples)), slice(0, tokens)
    elif tokens:
        for sample in range(samples):
            for first in range(0, tokens, rows):
                yield slice(sample, sample + 1), slice(first, min(first + rows, tokens))


def _scale(h: Tensor, row_scale: Tensor, tokens: int, out: Tensor) -> None:
    shape = (len(row_scale), tokens, h.shape[-1])
    h, out = h.view(shape), out.view(shape)
    row_scale = row_scale.unsqueeze(1)
    if torch.promote_types(h.dtype, row_scale.dtype) == h.dtype:
        torch.mul(h, row_scale.to(h.dtype), out=out)
    else:
        for sample, token in _blocks(*shape):
            torch.mul(h[sample, token], row_scale[sample], out=out[sample, token])


def _segment_sums(dg: Tensor, h: Tensor, samples: int, tokens: int) -> Tensor:
    shape = (samples, tokens, h.shape[-1])
    dg, h = dg.view(shape), h.view(shape)
    wide = accumulator(dg.dtype)
    sums = torch.zeros(samples, dg.shape[-1], dtype=wide)
    for sample, token in _blocks(*shape):
        product = torch.mul(dg[sample, token].to(wide), h[sample, token])
        sums[sample] += product.sum(1)
    return sums
