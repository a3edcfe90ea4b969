"""Rows of length one for the streamed losses: float32 and wider as they are, half types by their inverse lengths.

A unit row is not exact in a half type. So float16 and bfloat16 rows keep their values, multiplied by a power of two
(which in float16 rounds values below 2^-14 of the largest, and nothing else), and products are divided by the lengths
in float32. On a GPU they run on the tensor cores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hystar_fast.ops.style_nce.torch import loss_dtype, unit_rows

_HALF = (torch.float16, torch.bfloat16)
_CHUNK = 1 << 12  # rows that are converted together
_RAISED = 4096.0  # float16 products of a softmax are raised by this: its entries are at most 1, and many are near 1/N


@dataclass(frozen=True)
class Units:
    """Rows [n, D] whose unit rows are ``values * inverse``; None stands for ones."""

    values: Tensor
    inverse: Tensor | None

    def part(self, part: slice) -> Units:
        """Return some of the rows."""
        return Units(self.values[part], None if self.inverse is None else self.inverse[part])

    def scaled(self, factor: Tensor) -> Units:
        """Return the rows multiplied by one factor each, [n], at most 1 in magnitude for a half type."""
        if self.inverse is None:
            return Units(self.values * factor[:, None], None)
        return Units(self.values, self.inverse * factor)

    def wide(self) -> Tensor:
        """Return the unit rows in float32 or wider."""
        return self.values if self.inverse is None else self.values.float().mul_(self.inverse[:, None])


def keeps_half(query: Tensor, target: Tensor) -> bool:
    """Return whether both inputs keep their half type."""
    return query.dtype == target.dtype and query.dtype in _HALF


def units_of(query: Tensor, target: Tensor) -> tuple[Units, Units, Tensor, Tensor]:
    """Return the units of both inputs, their lengths [2, N], and which samples are finite in both [N]."""
    dtype = loss_dtype(query, target)
    half = keeps_half(query, target)
    found = [_halved(x) if half else _full(x.to(dtype)) for x in (query, target)]
    (q, q_length, q_finite), (t, t_length, t_finite) = found
    return q, t, torch.stack([q_length, t_length]), q_finite & t_finite


def _halved(x: Tensor) -> tuple[Units, Tensor, Tensor]:
    """Return the units of rows of a half type, the lengths of the rows, and whether they are finite.

    A row that is zero or not finite becomes zero, with length inf.
    """
    values, (inverse, length) = torch.empty_like(x), torch.empty(2, len(x), device=x.device)
    finite = torch.empty(len(x), dtype=torch.bool, device=x.device)
    for start in range(0, len(x), _CHUNK):
        part = slice(start, start + _CHUNK)
        row = x[part].float()
        peak = row.abs().amax(1, keepdim=True)
        usable = (peak < math.inf) & (peak > 0)
        exponent = torch.frexp(torch.where(usable, peak, 1.0)).exponent
        row = torch.where(usable, torch.ldexp(row, -exponent), 0.0)
        norm = torch.linalg.vector_norm(row, dim=1).masked_fill_(~usable.squeeze(1), math.inf)
        values[part], inverse[part], length[part] = row, 1 / norm, torch.ldexp(norm, exponent.squeeze(1))
        finite[part] = (peak < math.inf).squeeze(1)
    return Units(values, inverse), length, finite


def _full(x: Tensor) -> tuple[Units, Tensor, Tensor]:
    """Return the units of rows in float32 or float64, the lengths of the rows, and whether they are finite."""
    y, length, finite = unit_rows(x)
    return Units(y, None), length.squeeze(1), finite.squeeze(1)


def saved(q: Units, t: Units, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return units [2, N, D] and lengths to keep for the backward: [2, N], or [4, N] with the inverses."""
    kept = [lengths] if q.inverse is None or t.inverse is None else [lengths, torch.stack([q.inverse, t.inverse])]
    return torch.stack([q.values, t.values]), torch.cat(kept)


def restored(units: Tensor, lengths: Tensor) -> tuple[Units, Units, Tensor]:
    """Return what `saved` was given."""
    q, t = units.unbind()
    if len(lengths) == 2:
        return Units(q, None), Units(t, None), lengths
    return Units(q, lengths[2]), Units(t, lengths[3]), lengths[:2]


def cosines(q: Units, t: Units) -> Tensor:
    """Return the products of all unit rows of q and t."""
    if q.inverse is None or t.inverse is None:
        return q.values @ t.values.mT
    return _product(q.values, t.values.mT).mul_(q.inverse[:, None]).mul_(t.inverse)


def combine(weights: Tensor, units: Units) -> Tensor:
    """Return weights [n, m] @ unit rows [m, D]; weights of a half type's rows are at most 1 in magnitude.

    The weights of a row of slope add up to 0, so rows that are nearly equal cancel, and rounding the weights once would
    leave more than the rest. They are therefore the sum of two numbers of the half type.
    """
    if units.inverse is None:
        return weights @ units.values
    raised = _RAISED if units.values.dtype == torch.float16 else 1.0
    exact = weights * (units.inverse * raised)
    high = exact.to(units.values.dtype)
    low = exact.sub_(high).to(units.values.dtype)
    return _product(high, units.values).add_(_product(low, units.values)).div_(raised)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b of half types in float32, summed in float32."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()
