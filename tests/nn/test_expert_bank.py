"""ExpertBank: rows by name, files, merging and mixing, what is refused, and training from mixed batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hystar_fast as hf
from hystar_fast.nn.expert_bank import ExpertBank
from hystar_fast.nn.inject import inject, unmerge_
from tests.support.damage import damaged
from tests.support.expert_models import NAMES, inputs, values, with_bank
from tests.support.tolerance import relative_error


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def small(seed: int = 0, rank: int | None = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
    inject(model, "*", rank)
    return model


def test_experts_begin_as_the_model_itself() -> None:
    model, x = small(), torch.randn(2, 6)
    base = model(x)
    bank = ExpertBank(model, ["a", "b"])
    assert bank.names == ("a", "b") and len(bank) == 2 and list(bank) == ["a", "b"]
    assert "a" in bank and "c" not in bank and bank.row("b") == 1
    assert [tuple(p.shape) for p in bank.parameters()] == [(2, 3), (2, 3)]
    assert [name for name, _ in model.named_parameters() if "experts" in name] == [
        "0.delta_s_experts",
        "2.delta_s_experts",
    ]
    with hf.experts(model, ["a", "b"]):
        assert relative_error(model(x), base) < 1e-6
    assert repr(bank) == "ExpertBank('a', 'b'; 2 layers)"


def test_an_expert_is_set_and_read_by_its_name() -> None:
    bank = ExpertBank(small(), ["a", "b"])
    vectors = {"0": torch.tensor([1.0, 2.0, 3.0]), "2": torch.tensor([4.0, 5.0, 6.0])}
    bank["b"] = vectors
    assert {name: vector.tolist() for name, vector in bank["b"].items()} == {"0": [1, 2, 3], "2": [4, 5, 6]}
    assert all(not vector.any() for vector in bank["a"].values())
    bank["b"]["0"].zero_()  # a copy
    assert bank["b"]["0"].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="vectors must be for the layers of the model, got no 2, an unknown 1"):
        bank["b"] = {"0": vectors["0"], "1": vectors["2"]}
    with pytest.raises(ValueError, match=r"vectors must be \[3\] for the layer 2, got shape \[4\]"):
        bank["b"] = {"0": torch.zeros(3), "2": torch.zeros(4)}
    with pytest.raises(TypeError, match="vectors must be floating-point Tensors, got list for the layer 2"):
        bank["b"] = {"0": torch.zeros(3), "2": [0.0] * 3}  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="vectors must be a Tensor for each name of a layer, got Tensor"):
        bank["b"] = torch.zeros(3)  # type: ignore[assignment]
    assert bank["b"]["0"].tolist() == [1, 2, 3], "nothing was written"
    with pytest.raises(ValueError, match="an expert must be one of the bank, a, b, got 'c'"):
        bank["c"]


def test_a_bank_whose_values_are_offloaded_is_neither_read_nor_written(tmp_path: Path) -> None:
    from accelerate import cpu_offload

    model = small()
    bank = ExpertBank(model, ["a"])
    vectors = bank["a"]
    cpu_offload(model, execution_device="cpu")
    uses = (
        lambda: bank["a"],
        lambda: bank.__setitem__("a", vectors),
        lambda: bank.mix({"a": 1.0}),
        lambda: bank.save(tmp_path / "a"),
    )
    for use in uses:
        with pytest.raises(ValueError, match="bank must have values to read or write, got the meta device in 0"):
            use()
    with hf.experts(model, ["a"] * 2), torch.no_grad():
        assert model(torch.randn(2, 6)).shape == (2, 5)


def test_experts_are_mixed_with_weights() -> None:
    bank = ExpertBank(small(), ["a", "b", "ab"])
    bank["a"] = {"0": torch.tensor([1.0, 0.0, 2.0]), "2": torch.tensor([1.0, 1.0, 1.0])}
    bank["b"] = {"0": torch.tensor([0.0, 4.0, 2.0]), "2": torch.tensor([3.0, 0.0, 1.0])}
    bank["ab"] = bank.mix({"a": 0.5, "b": 0.25})
    assert {name: vector.tolist() for name, vector in bank["ab"].items()} == {
        "0": [0.5, 1, 1.5],
        "2": [1.25, 0.5, 0.75],
    }
    with pytest.raises(ValueError, match=r"weights must map names of experts to numbers, got \{\}"):
        bank.mix({})
    for wrong in (float("nan"), float("inf"), "1", None, [1.0]):
        with pytest.raises(ValueError, match=r"weights must be finite numbers, got .* for a"):
            bank.mix({"b": 1.0, "a": wrong})  # type: ignore[dict-item]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_expert_is_merged_and_taken_out_again(kind: str) -> None:
    model, bank = with_bank(kind)
    x = inputs(kind)
    for expert in ("code", {"code": 0.5, "law": 0.5}):
        if isinstance(expert, dict):
            bank["prose"] = bank.mix(expert)
        with hf.experts(model, ["code" if expert == "code" else "prose"] * 4), torch.no_grad():
            truth = values(model(x))
        layers = bank.merge_(expert)
        assert list(layers) == list(bank.layers)
        assert relative_error(values(model(x)), truth) < 1e-12
        with pytest.raises(ValueError, match="model must have one ExpertBank"), hf.experts(model, ["code"]):
            pass
        unmerge_(model, layers)
        with hf.experts(model, ["code" if expert == "code" else "prose"] * 4), torch.no_grad():
            assert relative_error(values(model(x)), truth) < 1e-12


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ("ab", TypeError, "names must be a list of names, got str"),
        (3, TypeError, "names must be a list of names, got int"),
        ([], ValueError, "names must be strings that are not empty, got none"),
        (["a", ""], ValueError, "names must be strings that are not empty, got ''"),
        (["a", 1], ValueError, "names must be strings that are not empty, got 1"),
        (["a", "b", "a"], ValueError, "names must be different, got 'a' twice"),
    ],
)
def test_names_are_checked(names: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ExpertBank(small(), names)


def test_a_model_that_cannot_have_a_bank_is_refused() -> None:
    with pytest.raises(ValueError, match="model must have layers of inject, got Linear, which has none"):
        ExpertBank(nn.Linear(2, 2), ["a"])
    with pytest.raises(ValueError, match="got a FastSVDLinear itself"):
        ExpertBank(hf.FastSVDLinear(2, 2), ["a"])
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got str"):
        ExpertBank("llama", ["a"])  # type: ignore[arg-type]


def test_a_model_has_one_bank_until_it_is_detached() -> None:
    model = small()
    keys = list(model.state_dict())
    bank = ExpertBank(model, ["a", "b"])
    for again in (model, nn.ModuleList([model])):
        with pytest.raises(ValueError, match="model must have no bank yet, got one that has a bank of a, b"):
            ExpertBank(again, ["c"])
    bank.detach()
    assert list(model.state_dict()) == keys and not model._forward_pre_hooks
    with pytest.raises(ValueError, match="bank must be one that its model has, got one that was detached"):
        bank["a"]
    assert ExpertBank(model, ["c"]).names == ("c",)


# Files


def test_experts_are_saved_and_loaded(tmp_path: Path) -> None:
    model, bank = with_bank("llama", dtype=torch.float32)
    bank.save(tmp_path / "all")
    bank.save(tmp_path / "one", ["prose"])
    bank.save(tmp_path / "others", ["code", "law"])
    truth = {name: bank[name] for name in NAMES}
    bank.detach()
    for files, names in ((["all"], NAMES), (["one", "others"], ("prose", "code", "law")), (["one"], ("prose",))):
        again = ExpertBank.load(model, *(tmp_path / file for file in files))
        assert again.names == names
        for name in names:
            assert all(torch.equal(vector, truth[name][layer]) for layer, vector in again[name].items())
        again.detach()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["all", "one", "others"]


def test_a_file_fits_the_same_weights_on_their_way_to_bfloat16(tmp_path: Path) -> None:
    model, bank = with_bank("llama", rank=None, dtype=torch.float32)
    bank.save(tmp_path / "experts")
    bank.detach()
    assert ExpertBank.load(model.bfloat16(), tmp_path / "experts").names == NAMES


def test_a_file_for_other_layers_or_weights_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "experts"
    ExpertBank(small(), ["a"]).save(path)
    cases = [
        (nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)), r"layers of the model, got no 1, an unknown 2"),
        (small(rank=4), "got rank 4 where the file has 3 in 0"),
        (small(seed=1), "got other singular values in 0"),
    ]
    rotated = small()
    rotated[0].u.data = rotated[0].u.data.roll(1, 0)
    cases.append((rotated, "got other singular vectors in 0"))
    offset = small()
    offset[0].delta_s_static.data += 0.1
    cases.append((offset, "got other singular values in 0.*and keep the static offsets"))
    inject(cases[0][0], "*", 3)
    for model, message in cases:
        with pytest.raises(ValueError, match=message):
            ExpertBank.load(model, path)
        assert not [name for name, _ in model.named_parameters() if "experts" in name]
    with pytest.raises(ValueError, match="names must be different, got 'a' twice"):
        ExpertBank.load(small(), path, path)
    with pytest.raises(ValueError, match="paths must name at least one file, got none"):
        ExpertBank.load(small())


def test_a_state_dict_of_other_experts_is_refused(tmp_path: Path) -> None:
    model, other = small(), small()
    bank = ExpertBank(model, ["a", "b"])
    next(bank.parameters()).data.normal_()
    torch.save(model.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    swapped = ExpertBank(other, ["b", "a"])
    with pytest.raises(RuntimeError, match=r"must be of the experts \('b', 'a'\), got those of \('a', 'b'\)"):
        other.load_state_dict(state)
    assert not swapped["a"]["0"].any()
    swapped.detach()
    again = ExpertBank(other, ["a", "b"])
    other.load_state_dict(state)
    assert torch.equal(again["a"]["0"], bank["a"]["0"])


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "experts"
    ExpertBank(small(), ["a"]).save(path)
    model = small()
    for content in damaged(path.read_bytes(), 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="path must be"):
            ExpertBank.load(model, path)
    with pytest.raises(FileNotFoundError, match="which is none"):
        ExpertBank.load(small(), tmp_path / "absent")


# Training


@pytest.mark.parametrize("rank", [3, None])
def test_experts_trained_from_mixed_batches_are_those_trained_apart(rank: int | None) -> None:
    """Every step has one batch with all tasks; apart, each task has its own model and its part of the batch."""
    steps = [(inputs("llama", 6, 5 + step), ["law", "code", "law", None, "code", "code"]) for step in range(4)]

    def losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
        logits = model(ids).logits[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")

    def train(names: list[str | None]) -> ExpertBank:
        model, bank = with_bank("llama", rank, torch.float32)
        optimizer = torch.optim.AdamW(bank.parameters(), lr=1e-2, weight_decay=0.1)
        for ids, rows in steps:
            chosen = [i for i, row in enumerate(rows) if row in names]
            optimizer.zero_grad()
            with hf.experts(model, [rows[i] for i in chosen]):
                losses(model, ids[chosen]).backward()
            optimizer.step()
        return bank

    together = train(["law", "code", None])
    begin = with_bank("llama", rank, torch.float32)[1]
    for name in ("law", "code"):
        apart, first = train([name])[name], begin[name]
        for layer, vector in together[name].items():
            assert relative_error(vector, apart[layer]) < 1e-5
            assert (vector - first[layer]).abs().max() > 1e-2
