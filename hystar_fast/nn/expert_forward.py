"""What a model with a bank calls, inside and outside `experts`: the forward of its layers, and the hook of its input.

Both read the context in every call, so torch.compile leaves them out of its graphs. To mark them loads the compiler:
this module is imported with the first bank, and not with the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hystar_fast.nn.expert_cost import weights_are_cheaper
from hystar_fast.nn.expert_rows import (
    ActiveRows,
    active_rows,
    bound_to_rows,
    check_outside_experts,
    see_input,
    with_gradient,
)
from hystar_fast.ops.transforms import is_transformed

if TYPE_CHECKING:
    from hystar_fast.nn.fast_svd_linear import FastSVDLinear


_REASON = "hf.experts is read in every call: give the layers delta_s and index for a whole graph"


@torch.compiler.disable(reason=_REASON)
def see_input_outside_graphs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Note the size of the batch that enters a model with a bank. A forward pre-hook of that model."""
    see_input(model, args, kwargs)


@torch.compiler.disable(reason=_REASON)
def forward_with_experts(layer: FastSVDLinear, x: Tensor, delta_s: Tensor | None) -> Tensor | None:
    """Return the layer's output with the expert of each request, or None where no `experts` holds for its model."""
    active = active_rows(layer, x)
    if active is None:
        return None
    if delta_s is not None:
        raise ValueError("delta_s must be None inside experts, as a layer takes its offsets from one of them, got both")
    samples = active.by_sample(x)
    y = with_gradient(_forward(layer, samples, active), active)
    # another tensor on the memory of the product: no module returns a view
    return y if y.shape[:-1] == x.shape[:-1] else torch.ops.aten._unsafe_view.default(y, [*x.shape[:-1], y.shape[-1]])


@torch.compiler.disable(reason=_REASON)
def weight_outside_experts(layer: FastSVDLinear) -> Tensor:
    """Return the weight of a layer of a bank, whose values raise inside `experts`."""

    def materialise() -> Tensor:
        check_outside_experts(layer)
        return layer._materialise()

    return layer._read_only_weight(materialise)


def _forward(layer: FastSVDLinear, x: Tensor, active: ActiveRows) -> Tensor:
    bank = layer.delta_s_experts
    assert bank is not None
    weight = layer.base_weight
    trained = (x, bank, layer.delta_s_static, *(() if layer.bias is None else (layer.bias,)))
    has_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in trained)
    is_plain = not (has_gradient or is_transformed(*trained) or torch.is_autocast_enabled(x.device.type))
    if is_plain and layer.precision is None:
        rows, shape = x.shape[0] * x.shape[1], (layer.rank, layer.in_features, layer.out_features)
        if weight is None:  # a row of the bank for each expert, so that svd_linear may build a weight for each
            offsets = active.offsets(bank, active.distinct)
            places = {row: place for place, row in enumerate(active.distinct)}
            return layer.modulated(x, offsets, torch.tensor([places[row] for row in active.rows], device=x.device))
        if weights_are_cheaper(rows, len(active.distinct), *shape, x.device.type):
            return _by_weights(layer, x, active, weight, bank)
        if x.device.type == "cpu" and x.dtype != torch.float16:
            return _corrected(layer, x, layer.delta_s_static + active.offsets(bank), weight)
    return layer.modulated(bound_to_rows(x, active), bound_to_rows(active.offsets(bank), active))


def _corrected(layer: FastSVDLinear, x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """Add the correction into the plain product, which saves a pass over it and its copy."""
    y = F.linear(x, weight, layer.bias)
    h = F.linear(x, layer.vh)
    g = h.mul_(scale[:, None]) if scale.dtype == h.dtype else (h * scale[:, None]).to(h.dtype)
    rows = y.view(-1, y.shape[-1])
    torch.addmm(rows, g.view(-1, g.shape[-1]), layer.u.t(), out=rows)
    return y


def _by_weights(layer: FastSVDLinear, x: Tensor, active: ActiveRows, weight: Tensor, bank: Tensor) -> Tensor:
    """Build W + u diag(delta) vh for each expert of the batch, and multiply its requests by it."""
    offsets = layer.delta_s_static + active.offsets(bank, active.distinct)
    y = x.new_empty(*x.shape[:-1], layer.out_features)
    for expert, offset in zip(active.distinct, offsets, strict=True):
        own = torch.addmm(weight, (layer.u * offset).to(weight.dtype), layer.vh)
        if len(offsets) == 1:
            return F.linear(x, own, layer.bias)
        samples = torch.tensor([place for place, row in enumerate(active.rows) if row == expert], device=x.device)
        y[samples] = F.linear(x[samples], own, layer.bias)
    return y
