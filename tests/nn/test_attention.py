"""SVDAttention against nn.MultiheadAttention with the weight of each sample materialised."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hystar_fast.nn.attention import SVDAttention, attend
from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from tests.support.tolerance import relative_error

B, T, D, HEADS = 5, 7, 24, 4


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def make(dtype: torch.dtype = torch.float64, bias: bool = True, batch_first: bool = True) -> nn.MultiheadAttention:
    mha = nn.MultiheadAttention(D, HEADS, bias=bias, batch_first=batch_first, dtype=dtype)
    for parameter in mha.parameters():
        nn.init.normal_(parameter, std=0.2)
    return mha


def by_torch(mha: nn.MultiheadAttention, x: Tensor, offset: Tensor | None, attn_mask: Tensor | None = None) -> Tensor:
    """Run nn.MultiheadAttention on each sample, with the weight W + u diag(offset) vh."""
    u, _, vh = torch.linalg.svd(mha.in_proj_weight.detach().double(), full_matrices=False)
    rows = []
    for b in range(len(x)):
        row, weight = x[b : b + 1], mha.in_proj_weight
        if offset is not None:
            weight = (weight.double() + (u * offset[b].double()) @ vh).to(x.dtype)
        mask = attn_mask[b * HEADS : (b + 1) * HEADS] if attn_mask is not None and attn_mask.dim() == 3 else attn_mask
        row = row if mha.batch_first else row.transpose(0, 1)
        state = {"in_proj_weight": weight}
        y = torch.func.functional_call(mha, state, (row, row, row), {"need_weights": False, "attn_mask": mask})[0]
        rows.append(y if mha.batch_first else y.transpose(0, 1))
    return torch.cat(rows)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_parity_with_materialised_weights(dtype: torch.dtype, limit: float, batch_first: bool, bias: bool) -> None:
    mha = make(dtype, bias, batch_first)
    attention = SVDAttention.from_mha(mha)
    x, delta_s = torch.randn(B, T, D, dtype=dtype), 0.5 * torch.randn(B, D)
    assert relative_error(attention(x), by_torch(mha, x, None)) < limit
    assert relative_error(attention(x, torch.zeros(B, D)), by_torch(mha, x, None)) < limit
    assert relative_error(attention(x, delta_s), by_torch(mha, x, delta_s)) < limit
    assert relative_error(attention(x, delta_s[0]), by_torch(mha, x, delta_s[:1].expand(B, D))) < limit
    index = torch.tensor([2, 0, 0, 1, 2])
    assert relative_error(attention(x, delta_s[:3], index=index), by_torch(mha, x, delta_s[index])) < limit


def test_gradients_are_those_of_materialised_weights() -> None:
    mha = make()
    attention = SVDAttention.from_mha(mha)
    assert attention.out_proj is mha.out_proj
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    delta_s = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    inputs = [x, delta_s, *mha.out_proj.parameters()]
    dy = torch.randn(B, T, D, dtype=torch.float64)
    ours = torch.autograd.grad(attention(x, delta_s), inputs, dy)
    truth = torch.autograd.grad(by_torch(mha, x, delta_s), inputs, dy)
    assert all(relative_error(grad, expected) < 1e-12 for grad, expected in zip(ours, truth, strict=True))


def masks() -> dict[str, Tensor]:
    causal = torch.ones(T, T, dtype=torch.bool).triu(1)
    for_each_head = torch.rand(B * HEADS, T, T) < 0.4
    for_each_head.diagonal(dim1=1, dim2=2).fill_(False)  # every query sees itself
    return {
        "boolean": causal,
        "additive": torch.zeros(T, T).masked_fill(causal, -torch.inf),
        "boolean for each head": for_each_head,
        "additive for each head": torch.randn(B * HEADS, T, T),
    }


@pytest.mark.parametrize("kind", ["boolean", "additive", "boolean for each head", "additive for each head"])
def test_masks_have_the_meaning_of_nn_multihead_attention(kind: str) -> None:
    mha, mask = make(), masks()[kind]
    x, delta_s = torch.randn(B, T, D, dtype=torch.float64), torch.randn(B, D)
    ours = SVDAttention.from_mha(mha)(x, delta_s, attn_mask=mask)
    theirs = mask if mask.dtype == torch.bool else mask.double()
    assert relative_error(ours, by_torch(mha, x, delta_s, theirs)) < 1e-12
    if mask.dim() == 3:
        four = SVDAttention.from_mha(mha)(x, delta_s, attn_mask=mask.view(B, HEADS, T, T))
        assert torch.equal(four, ours)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_two_styles_in_one_step(use_reentrant: bool) -> None:
    attention = SVDAttention.from_mha(make())
    x = torch.randn(B, T, D, dtype=torch.float64)
    styles = torch.randn(2, B, D, dtype=torch.float64, requires_grad=True)

    def loss(call: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        first, second = (call(x, style) for style in styles)
        return (first * second).sum()

    expected = torch.autograd.grad(loss(attention), [styles, attention.in_proj.delta_s_static])
    loss(lambda x, style: checkpoint(attention, x, style, use_reentrant=use_reentrant)).backward()
    assert relative_error(styles.grad, expected[0]) < 1e-12
    assert relative_error(attention.in_proj.delta_s_static.grad, expected[1]) < 1e-12


def test_threads_do_not_mix_their_styles() -> None:
    attention = SVDAttention.from_mha(make())
    x, styles = torch.randn(B, T, D, dtype=torch.float64), torch.randn(8, B, D)
    with torch.no_grad():
        expected = [attention(x, style) for style in styles]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda style: attention(x, style).detach(), [*styles] * 4))
    assert all(relative_error(result, expected[i % 8]) < 1e-12 for i, result in enumerate(results))
    assert relative_error(expected[0], expected[1]) > 1e-3


def test_compiles_without_a_graph_break() -> None:
    attention = SVDAttention.from_mha(make())
    x = torch.randn(B, T, D, dtype=torch.float64)
    delta_s = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    mask = masks()["boolean"]
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    ours, eager = compiled(x, delta_s, attn_mask=mask), attention(x, delta_s, attn_mask=mask)
    assert relative_error(ours, eager) < 1e-12
    (grad,), (expected,) = torch.autograd.grad(ours.sum(), delta_s), torch.autograd.grad(eager.sum(), delta_s)
    assert relative_error(grad, expected) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    mha = make(torch.float32)
    attention = SVDAttention.from_mha(mha)
    x, delta_s, mask = torch.randn(B, T, D), torch.randn(B, D, requires_grad=True), masks()["additive"]
    truth = by_torch(mha, x, delta_s, mask)
    assert relative_error(by_torch(mha, x, None, mask), truth) > 0.3
    with torch.autocast("cpu", dtype):
        y = attention(x, delta_s, attn_mask=mask)
    assert y.dtype == dtype
    assert relative_error(y, truth) < 0.02
    dy = torch.randn(B, T, D)
    (gradient,), (expected,) = torch.autograd.grad(y, delta_s, dy.to(dtype)), torch.autograd.grad(truth, delta_s, dy)
    assert relative_error(gradient, expected) < 0.05
    half = attention.to(dtype)(x.to(dtype), delta_s, attn_mask=mask)
    assert relative_error(half, truth) < 0.03


def test_state_dicts_of_its_own_and_of_multihead_attention() -> None:
    mha, other = make(), make()
    x, delta_s = torch.randn(B, T, D, dtype=torch.float64), torch.randn(B, D)
    ours = nn.ModuleDict({"attn": SVDAttention.from_mha(other)})
    ours.load_state_dict(nn.ModuleDict({"attn": mha}).state_dict())
    assert relative_error(ours["attn"](x, delta_s), by_torch(mha, x, delta_s)) < 1e-12
    again = SVDAttention.from_mha(make())
    again.load_state_dict(ours["attn"].state_dict())
    assert torch.equal(again(x, delta_s), ours["attn"](x, delta_s))


@pytest.mark.parametrize("output", ["proj", "projection", "out_proj"])
@pytest.mark.parametrize("packed", ["in_proj_", "qkv.", None])
def test_state_dicts_of_other_attention_modules(packed: str | None, output: str) -> None:
    """timm and BLIP pack their projections under ``qkv``, CLIP and SigLIP of transformers split them."""
    mha, x = make(), torch.randn(B, T, D, dtype=torch.float64)
    state = {f"{output}.{name}": value for name, value in mha.out_proj.state_dict().items()}
    for kind in ("weight", "bias"):
        value = mha.get_parameter(f"in_proj_{kind}").detach()
        if packed is None:
            state |= {f"{name}_proj.{kind}": part for name, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            state[f"{packed}{kind}"] = value
    ours = nn.ModuleDict({"attn": SVDAttention.from_mha(make())})
    ours.load_state_dict({f"attn.{name}": value for name, value in state.items()})
    assert relative_error(ours["attn"](x), by_torch(mha, x, None)) < 1e-12


@pytest.mark.parametrize("biased", [(True, True, True), (True, False, True), (False, False, False)])
def test_separate_projections_are_stacked_into_one_spectrum(biased: tuple[bool, ...]) -> None:
    projections = [nn.Linear(8, 8, bias).double() for bias in biased]
    out_proj, x = nn.Linear(8, 8).double(), torch.randn(3, 5, 8, dtype=torch.float64)
    attention = SVDAttention.from_linears(projections, out_proj, 2)
    stacked = torch.cat([layer.weight for layer in projections])
    assert relative_error(attention.in_proj.s, torch.linalg.svdvals(stacked)) < 1e-12
    assert (attention.in_proj.bias is not None) == any(biased)
    query, key, value = (layer(x).view(3, 5, 2, 4).transpose(1, 2) for layer in projections)
    mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(3, 5, 8)
    assert relative_error(attention(x), out_proj(mixed)) < 1e-12


@pytest.mark.parametrize("missing", ["q_proj.weight", "k_proj.weight", "k_proj.bias", "v_proj.bias"])
def test_a_state_dict_that_lacks_a_part_of_one_projection_is_rejected(missing: str) -> None:
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    layers = nn.ModuleDict({name: nn.Linear(D, D) for name in names})
    attention, state = SVDAttention.from_mha(make(torch.float32)), layers.state_dict()
    attention.load_state_dict(state)
    del state[missing]
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: .*_proj"):
        attention.load_state_dict(state)


def test_truncated_rank_training_flag_and_empty_batch() -> None:
    mha = make()
    attention = SVDAttention.from_mha(mha.eval(), rank=6)
    assert not attention.training
    x = torch.randn(B, T, D, dtype=torch.float64)
    assert relative_error(attention(x), by_torch(mha, x, None)) < 1e-12
    offset = F.pad(torch.ones(B, 6), (0, D - 6))
    assert relative_error(attention(x, torch.ones(B, 6)), by_torch(mha, x, offset)) < 1e-12
    assert attention(x[:0], torch.ones(0, 6)).shape == (0, T, D)
    assert attention(x[:, :1], torch.ones(B, 6)).shape == (B, 1, D)


X = torch.ones(B, T, D)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda _: SVDAttention.from_mha(nn.Linear(2, 2)),
            TypeError,
            "mha must be an nn.MultiheadAttention, got Linear",
        ),
        (
            lambda _: SVDAttention.from_mha(nn.MultiheadAttention(8, 2, kdim=4)),
            ValueError,
            "kdim = vdim = embed_dim = 8 .* got kdim 4 and vdim 8",
        ),
        (
            lambda _: SVDAttention.from_mha(nn.MultiheadAttention(8, 2, add_bias_kv=True)),
            ValueError,
            "add_bias_kv=False and add_zero_attn=False, got add_bias_kv=True and add_zero_attn=False",
        ),
        (
            lambda _: SVDAttention.from_mha(nn.MultiheadAttention(8, 2, add_zero_attn=True)),
            ValueError,
            "got add_bias_kv=False and add_zero_attn=True",
        ),
        (lambda _: SVDAttention.from_mha(nn.MultiheadAttention(8, 2, 0.1)), ValueError, "dropout=0, .* got 0.1"),
        (
            lambda _: SVDAttention.from_linears([nn.Linear(8, 8)] * 2, nn.Linear(8, 8), 2),
            TypeError,
            "one packed nn.Linear or three .* got Linear, Linear",
        ),
        (
            lambda _: SVDAttention.from_linears(
                [nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)], nn.Linear(8, 8), 2
            ),
            ValueError,
            "in_proj must map d to 3 d, got 8 to 16",
        ),
        (lambda _: SVDAttention.from_mha(nn.MultiheadAttention(8, 2), rank=9), ValueError, r"rank must lie in 1..8"),
        (lambda _: SVDAttention(FastSVDLinear(8, 8), nn.Linear(8, 8), 2), ValueError, "map d to 3 d, got 8 to 8"),
        (lambda _: SVDAttention(FastSVDLinear(8, 24), nn.Linear(8, 8), 3), ValueError, "divide the width 8, got 3"),
        (lambda a: a(X[0]), ValueError, r"x must be \[B, T, 24\], got shape \(7, 24\)"),
        (lambda a: a(X, torch.ones(3, D)), ValueError, r"delta_s must have one row for each sample"),
        (lambda a: a(X, attn_mask=torch.ones(6, 6)), ValueError, r"attn_mask must be \[7, 7\].* got shape \(6, 6\)"),
        (lambda a: a(X, attn_mask=torch.ones(2, B, HEADS, T, T)), ValueError, "attn_mask must be"),
        (
            lambda a: a(X, attn_mask=torch.ones(T, T, dtype=torch.int64)),
            TypeError,
            "boolean or floating, got torch.int64",
        ),
    ],
)
def test_bad_input(call: Callable[[SVDAttention], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(SVDAttention.from_mha(make(torch.float32)))


@pytest.mark.parametrize("tokens", [1, 7, 128, 129])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attend_equals_scaled_dot_product_attention_with_and_without_gradients(tokens: int, dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(2, HEADS, tokens, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    truth = F.scaled_dot_product_attention(*exact)
    gradients = torch.autograd.grad(truth.sin().sum(), exact)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    assert relative_error(attend(q, k, v), truth) < tolerance
    with torch.no_grad():
        assert relative_error(attend(q, k, v), truth) < tolerance
    for gradient, expected in zip(torch.autograd.grad(attend(q, k, v).sin().sum(), (q, k, v)), gradients, strict=True):
        assert relative_error(gradient, expected) < tolerance if expected.norm() > 1e-9 else gradient.norm() < 1e-9


@pytest.mark.parametrize(
    ("tokens", "is_masked", "is_fused"), [(128, False, False), (129, False, True), (7, True, True)]
)
def test_attend_uses_the_fused_kernel_for_long_sequences_and_for_masks(
    tokens: int, is_masked: bool, is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, fused = [], F.scaled_dot_product_attention

    def record(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Tensor:
        calls.append(attn_mask)
        return fused(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    q, k, v = torch.randn(3, 2, HEADS, tokens, 8)
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril() if is_masked else None
    attend(q, k, v, mask)
    assert len(calls) == is_fused and all(call is mask for call in calls)
