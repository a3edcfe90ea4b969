"""Experts in the models of other libraries: each request gets what the model with its expert merged gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hystar_fast as hf
from hystar_fast.nn.inject import inject
from tests.support.expert_models import KINDS, expected, fill, inputs, merged, values, with_bank
from tests.support.tolerance import relative_error

ROWS = ["code", None, "law", "code"]
GENERATING = [kind for kind, entry in KINDS.items() if entry.generates]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("rank", [3, None])
@pytest.mark.parametrize("kind", KINDS)
def test_each_request_gets_its_expert(kind: str, rank: int | None) -> None:
    model, _ = with_bank(kind, rank)
    x = inputs(kind)
    truth = expected(model, x, ROWS)
    with hf.experts(model, ROWS):
        trained = values(model(x))
        with torch.no_grad():
            served = values(model(x))
    assert relative_error(trained, truth) < 1e-12 and relative_error(served, truth) < 1e-12
    with torch.no_grad():
        base = values(model(x))
    assert relative_error(base, expected(model, x, [None] * 4)) < 1e-12, "nothing remains after the context"
    assert (base[0] - served[0]).abs().max() > 1e-3, "the experts matter"


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", GENERATING)
def test_generate_with_padding_a_cache_and_beams(kind: str, beams: int) -> None:
    model, _ = with_bank(kind)
    ids = inputs(kind)
    mask = torch.ones_like(ids)
    ids[1, :2], mask[1, :2] = 0, 0  # left padding
    ids[2, :3], mask[2, :3] = 0, 0
    settings: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": beams}
    with hf.experts(model, ROWS):
        found = model.generate(ids, attention_mask=mask, **settings)
    for i, row in enumerate(ROWS):
        alone = merged(model, row).generate(ids[i : i + 1], attention_mask=mask[i : i + 1], **settings)
        assert found[i].tolist() == alone[0].tolist(), f"request {i} with {row}"
    base = model.generate(ids, attention_mask=mask, **settings)
    assert found.tolist() != base.tolist()


def test_a_model_in_bfloat16_keeps_its_experts_in_float32() -> None:
    model, bank = with_bank("llama", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in bank.parameters()} == {torch.float32}
    x = inputs("llama")
    truth = expected(model.float(), x, ROWS)
    model.bfloat16()
    assert {parameter.dtype for parameter in bank.parameters()} == {torch.float32}
    with hf.experts(model, ROWS), torch.no_grad():
        served = values(model(x))
    assert served.dtype == torch.bfloat16
    assert relative_error(served.float(), truth) < 3e-2


def test_autocast_gives_what_the_model_gives_in_float32_to_its_accuracy() -> None:
    model, _ = with_bank("llama", dtype=torch.float32)
    x = inputs("llama")
    truth = expected(model, x, ROWS)
    with hf.experts(model, ROWS), torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert relative_error(values(model(x)).float(), truth) < 3e-2


def test_few_experts_over_many_tokens_have_a_weight_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from hystar_fast.nn import expert_forward

    built: list[int] = []
    by_weights = expert_forward._by_weights
    monkeypatch.setattr(expert_forward, "_by_weights", lambda *a: (built.append(len(a[2].distinct)), by_weights(*a))[1])
    model, _ = with_bank("llama")
    x = inputs("llama", batch=4, tokens=50)
    for rows in (["law"] * 4, ["law", "code", None, "law"]):
        built.clear()
        with hf.experts(model, rows), torch.no_grad():
            served = values(model(x))
        assert set(built) == {len(set(rows))}
        assert relative_error(served, expected(model, x, rows)) < 1e-12


def test_a_mixture_routed_through_layers_of_its_own_is_refused() -> None:
    model = torch.nn.ModuleDict({"experts": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    inject(model, "*")
    with pytest.raises(ValueError, match=r"the whole batch, got experts\.0, to which a router gives a part"):
        hf.ExpertBank(model, ["a"])


def test_a_mixture_may_have_experts_in_its_shared_layers_alone() -> None:
    torch.manual_seed(0)
    model = KINDS["mixture"].build().eval().requires_grad_(False).double()
    inject(model, "shared_expert.*", 3)
    fill(hf.ExpertBank(model, ["law", "code"]))
    with hf.experts(model, ROWS):
        y = values(model(inputs("mixture")))
    assert relative_error(y, expected(model, inputs("mixture"), ROWS)) < 1e-12


def test_an_encoder_decoder_generates_with_beams() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval().double()
    inject(model, ["q", "k", "v", "o", "wi", "wo"], 3)
    fill(hf.ExpertBank(model, ["law", "code"]))
    ids = inputs("llama")
    settings: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 2}
    with hf.experts(model, ROWS):
        found = model.generate(ids, **settings)
        again = model.generate(ids, **settings)
    assert torch.equal(found, again)
    for i, row in enumerate(ROWS):
        assert found[i].tolist() == merged(model, row).generate(ids[i : i + 1], **settings)[0].tolist()
