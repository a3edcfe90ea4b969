"""Experts under gradient checkpointing, in graphs and under transforms: the same values, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hystar_fast as hf
from hystar_fast.nn.expert_bank import ExpertBank
from hystar_fast.nn.inject import inject
from tests.support.expert_models import Net, X, expected, fill, inputs, net, with_bank
from tests.support.tolerance import relative_error


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


# Gradient checkpointing


def gradients(model: Net, bank: ExpertBank, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [*bank.parameters()]))


def test_checkpointing_inside_the_context_gives_the_gradients_of_the_plain_run() -> None:
    plain, bank = net()
    with hf.experts(plain, ["a", "b", "b", None]):
        truth = gradients(plain, bank, plain(X).square().sum())
    model, bank = net(use_reentrant=False)
    with hf.experts(model, ["a", "b", "b", None]):
        found = gradients(model, bank, model(X).square().sum())
    assert max(relative_error(f, t) for f, t in zip(found, truth, strict=True)) < 1e-12


def test_checkpointing_that_recomputes_outside_the_context_is_refused() -> None:
    model, bank = net(use_reentrant=False)
    with hf.experts(model, ["a", "b", "b", "a"]):
        loss = model(X).square().sum()
    with pytest.raises(RuntimeError, match="inside the `with experts` of its forward, got a recomputation"):
        gradients(model, bank, loss)


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointing_that_recomputes_under_other_rows_is_refused(frozen: bool) -> None:
    model, bank = net(use_reentrant=False)
    x = X.clone().requires_grad_(frozen)
    for parameter in bank.parameters():
        parameter.requires_grad_(not frozen)
    with hf.experts(model, ["a", "b", "b", "a"]):
        loss = model(x).square().sum()
    with hf.experts(model, ["a", "a", "b", "a"]):
        other = model(x).square().sum()
        with pytest.raises(RuntimeError, match="of its forward, got the rows of another one"):
            (loss + other).backward()


@pytest.mark.parametrize("forward_has_rows", [True, False])
def test_checkpointing_of_frozen_experts_under_other_rows_is_refused(forward_has_rows: bool) -> None:
    """Nothing before the norm has a gradient; that of the norm would be computed from other outputs of the experts."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.block, x, use_reentrant=False)

    model = Frozen().double().requires_grad_(False)
    inject(model, "0", 3)
    fill(hf.ExpertBank(model, ["a", "b"]))
    model.requires_grad_(False)
    model.block[1].requires_grad_(True)
    with hf.experts(model, ["a"] * 4):
        model(X).square().sum().backward()
        loss = model(X).square().sum()
    if not forward_has_rows:
        loss = model(X).square().sum()
    with hf.experts(model, ["b"] * 4):
        model(X)
        with pytest.raises(RuntimeError, match="the rows of another one" if forward_has_rows else "checkpoint"):
            loss.backward()


def test_reentrant_checkpointing_is_refused() -> None:
    model, _ = net(use_reentrant=True)
    x = X.clone().requires_grad_()
    with hf.experts(model, ["a", "b", "b", "a"]):
        loss = model(x).square().sum()
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            loss.backward()


def test_gradient_checkpointing_of_transformers() -> None:
    rows = ["code", None, "law", "code"]
    found = []
    for checkpointing in (False, True):
        model, bank = with_bank("llama")
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        ids = inputs("llama")
        with hf.experts(model, rows):
            found.append(torch.autograd.grad(model(ids, labels=ids).loss, [*bank.parameters()]))
            loss = model(ids, labels=ids).loss
    assert max(relative_error(a, b) for a, b in zip(*found, strict=True)) < 1e-12
    with pytest.raises(RuntimeError, match="inside the `with experts` of its forward"):
        loss.backward()


# Graphs


@pytest.mark.parametrize("before", ["plain", "bank"])
def test_a_compiled_model_sees_a_bank_and_a_context_that_come_later(before: str) -> None:
    model = Net().double()
    inject(model, "*", 3)
    compiled = torch.compile(model, backend="eager")
    base = compiled(X) if before == "plain" else model(X)
    fill(hf.ExpertBank(model, ["a", "b"]))
    if before == "bank":
        assert relative_error(compiled(X), base) < 1e-12
    for rows in (["a", "b", "b", "a"], ["b", "b", None, "a"]):
        with hf.experts(compiled, rows):
            assert relative_error(compiled(X), expected(model, X, rows)) < 1e-12
    assert relative_error(compiled(X), base) < 1e-12
    torch.compiler.reset()


def test_a_whole_graph_is_refused() -> None:
    model, _ = net()
    with pytest.raises(Exception, match=r"hf\.experts is read in every call"), hf.experts(model, [0] * 4):
        torch.compile(model, backend="eager", fullgraph=True)(X)
    torch.compiler.reset()


def test_traced_and_exported_graphs_are_refused() -> None:
    model, _ = net()
    model.requires_grad_(False)
    traced = torch.jit.trace(model, X)
    exported = torch.export.export(model, (X,)).module()
    for graph in (traced, exported):
        with pytest.raises(RuntimeError, match="got no call in Net"), hf.experts(model, [0] * 4):
            graph(X)
    with pytest.raises(Exception, match="experts must not be traced, exported or captured"):
        with hf.experts(model, [0] * 4):
            torch.jit.trace(model, X)
    with pytest.raises(Exception, match="experts must not be traced, exported or captured"):
        with hf.experts(model, [0] * 4):
            torch.export.export(model, (X,))


def test_the_transforms_of_torch_func_give_the_gradients_of_autograd() -> None:
    model, bank = net()
    rows = ["a", "b", "b", None]
    with hf.experts(model, rows):
        truth = gradients(model, bank, model(X).square().sum())
        parameters = {n: p for n, p in model.named_parameters() if n.endswith("delta_s_experts")}

        def loss(values: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(model, values, (X,)).square().sum()

        found = torch.func.grad(loss)(parameters)
    assert max(relative_error(found[n], t) for n, t in zip(parameters, truth, strict=True)) < 1e-12


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_that_reads_a_weight_instead_of_calling_the_layer_is_refused(compiled: bool) -> None:
    class Reads(Net):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.first(x.to(self.second.weight.dtype)), self.second.weight)

    model = Reads().double()
    inject(model, "*", 3)
    base = model(X)
    fill(hf.ExpertBank(model, ["a", "b"]))
    call: Any = torch.compile(model, backend="eager") if compiled else model
    assert relative_error(call(X), base) < 1e-12
    with pytest.raises(RuntimeError, match="got a model that reads the weight"), hf.experts(model, ["a"] * 4):
        call(X)
    assert relative_error(call(X), base) < 1e-12
    torch.compiler.reset()
