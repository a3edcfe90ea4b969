"""The cost model of a layer with experts: closed forms, crossovers, and the products that run."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hystar_fast as hf
from hystar_fast.nn.expert_bank import ExpertBank
from hystar_fast.nn.expert_cost import BALANCE, correction_cost, weights_are_cheaper, weights_cost
from hystar_fast.nn.inject import inject


def test_a_decoding_step_adds_the_share_of_the_factors() -> None:
    plain = correction_cost(16, 0, 1024, 1024, balance=16)
    assert correction_cost(1, 128, 1024, 1024, balance=16) / plain == 1 + 128 * 2048 / 1024**2
    for experts in (1, 4, 16):
        assert not weights_are_cheaper(16, experts, 128, 1024, 2816)


@pytest.mark.parametrize("experts", [1, 3, 16])
def test_weights_are_built_above_the_crossover(experts: int) -> None:
    rank, width = 128, 1024
    crossover = experts * width * rank * width // (rank * 2 * width)  # N / K = O r I / (r (I + O)) = 512
    assert not weights_are_cheaper(crossover, experts, rank, width, width)
    assert weights_are_cheaper(crossover + 1, experts, rank, width, width)


def test_many_experts_with_few_tokens_each_read_a_weight_each() -> None:
    assert weights_cost(8, 8, 1, 10, 10, balance=16) == 8 * 100 + 100 * 8 * 16


@pytest.mark.parametrize(("tokens", "experts"), [(4, 1), (4, 3), (300, 1), (300, 3)])
def test_the_products_that_run_are_those_of_the_cheaper_path(tokens: int, experts: int) -> None:
    torch.manual_seed(0)
    rank, inner, outer = 8, 96, 64
    model = nn.Sequential(nn.Linear(inner, outer))
    inject(model, "*", rank)
    ExpertBank(model, ["a", "b", "c"])
    rows = [i % experts for i in range(6)]
    count = 6 * tokens
    with hf.experts(model, rows), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(6, tokens, inner))
    assert count > BALANCE["cpu"]
    paths = [
        f(count, *a, balance=1)
        for f, a in ((correction_cost, ()), (weights_cost, (experts,)))
        for a in [(*a, rank, inner, outer)]
    ]
    assert counter.get_total_flops() == 2 * min(paths)
    assert (paths[1] < paths[0]) == (tokens == 300)
