"""Tensors that are no dense array on one device: each op refuses them by name, with the way out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import hystar_fast as hf


class DTensor(torch.Tensor):
    """Known by its name, as torch's own."""


ROWS = torch.randn(3, 4)
KINDS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "nested": (lambda: torch.nested.nested_tensor([ROWS, ROWS[:2]]), r"a nested tensor; .*\.to_padded_tensor"),
    "jagged": (
        lambda: torch.nested.nested_tensor([ROWS, ROWS[:2]], layout=torch.jagged),
        r"a nested tensor; .*\.to_padded_tensor",
    ),
    "sparse": (ROWS.to_sparse, r"one of layout torch\.sparse_coo; give .*\.to_dense\(\)"),
    "sharded": (lambda: ROWS.as_subclass(DTensor), r"a DTensor; give .*\.to_local\(\)"),
}
OPS: dict[str, Callable[[Tensor], object]] = {
    "x": lambda x: hf.FastSVDLinear(4, 6)(x),
    "cost": lambda cost: hf.sinkhorn(cost, 0.1),
    "query": lambda query: hf.style_nce(query, ROWS),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, that nested and sparse tensors may change
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPS)
def test_other_kinds_of_tensors_are_refused_by_name(name: str, kind: str) -> None:
    build, reason = KINDS[kind]
    with pytest.raises(TypeError, match=f"{name} must be a dense tensor, got {reason}"):
        OPS[name](build())
