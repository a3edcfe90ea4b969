"""Types of the public names as a type checker infers them: mypy checks this file (pyproject.toml), no test runs it."""

from __future__ import annotations

from typing import assert_type

from torch import Tensor, nn

import hystar_fast as hf
from hystar_fast import FastSVDLinear, Hypernetwork, HystarConfig, StyleNCELoss, inject, sinkhorn, style_nce, svd_linear


def ops(x: Tensor, u: Tensor, scale: Tensor, vh: Tensor) -> None:
    assert_type(svd_linear(x, u, scale, vh), Tensor)
    assert_type(hf.svd_linear(x, u, scale, vh, None, index=None), Tensor)
    assert_type(sinkhorn(x, 0.1), Tensor)
    assert_type(sinkhorn(x, 0.1, return_info=True)[0], Tensor)
    assert_type(style_nce(x, u), Tensor)
    assert_type(hf.perturbed_topk(x, 3, sigma=0.1, samples=100), Tensor)
    assert_type(hf.ref.svd_linear(x, u, scale, vh), Tensor)
    assert_type(hf.info(), list[dict[str, str]])


def modules(linear: nn.Linear) -> None:
    layer = FastSVDLinear.from_linear(linear)
    assert_type(layer, FastSVDLinear)
    assert_type(layer.merge(), nn.Linear)
    assert_type(layer.delta_s_static, nn.Parameter)
    assert_type(inject(nn.Sequential(linear), ["0"]), list[str])
    bank = hf.ExpertBank(linear, ["a"])
    assert_type(bank, hf.ExpertBank)
    assert_type(bank["a"], dict[str, Tensor])
    with hf.experts(linear, ["a", 0, None]):
        assert_type(bank.mix({"a": 0.5}), dict[str, Tensor])
    assert_type(StyleNCELoss(), StyleNCELoss)
    assert_type(Hypernetwork(768, 64), Hypernetwork)
    assert_type(hf.Hystar(HystarConfig(backbone="tiny")), hf.Hystar)
