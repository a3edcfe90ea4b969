"""A saved injected model loads into a plain one, whole or by its offsets alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

import hystar_fast as hf

SIZES: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
EXPERTS = {"num_key_value_heads": 2, "num_local_experts": 3}
TOKENS = torch.randint(30, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def trained(model: nn.Module, targets: Any, **options: Any) -> list[str]:
    names = hf.inject(model, targets, **options)
    for name in names:
        nn.init.normal_(model.get_submodule(name).delta_s_static, std=0.1)
    return names


def gpt2() -> Any:  # its head is tied to the embedding
    config = transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=8, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config).eval()


def mixtral() -> Any:
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, **EXPERTS)).eval()


def bert() -> Any:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)).eval()


CASES = [(gpt2, "c_*"), (mixtral, "self_attn.*"), (bert, ["query", "*.dense"])]


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize(("build", "targets"), CASES)
@pytest.mark.parametrize("options", [{}, {"rank": 5}, {"rank": 5, "keep_remainder": False}])
def test_a_model_of_transformers_reloads_from_what_it_has_saved(
    build: Any, targets: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    model = build()
    names = trained(model, targets, **options)
    model.save_pretrained(tmp_path / "run", save_original_format=False, max_shard_size="8kB")
    assert len(list((tmp_path / "run").glob("*.safetensors"))) > 1
    again = type(model)(type(model).config_class.from_pretrained(tmp_path / "run")).eval()
    assert hf.load_injected(again, tmp_path / "run", cache_dir=tmp_path / "unused") == names
    assert not (tmp_path / "unused").exists()
    assert torch.equal(logits(again), logits(model))
    drawn = type(model).from_pretrained(tmp_path / "run")  # it does not know the layers, and draws their weights
    assert not torch.equal(logits(drawn), logits(model))
    assert hf.load_injected(drawn, tmp_path / "run", cache_dir=tmp_path / "unused") == names
    assert torch.equal(logits(drawn), logits(model))
    assert {name for name, p in again.named_parameters() if not p.requires_grad} == {
        name for name, p in model.named_parameters() if not p.requires_grad
    }


@pytest.mark.parametrize(("build", "targets"), CASES)
@pytest.mark.parametrize("options", [{}, {"rank": 5}, {"rank": 5, "keep_remainder": False}])
def test_offsets_alone_reload_onto_the_original_weights(
    build: Any, targets: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    model = build()
    plain = copy.deepcopy(model)
    names, path = trained(model, targets, **options), tmp_path / "offsets.safetensors"
    save_file({name: p for name, p in model.named_parameters() if name.endswith("delta_s_static")}, path)
    assert hf.load_injected(plain, path, keep_remainder=options.get("keep_remainder", True)) == names
    assert torch.equal(logits(plain), logits(model))


def test_a_model_on_the_meta_device_and_in_another_dtype_loads(tmp_path: Path) -> None:
    model, path = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), tmp_path / "model.safetensors"
    trained(model, "*")
    save_model(model, str(path))
    half = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).bfloat16()
    hf.load_injected(half, path)
    assert half[0].u.dtype == torch.bfloat16 and half[0].delta_s_static.dtype == torch.float32
    assert torch.equal(half[1].delta_s_static, model[1].delta_s_static)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (None, FileNotFoundError, "absent"),
        (b"no tensors", ValueError, r"must be a whole safetensors file, got .*file\.safetensors"),
        (
            {"0.weight": (8, 4)},
            ValueError,
            r"must hold layers of inject, named \*\.delta_s_static, got .*which has none",
        ),
        ({"7.delta_s_static": (4,)}, ValueError, "which has no 7"),
        ({"0.delta_s_static": (4,), "head.weight": (3,)}, ValueError, r"an unknown head\.weight"),
        ({"0.delta_s_static": (9,)}, ValueError, r"rank must lie in 1\.\.4 .* got 9"),
        ({"0.delta_s_static": (4,), "0.u": (8, 4)}, ValueError, r"with no 0\.s, no 0\.vh, no 0\.bias, no 1\.weight"),
        ({"0.delta_s_static": (4,), "0.u": (8, 3)}, ValueError, "must have the shapes of .* size mismatch for 0.u"),
    ],
)
def test_files_that_do_not_fit_are_refused(state: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    path = tmp_path / ("absent" if state is None else "file.safetensors")
    if isinstance(state, bytes):
        path.write_bytes(state)
    elif state is not None:
        save_file({name: torch.zeros(shape) for name, shape in state.items()}, path)
    with pytest.raises(error, match=message):
        hf.load_injected(net(), path)


def test_renamed_tensors_are_refused_with_the_way_to_save_them(tmp_path: Path) -> None:
    model = mixtral()
    trained(model, "self_attn.*")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"experts\.gate_up_proj.*save_pretrained\(\.\.\., save_original_format=False"):
        hf.load_injected(mixtral(), tmp_path)


def test_a_model_saved_with_its_experts_is_refused_before_anything_changes(tmp_path: Path) -> None:
    model, again = gpt2(), gpt2()
    trained(model, "c_attn")
    bank = hf.ExpertBank(model, ["law"])
    model.save_pretrained(tmp_path / "with")
    with pytest.raises(ValueError, match=r"without an ExpertBank.*bank\.save.*bank\.detach.*ExpertBank\.load"):
        hf.load_injected(again, tmp_path / "with")
    assert not any(isinstance(layer, hf.FastSVDLinear) for layer in again.modules())
    bank.save(tmp_path / "experts.safetensors")
    bank.detach()
    model.save_pretrained(tmp_path / "without")
    hf.load_injected(again, tmp_path / "without")
    assert hf.ExpertBank.load(again, tmp_path / "experts.safetensors").names == ("law",)
