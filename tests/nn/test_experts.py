"""The context `experts`: its rows, its scope, and what is refused because it would be silently wrong."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hystar_fast as hf
from hystar_fast.nn.expert_bank import ExpertBank
from hystar_fast.nn.inject import inject
from tests.support.expert_models import Net, X, expected, fill, inputs, merged, net, values, with_bank
from tests.support.tolerance import relative_error


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_rows_are_names_numbers_none_or_a_tensor() -> None:
    model, _ = net()
    truth = expected(model, X, ["b", "a", "a", "b"])
    for rows in (["b", "a", "a", "b"], [1, 0, "a", np.int64(1)], torch.tensor([1, 0, 0, 1]), ("b", 0, 0, 1)):
        with hf.experts(model, rows):
            assert relative_error(model(X), truth) < 1e-12


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (["c"], ValueError, "an expert must be one of the bank, a, b, got 'c'"),
        ([2], ValueError, r"an expert must be a row of the bank, 0\.\.1, got 2"),
        ([-1], ValueError, r"an expert must be a row of the bank, 0\.\.1, got -1"),
        ([True], TypeError, "an expert must be a name, a row of the bank or None, got bool"),
        ([1.0], TypeError, "an expert must be a name, a row of the bank or None, got float"),
        ([torch.tensor(True)], TypeError, "an expert must be a name, a row of the bank or None, got Tensor"),
        ("ab", TypeError, "rows must be a list with one entry a request, got str"),
        ([], ValueError, "rows must have one entry a request, got none"),
        (torch.ones(2), ValueError, r"rows must be an integer Tensor \[B\], got torch.float32 of shape \(2,\)"),
        (torch.zeros(2, 1, dtype=torch.int64), ValueError, "rows must be an integer Tensor"),
    ],
)
def test_rows_that_name_no_expert_are_refused(rows: Any, error: type[Exception], message: str) -> None:
    model, _ = net()
    with pytest.raises(error, match=message), hf.experts(model, rows):
        model(X)


def test_a_model_without_a_bank_or_with_two_is_refused() -> None:
    with pytest.raises(ValueError, match="model must have one ExpertBank, got Linear with 0; make one"):
        with hf.experts(nn.Linear(2, 2), [0]):
            pass
    both = nn.ModuleList([net()[0], net()[0]])
    with pytest.raises(ValueError, match="got ModuleList with 2; call experts for each part"):
        with hf.experts(both, [0]):
            pass
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got str"):
        with hf.experts("llama", [0]):  # type: ignore[arg-type]
            pass


# Batches


def test_a_batch_of_another_size_is_refused_where_it_enters_the_model() -> None:
    model, _ = net()
    for rows in ([0, 1, 0], [0, 1]):  # pictures, or other values, have no beams: 2 rows do not fit 4 samples
        with pytest.raises(ValueError, match=f"as many rows as the batch.*got {len(rows)} rows for a batch of 4"):
            with hf.experts(model, rows):
                model(X)
    llama, _ = with_bank("llama")
    with pytest.raises(ValueError, match="got 3 rows for a batch of 4"), hf.experts(llama, [0, 1, 2]):
        llama(input_ids=inputs("llama"))


def test_tokens_may_be_expanded_in_the_order_of_repeat_interleave() -> None:
    model, _ = with_bank("llama")
    ids = inputs("llama")
    truth = expected(model, ids, ["law", "law", "code", "code"])
    with hf.experts(model, ["law", "code"]), torch.no_grad():
        assert relative_error(values(model(input_ids=ids)), truth) < 1e-12


def test_a_batch_that_trains_must_have_as_many_rows() -> None:
    model, _ = with_bank("llama")
    with pytest.raises(ValueError, match=r"beams \(under no_grad\), got 2 rows for a batch of 4"):
        with hf.experts(model, ["law", "code"]):
            model(input_ids=inputs("llama"))


def test_a_part_may_be_called_after_beams() -> None:
    model, _ = with_bank("llama")
    ids, rows = inputs("llama"), ["law", "code", None, "law"]
    with hf.experts(model, rows):
        model.generate(ids, num_beams=2, max_new_tokens=2, do_sample=False)
        hidden = model.model(input_ids=ids).last_hidden_state
    assert relative_error(model.lm_head(hidden), expected(model, ids, rows)) < 1e-12


def test_a_layer_that_gets_another_order_or_a_part_is_refused() -> None:
    class SequenceFirst(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.transpose(0, 1)).transpose(0, 1)

    class Gathers(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).flatten(0, 1)[:8])

    for kind, shape in ((SequenceFirst, r"\(8, 4, 6\)"), (Gathers, r"\(8, 8\)")):
        model = kind().double()
        inject(model, "*")
        hf.ExpertBank(model, ["a"])
        x = torch.randn(4, 8, 6, dtype=torch.float64)
        with pytest.raises(ValueError, match=f"rows must be those of the batch, got 4 rows .* has shape {shape}"):
            with hf.experts(model, [0] * 4):
                model(x)


def test_tokens_that_a_layer_flattens_keep_their_experts() -> None:
    class Flattens(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).flatten(0, 1)).view(*x.shape[:2], -1)

    model = Flattens().double()
    inject(model, "*", 3)
    fill(hf.ExpertBank(model, ["a", "b"]))
    with hf.experts(model, ["b", None, "a", "a"]):
        assert relative_error(model(X), expected(model, X, ["b", None, "a", "a"])) < 1e-12


def test_a_part_of_a_model_can_be_called() -> None:
    model, _ = net()
    with hf.experts(model, ["a", "b", "b", "a"]):
        y = model.first(X)
    assert relative_error(y, expected_of_first(model, X, ["a", "b", "b", "a"])) < 1e-12


def expected_of_first(model: nn.Module, x: Tensor, rows: list[str]) -> Tensor:
    return torch.cat([merged(model, row).first(x[i : i + 1]) for i, row in enumerate(rows)])


def test_no_output_is_a_view() -> None:
    model, _ = net(None)
    with hf.experts(model, ["a"] * 4):
        assert not model.first(X)._is_view() and not model.first(X[:, 0])._is_view()


def test_an_explicit_offset_stays_as_it_is_and_does_not_mix_with_the_context() -> None:
    model, bank = net()
    bank_values = model.first.delta_s_experts.detach()
    index = torch.tensor([0, 1, 1, 0])
    explicit = model.first(X, bank_values, index=index)
    with hf.experts(model, index):
        assert relative_error(model.first(X), explicit) < 1e-12
        with pytest.raises(ValueError, match="delta_s must be None inside experts"):
            model.first(X, bank_values, index=index)
    assert len(bank) == 2


# Scope


def test_nothing_leaks_after_an_exception() -> None:
    model, _ = net()
    base = model(X)
    with pytest.raises(KeyError), hf.experts(model, [0, 1, 0, 1]):
        raise KeyError
    with pytest.raises(ValueError), hf.experts(model, [0, 1, 0, 1]):
        model(X[:3])
    assert torch.equal(model(X), base)


def test_an_inner_context_replaces_the_outer_one_until_it_ends() -> None:
    model, _ = net()
    with hf.experts(model, ["a"] * 4):
        outer = model(X)
        with hf.experts(model, ["b"] * 4):
            inner = model(X)
        assert torch.equal(model(X), outer)
    assert relative_error(inner, expected(model, X, ["b"] * 4)) < 1e-12


def test_generators_whose_contexts_overlap_are_refused() -> None:
    model, _ = net()

    def stream(name: str) -> Any:
        with hf.experts(model, [name] * 4):
            for _ in range(2):
                yield model(X)

    one, other = stream("a"), stream("b")
    next(one), next(other), next(one)
    with pytest.raises(RuntimeError, match="experts must end in the reverse order of their beginning, got another"):
        next(one)


def test_the_contexts_of_two_models_stand_side_by_side() -> None:
    one, other = net()[0], net(None)[0]
    with hf.experts(one, ["a"] * 4), hf.experts(other, ["b"] * 4):
        assert relative_error(one(X), expected(one, X, ["a"] * 4)) < 1e-12
        assert relative_error(other(X), expected(other, X, ["b"] * 4)) < 1e-12


def test_threads_that_share_a_model_have_their_own_experts() -> None:
    model, _ = net()
    truth = {name: expected(model, X, [name] * 4) for name in ("a", "b", None)}
    barrier = threading.Barrier(3)

    def serve(name: str | None) -> float:
        error = 0.0
        for _ in range(20):
            with hf.experts(model, [name] * 4), torch.no_grad():
                barrier.wait()
                error = max(error, (model(X) - truth[name]).abs().max().item())
        return error

    with ThreadPoolExecutor(3) as pool:
        assert max(pool.map(serve, truth)) < 1e-12


def test_tasks_of_one_thread_have_their_own_experts() -> None:
    model, _ = net()
    truth = {name: expected(model, X, [name] * 4) for name in ("a", "b")}

    async def serve(name: str) -> float:
        with hf.experts(model, [name] * 4):
            await asyncio.sleep(0.01)
            return (model(X) - truth[name]).abs().max().item()

    async def both() -> list[float]:
        return await asyncio.gather(serve("a"), serve("b"))

    assert max(asyncio.run(both())) < 1e-12


def test_a_new_thread_has_no_experts_and_the_context_says_so() -> None:
    model, _ = net()
    found: list[Tensor] = []

    def run(start: Any) -> None:
        thread = threading.Thread(target=start, args=(lambda: found.append(model(X)),))
        thread.start()
        thread.join()

    with pytest.raises(RuntimeError, match="the body of experts must call layers of the bank, got no call in Net"):
        with hf.experts(model, ["a"] * 4):
            run(lambda call: call())
    with hf.experts(model, ["a"] * 4):
        run(contextvars.copy_context().run)
    assert relative_error(found[1], expected(model, X, ["a"] * 4)) < 1e-12


# Copies


def test_a_deep_copy_has_its_own_bank() -> None:
    model, bank = net()
    other = copy.deepcopy(model)
    ExpertBank.of(other)["a"] = {name: torch.zeros(3) for name in ("first", "second")}
    with hf.experts(other, ["a"] * 4):
        assert relative_error(other(X), expected(model, X, [None] * 4)) < 1e-12
        unchanged = model(X)
    assert relative_error(unchanged, expected(model, X, [None] * 4)) < 1e-12
    assert bank["a"]["first"].abs().max() > 0


def test_a_pickled_model_keeps_its_bank() -> None:
    model, _ = net()
    again = pickle.loads(pickle.dumps(model))
    with hf.experts(again, ["b"] * 4):
        assert relative_error(again(X), expected(model, X, ["b"] * 4)) < 1e-12
        with pytest.raises(ValueError, match="rows for a batch of 3"):
            again(X[:3])
