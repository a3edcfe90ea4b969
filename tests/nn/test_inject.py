"""Injection into the models of other libraries, the forms of targets, and rejected layers."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from hystar_fast.nn.attention import SVDAttention
from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from hystar_fast.nn.inject import inject, merge_, unmerge_
from tests.support.tolerance import relative_error


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.fc1, self.fc2 = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.fc1(self.norm(x)).relu())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


FC1, FC2 = ["blocks.0.fc1", "blocks.1.fc1"], ["blocks.0.fc2", "blocks.1.fc2"]
FC = ["blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2"]


# Models of other libraries


def bert() -> tuple[nn.Module, Any, Callable[[Any], Tensor]]:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertModel(config), torch.randint(50, (4, 9)), lambda output: output.last_hidden_state


def vit() -> tuple[nn.Module, Any, Callable[[Any], Tensor]]:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, embed_dim=48, num_heads=4, num_classes=5)
    return model, torch.randn(4, 3, 32, 32), lambda output: output


def gpt2() -> tuple[nn.Module, Any, Callable[[Any], Tensor]]:
    config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16, eos_token_id=0)
    return transformers.GPT2Model(config).eval(), torch.randint(50, (4, 9)), lambda output: output.last_hidden_state


@pytest.mark.parametrize(
    ("build", "targets", "count"),
    [
        (bert, ["query", "key", "value", "encoder.*.dense"], 12),
        (vit, ["attn.qkv", "mlp.fc?"], 6),
        (vit, "*", 9),
        (gpt2, ["c_attn", "c_proj", "c_fc"], 8),
    ],
)
@pytest.mark.parametrize("rank", [None, 8])
def test_a_model_of_another_library_trains_merges_and_unmerges(
    build: Callable[[], tuple[nn.Module, Any, Callable[[Any], Tensor]]], targets: Any, count: int, rank: int | None
) -> None:
    model, inputs, out = build()
    if rank and targets == "*":
        rank = 5  # the head has five outputs
    model.requires_grad_(False).eval()
    plain, keys = copy.deepcopy(model), set(model.state_dict())
    names = inject(model, targets, rank)
    assert len(names) == count
    assert all(isinstance(model.get_submodule(name), FastSVDLinear) for name in names)
    assert relative_error(out(model(inputs)), out(plain(inputs))) < 1e-5

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == count
    target = out(plain(inputs)) + 0.3 * torch.randn_like(out(plain(inputs)))
    optimiser = torch.optim.Adam(trained, lr=1e-2)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        losses.append(F.mse_loss(out(model(inputs)), target))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0]
    assert all(parameter.any() for parameter in trained)

    y = out(model(inputs))
    layers = merge_(model)
    assert list(layers) == names
    assert set(model.state_dict()) == keys
    plain.load_state_dict(model.state_dict())
    assert relative_error(out(model(inputs)), y) < 1e-5
    assert relative_error(out(plain(inputs)), y) < 1e-5
    unmerge_(model, layers)
    assert torch.equal(out(model(inputs)), y)


def test_conv1d_keeps_its_transposed_form() -> None:
    """Also where the weight is square, and a wrong orientation would fit."""
    model, tokens, out = gpt2()
    original, before = copy.deepcopy(model.state_dict()), out(model(tokens))
    square = copy.deepcopy(model.h[0].attn.c_proj)
    assert len(inject(model, lambda name, layer: type(layer).__name__ == "Conv1D")) == 8
    layer = model.h[0].attn.c_proj
    assert relative_error(layer.weight, square.weight) < 1e-5
    assert model.h[0].mlp.c_fc.weight.shape == (32, 128)
    nn.init.normal_(layer.delta_s_static)
    x = torch.randn(2, 3, 32)
    assert relative_error(x @ layer.weight + layer.bias, layer(x)) < 1e-5
    torch.nn.functional.linear(x, layer.weight.mT).sum().backward()
    assert layer.delta_s_static.grad.any()
    model.load_state_dict(original)
    assert relative_error(out(model(tokens)), before) < 1e-5
    merge_(model)
    assert all(torch.allclose(value, original[name], atol=1e-5) for name, value in model.state_dict().items())
    assert type(model.h[0].attn.c_proj) is type(square) and repr(model.h[0].attn.c_proj) == repr(square)


def test_an_injected_model_loads_its_own_and_the_original_checkpoint() -> None:
    model, x = Net().double(), torch.randn(4, 6, dtype=torch.float64)
    original, y = copy.deepcopy(model.state_dict()), model(x)
    inject(model, "fc?")
    with torch.no_grad():
        model.blocks[0].fc1.delta_s_static.normal_()
    state, moved = copy.deepcopy(model.state_dict()), model(x)
    model.load_state_dict(original)
    assert relative_error(model(x), y) < 1e-12
    model.load_state_dict(state)
    assert torch.equal(model(x), moved)


def test_transformer_encoder_layer_reads_the_weights_itself_when_it_infers(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    inject(encoder, "linear?")
    with torch.no_grad():
        encoder.linear1.delta_s_static.normal_()
    x = torch.randn(2, 7, 16)
    y = encoder(x)

    def forward(self: FastSVDLinear, x: Tensor) -> Tensor:
        raise AssertionError("the layer was called")

    monkeypatch.setattr(FastSVDLinear, "forward", forward)
    with torch.no_grad():  # torch's fused path reads linear1.weight
        assert relative_error(encoder(x), y) < 1e-5
    with pytest.raises(AssertionError, match="the layer was called"):
        encoder(x)


# Forms of targets


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("fc1", FC1),
        ("blocks.0.fc1", FC1[:1]),
        ("0.fc1", FC1[:1]),
        ("fc?", FC),
        ("blocks.*.fc[12]", FC),
        ("blocks.1.*", FC[2:]),
        ("*", [*FC, "head"]),
        (["head", "fc2"], [*FC2, "head"]),
        ({"fc1"}, FC1),
        (("fc1", "fc1"), FC1),
        (re.compile(r"fc1$"), FC1),
        (re.compile(r"^blocks\.1"), FC[2:]),
        ([re.compile(r"fc1$"), "head"], [*FC1, "head"]),
        (lambda name, layer: layer.in_features == 12, FC2),
    ],
)
def test_targets(targets: Any, expected: list[str]) -> None:
    model = Net()
    assert inject(model, targets, rank=3) == expected
    assert [name for name, module in model.named_modules() if isinstance(module, FastSVDLinear)] == expected


def test_only_the_replaced_layers_are_frozen() -> None:
    model = Net()
    inject(model, "fc1")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    rest = {f"blocks.{i}.{name}" for i in (0, 1) for name in ("norm.weight", "norm.bias", "fc2.weight", "fc2.bias")}
    assert trained == rest | {"head.weight", "head.bias"} | {f"{name}.delta_s_static" for name in FC1}


def test_a_second_injection_replaces_only_other_layers() -> None:
    model = Net()
    assert inject(model, "fc1") == FC1
    layer = model.blocks[0].fc1
    assert inject(model, "fc1") == []
    assert inject(model, "fc?") == FC2
    assert model.blocks[0].fc1 is layer


def test_an_error_lists_at_most_eight_names() -> None:
    eight, ten = (nn.Sequential(*[nn.Linear(2, 2) for _ in range(count)]) for count in (8, 10))
    with pytest.raises(ValueError, match=r"the model has 0, 1, 2, 3, 4, 5, 6, 7$"):
        inject(eight, "head")
    with pytest.raises(ValueError, match=r"the model has 0, 1, 2, 3, 4, 5, 6, 7 and 2 more$"):
        inject(ten, "head")


def test_options_reach_the_layers(tmp_path: Path) -> None:
    model = Net()
    inject(model, "fc1", 2, keep_remainder=False, cache_dir=tmp_path / "here")
    assert model.blocks[0].fc1.rank == 2
    assert model.blocks[0].fc1.base_weight is None
    assert len(list((tmp_path / "here").iterdir())) == 2


def test_a_shared_layer_is_replaced_once_everywhere() -> None:
    model = Net()
    model.blocks[1] = model.blocks[0]
    model.again = model.head
    assert inject(model, "again") == ["head", "again"]
    assert model.again is model.head
    assert inject(model, "0.fc1") == FC1
    layers = merge_(model)
    assert model.again is model.head
    assert type(model.head) is nn.Linear
    assert list(layers) == [*FC1, "head", "again"]


def test_hooks_and_their_handles_are_kept() -> None:
    model, forward, backward = Net(), [], []
    handle = model.head.register_forward_hook(lambda module, args, output: forward.append(type(module)))
    model.head.register_full_backward_hook(lambda module, dx, dy: backward.append(type(module)))
    inject(model.eval(), "head")
    assert not model.head.training
    model(torch.randn(2, 6)).sum().backward()
    merge_(model)
    model(torch.randn(2, 6)).sum().backward()
    assert forward == backward == [FastSVDLinear, nn.Linear]
    handle.remove()
    model(torch.randn(2, 6))
    assert forward == [FastSVDLinear, nn.Linear]


def test_merging_does_not_change_modulated_attention() -> None:
    model = nn.ModuleDict({"attn": SVDAttention.from_mha(nn.MultiheadAttention(8, 2)), "fc": FastSVDLinear(8, 8)})
    assert list(merge_(model)) == ["fc"]
    assert model["attn"](torch.randn(2, 3, 8), torch.randn(2, 8)).shape == (2, 3, 8)


# Rejected layers: nothing is replaced


def with_parametrised() -> Net:
    model = Net()
    nn.utils.parametrizations.weight_norm(model.blocks[1].fc2)
    return model


def with_own_forward() -> Net:
    model = Net()
    model.blocks[1].fc2.forward = lambda x: x  # type: ignore[method-assign]
    return model


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def with_subclass() -> Net:
    model = Net()
    model.blocks[1].fc2 = Scaled(12, 6)
    return model


def with_tied_weights() -> Net:
    model = Net()
    model.blocks[1].fc2.weight = model.blocks[0].fc2.weight
    return model


def with_nan_in_a_weight() -> Net:
    model = Net()
    nn.init.constant_(model.blocks[1].fc2.weight, torch.nan)
    return model


def with_lazy_linear() -> Net:
    model = Net()
    model.blocks[1].fc2 = nn.LazyLinear(6)
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (with_parametrised, r"blocks\.1\.fc2 \(its .*parametrised"),
        (with_own_forward, r"blocks\.1\.fc2 \(its Linear has its own forward\); none was replaced"),
        (with_subclass, r"blocks\.1\.fc2 \(its Scaled has its own forward"),
        (with_tied_weights, r"its weight is shared by blocks\.0\.fc2 and blocks\.1\.fc2; copy it first"),
        (with_nan_in_a_weight, r"blocks\.1\.fc2 \(its weight holds NaN or inf"),
        (with_lazy_linear, r"blocks\.1\.fc2 \(its weight is parametrised or not initialised yet"),
    ],
)
def test_nothing_is_replaced_where_one_layer_cannot_be(build: Callable[[], Net], message: str) -> None:
    model = build()
    with pytest.raises(ValueError, match=message):
        inject(model, "fc?")
    assert not any(isinstance(module, FastSVDLinear) for module in model.modules())
    assert inject(model, "fc1") == FC1


def test_the_output_projection_of_multihead_attention_is_rejected() -> None:
    encoder = nn.TransformerEncoderLayer(16, 4, 32)
    with pytest.raises(ValueError, match=r"self_attn\.out_proj \(nn\.MultiheadAttention reads .* see SVDAttention"):
        inject(encoder, "*")
    assert type(encoder.linear1) is nn.Linear


@pytest.mark.parametrize("targets", ["*", "experts", re.compile("mlp")])
def test_experts_in_one_parameter_are_rejected_by_name(targets: Any) -> None:
    config = transformers.MixtralConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    model = transformers.MixtralModel(config)
    where = r"layers\.0\.mlp\.experts, layers\.1\.mlp\.experts"
    why = r"MixtralExperts keeps its experts in one parameter \(gate_up_proj \[3, 48, 16\], down_proj \[3, 16, 24\]\)"
    with pytest.raises(ValueError, match=rf'got {where} \({why} .* name the other layers, such as "self_attn'):
        inject(model, targets)
    assert not any(isinstance(module, FastSVDLinear) for module in model.modules())
    assert len(inject(copy.deepcopy(model), "self_attn.*")) == len(inject(model, lambda *_: True)) == 8


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m: inject(m, "fc3"),
            ValueError,
            "got 'fc3', which matches none; close names: blocks.0.fc1, blocks.0.fc2",
        ),
        (lambda m: inject(m, ["fc1", "haed"]), ValueError, "got 'haed', which matches none; close names: head"),
        (
            lambda m: inject(m, "block.0.fc1"),
            ValueError,
            "'block.0.fc1', which matches none; close names: blocks.0.fc1",
        ),
        (lambda m: inject(m, "norm"), ValueError, "got 'norm', which matches none; the model has blocks.0.fc1"),
        (lambda m: inject(m, re.compile("^fc")), ValueError, r"got '\^fc', which matches none"),
        (lambda m: inject(m, lambda name, layer: False), ValueError, "which matches none of blocks.0.fc1"),
        (lambda m: inject(m, []), ValueError, "at least one layer, got none"),
        (lambda m: inject(m, 3), TypeError, "names, patterns or a callable, got int"),
        (lambda m: inject(m, ["fc1", 3]), TypeError, "names, patterns or a callable, got int"),
        (lambda m: inject({"fc1": m}, "fc1"), TypeError, "model must be an nn.Module, got dict"),
        (lambda m: inject(m, "fc1", 7), ValueError, r"blocks.0.fc1, blocks.1.fc1 \(rank must lie in 1..6 .* got 7"),
        (lambda m: inject(m, "fc1", 2.5), ValueError, "rank must be an int or None, got float"),
        (lambda m: inject(m.head, "*"), ValueError, r"the model itself \(use FastSVDLinear.from_linear"),
        (lambda m: inject(nn.ReLU(), "*"), ValueError, "the model has no linear layers"),
        (lambda m: merge_(FastSVDLinear(2, 2)), ValueError, r"use model\.merge\(\)"),
        (lambda m: merge_("model"), TypeError, "model must be an nn.Module, got str"),
    ],
)
def test_bad_input(call: Callable[[Net], object], error: type[Exception], message: str) -> None:
    model = Net()
    with pytest.raises(error, match=message):
        call(model)
    assert not any(isinstance(module, FastSVDLinear) for module in model.modules())
