"""svd_linear against its reference in float64: values, gradients, registration, compile, edges."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hystar_fast as hf
from hystar_fast.ops.svd_linear import api as op
from hystar_fast.ref.svd_linear import svd_linear as reference
from tests.support.shapes import SVD_LINEAR
from tests.support.svd_linear_cases import DTYPES, KINDS, Inputs, make_inputs, run
from tests.support.tolerance import assert_as_accurate, relative_error


def assert_parity(inputs: Inputs) -> None:
    dtype = inputs[0].dtype
    dy = torch.randn(*inputs[0].shape[:-1], inputs[1].shape[0]).to(dtype)
    wide = tuple(None if tensor is None or tensor.dtype == torch.int64 else tensor.double() for tensor in inputs[:5])
    truth = run(reference, (*wide, inputs[5]), dy)  # type: ignore[arg-type]
    same_dtype = run(reference, inputs, dy)
    for actual, same, true in zip(run(hf.svd_linear, inputs, dy), same_dtype, truth, strict=True):
        assert actual.dtype == same.dtype
        assert_as_accurate(actual, same, true, dtype=dtype)


@pytest.fixture(params=["factored", "materialised"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force one of the two paths, whatever the cost model says (nothing to build for an empty batch)."""
    monkeypatch.setattr(
        op, "materialising_is_cheaper", lambda tokens, *_, **__: tokens > 0 and request.param == "materialised"
    )
    return str(request.param)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SVD_LINEAR, ids=str)
def test_values_and_gradients_match_the_reference(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, kind: str, path: str
) -> None:
    assert_parity(make_inputs(*shape, kind, dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_of_element_wise_work_cover_every_row(
    dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several samples a block, and several blocks a sample, give what one block gives."""
    monkeypatch.setattr("hystar_fast.ops.svd_linear.cpu_rows.extension", lambda: None)
    for block in (1, 64, 16 * 11, 3 * 7 * 11):
        monkeypatch.setattr("hystar_fast.ops.svd_linear.cpu_rows._BLOCK", block)
        assert_parity(make_inputs(5, 7, 13, 17, 11, kind, dtype))


@pytest.mark.parametrize(
    ("leading", "kind"),
    [((), "shared"), ((4,), "shared"), ((4, 2, 3), "shared"), ((4,), "sample"), ((4, 2, 3), "sample")],
    ids=str,
)
def test_leading_shapes(leading: tuple[int, ...], kind: str, path: str) -> None:
    _, u, scale, vh, bias, _ = make_inputs(4, 1, 13, 17, 11, kind, torch.float64)
    assert_parity((torch.randn(*leading, 13, dtype=torch.float64), u, scale, vh, bias, None))


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_subset_of_gradients(kind: str, needs: tuple[int, int, int], path: str) -> None:
    x, u, scale, vh, bias, index = make_inputs(3, 5, 13, 17, 11, kind, torch.float64)
    leaves = [t.requires_grad_(bool(n)) for t, n in zip((x, scale, bias), needs, strict=True)]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    dy = torch.randn(3, 5, 17, dtype=torch.float64)
    actual = torch.autograd.grad(hf.svd_linear(x, u, scale, vh, bias, index=index), wanted, dy)
    truth = torch.autograd.grad(reference(x, u, scale, vh, bias, index=index), wanted, dy)
    torch.testing.assert_close(actual, truth)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_index_dtypes_and_no_bias(dtype: torch.dtype, path: str) -> None:
    x, u, scale, vh, _, index = make_inputs(4, 3, 13, 17, 11, "bank", torch.float64)
    assert index is not None
    torch.testing.assert_close(
        hf.svd_linear(x, u, scale, vh, index=index.to(dtype)), reference(x, u, scale, vh, index=index)
    )


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every second column": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "a chunk of columns": lambda x: torch.cat([x, x, x], -1).chunk(3, -1)[1],
    "a chunk of tokens": lambda x: torch.cat([x, x], 1).chunk(2, 1)[1],
    "reversed samples": lambda x: torch.stack([x, x])[1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_layouts_of_x_and_of_the_gradient(kind: str, layout: str, path: str) -> None:
    x, *others = make_inputs(4, 6, 13, 17, 11, kind, torch.float64)
    dy = torch.randn(4, 6, 17, dtype=torch.float64)
    expected = run(hf.svd_linear, (x, *others), dy)
    arranged = LAYOUTS[layout](x), LAYOUTS[layout](dy)
    assert torch.equal(arranged[0], x)
    for got, want in zip(run(hf.svd_linear, (arranged[0], *others), arranged[1]), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_strided_inputs(kind: str, path: str) -> None:
    _, u, scale, vh, bias, index = make_inputs(4, 6, 13, 17, 11, kind, torch.float64)
    strided: Inputs = (
        torch.randn(6, 4, 26, dtype=torch.float64).transpose(0, 1)[..., ::2],
        u.t().contiguous().t(),
        torch.stack([scale, scale], -1)[..., 0],
        vh.repeat_interleave(2, 1)[:, ::2],
        bias.repeat(2)[::2],
        None if index is None else index.repeat_interleave(2)[::2],
    )
    assert_parity(strided)


def test_an_expanded_gradient_is_read_right(path: str) -> None:
    x, u, scale, vh, bias, _ = make_inputs(2, 5, 13, 17, 11, "sample", torch.float64)
    leaf = x.requires_grad_()
    hf.svd_linear(leaf, u, scale, vh, bias).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(
        leaf.grad, ((torch.ones(17, dtype=torch.float64) @ u) * scale @ vh)[:, None].expand(2, 5, 13)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_the_reference(kind: str) -> None:
    x, u, scale, vh, bias, index = make_inputs(2, 3, 4, 5, 3, kind, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, u, scale, vh, bias)]
    assert torch.autograd.gradcheck(lambda *args: reference(*args, index=index), leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_the_op(kind: str, path: str) -> None:
    x, u, scale, vh, bias, index = make_inputs(2, 3, 4, 5, 3, kind, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, scale, bias)]
    assert torch.autograd.gradcheck(lambda x, s, b: hf.svd_linear(x, u, s, vh, b, index=index), leaves)


@pytest.mark.parametrize("materialise", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind: str, materialise: bool) -> None:
    x, u, scale, vh, bias, index = make_inputs(3, 5, 13, 17, 11, kind, torch.float32)
    dy = torch.randn(3, 5, 17)
    for save in (False, True):
        arguments = (x, u, scale, vh, bias, index, materialise, save)
        torch.library.opcheck(torch.ops.hystar_fast.svd_linear_forward.default, arguments)
    _, saved = torch.ops.hystar_fast.svd_linear_forward(x, u, scale, vh, bias, index, materialise, True)
    for needs in ((True, True, True), (False, True, False), (True, False, True)):
        arguments = (dy, x, u, scale, vh, index, saved, materialise, *needs)
        torch.library.opcheck(torch.ops.hystar_fast.svd_linear_backward.default, arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_a_graph_break(kind: str) -> None:
    compiled = torch.compile(hf.svd_linear, fullgraph=True, backend="aot_eager")
    for batch in (3, 5):  # the second size makes the batch symbolic
        inputs = make_inputs(batch, 7, 13, 17, 11, kind, torch.float32)
        dy = torch.randn(batch, 7, 17)
        torch.testing.assert_close(run(compiled, inputs, dy), run(hf.svd_linear, inputs, dy))
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs[:5], index=inputs[5]), reference(*inputs[:5], index=inputs[5]))


def test_autocast_casts_what_linear_casts(path: str) -> None:
    x, u, scale, vh, bias, _ = make_inputs(2, 5, 13, 17, 11, "sample", torch.float32)
    x, scale = x.requires_grad_(), scale.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = hf.svd_linear(x, u, scale, vh, bias)
        y.float().sum().backward()  # backward inside autocast must not cast again
    half = [tensor.detach().bfloat16() for tensor in (x, u, vh, bias)]
    assert y.dtype == torch.bfloat16
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert scale.grad is not None and scale.grad.dtype == torch.float32
    torch.testing.assert_close(y, hf.svd_linear(half[0], half[1], scale.detach(), half[2], half[3]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert hf.svd_linear(x.double(), u.double(), scale, vh.double()).dtype == torch.float64


def test_backward_under_autocast_keeps_float32(path: str) -> None:
    inputs = make_inputs(2, 5, 13, 17, 11, "sample", torch.float32)
    x, u, scale, vh, bias, _ = inputs
    leaf, dy = x.clone().requires_grad_(), torch.randn(2, 5, 17)
    y = hf.svd_linear(leaf, u, scale, vh, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y.backward(dy)
    torch.testing.assert_close(leaf.grad, run(reference, inputs, dy)[1])


def test_the_result_may_be_changed_in_place(path: str) -> None:
    inputs = make_inputs(2, 5, 13, 17, 11, "sample", torch.float64)
    dy = torch.randn(2, 5, 17, dtype=torch.float64)
    changed = run(lambda *args, index: hf.svd_linear(*args, index=index).mul_(3).relu_(), inputs, dy)
    torch.testing.assert_close(
        changed, run(lambda *args, index: (3 * reference(*args, index=index)).relu(), inputs, dy)
    )


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    inputs = make_inputs(2, 5, 13, 17, 11, "sample", torch.float64)
    dy = torch.randn(2, 5, 17)

    def checkpointed(*args: Tensor, index: Tensor | None) -> Tensor:
        return checkpoint(hf.svd_linear, *args, index=index, use_reentrant=False)

    torch.testing.assert_close(run(checkpointed, inputs, dy), run(hf.svd_linear, inputs, dy))


def test_double_backward_is_an_error() -> None:
    x, u, scale, vh, _, _ = make_inputs(2, 5, 13, 17, 11, "sample", torch.float64)
    with pytest.raises(RuntimeError, match="create_graph must be False"):
        torch.autograd.grad(hf.svd_linear(x.requires_grad_(), u, scale, vh).pow(2).sum(), x, create_graph=True)


def test_saves_no_activation_when_scale_is_frozen() -> None:
    x, u, scale, vh, _, _ = make_inputs(50, 3, 13, 17, 11, "sample", torch.float32)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        hf.svd_linear(x.requires_grad_(), u, scale, vh)
    assert sorted(kept) == sorted(tensor.numel() for tensor in (u, scale, vh, scale.new_empty(0)))


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))
def test_singular_values_as_scale_reproduce_linear(
    batch: int, tokens: int, in_features: int, out_features: int, seed: int
) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(in_features, out_features, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
    x = torch.randn(batch, tokens, in_features, dtype=torch.float64)
    for scale in (s, s.expand(batch, -1)):
        torch.testing.assert_close(hf.svd_linear(x, u, scale, vh, linear.bias), linear(x), rtol=0, atol=1e-12)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))
def test_linear_in_scale_and_in_x(batch: int, tokens: int, in_features: int, rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, u, scale, vh, _, _ = make_inputs(batch, tokens, in_features, 7, rank, "sample", torch.float64)
    other, z = torch.randn_like(scale), torch.randn_like(x)
    sum_of_scales = hf.svd_linear(x, u, scale, vh) + 3 * hf.svd_linear(x, u, other, vh)
    torch.testing.assert_close(hf.svd_linear(x, u, scale + 3 * other, vh), sum_of_scales)
    torch.testing.assert_close(
        hf.svd_linear(x - 2 * z, u, scale, vh), hf.svd_linear(x, u, scale, vh) - 2 * hf.svd_linear(z, u, scale, vh)
    )


@given(st.permutations(range(6)), st.integers(0, 2**31))
def test_permuting_the_batch_permutes_the_result(order: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    x, u, scale, vh, bias, index = make_inputs(6, 4, 9, 8, 7, "bank", torch.float64)
    assert index is not None
    y = hf.svd_linear(x, u, scale, vh, bias, index=index)
    torch.testing.assert_close(hf.svd_linear(x[order], u, scale, vh, bias, index=index[order]), y[order])
    torch.testing.assert_close(hf.svd_linear(x, u, scale[index], vh, bias), y)


@pytest.mark.parametrize("kind", ["sample", "bank"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_sample_stays_alone(kind: str, poison: float, path: str) -> None:
    x, u, scale, vh, bias, _ = make_inputs(3, 5, 13, 17, 11, kind, torch.float32)
    index = torch.tensor([0, 1, 2]) if kind == "bank" else None
    x[1, 2] = poison
    y, dx, dscale, _ = run(hf.svd_linear, (x, u, scale, vh, bias, index), torch.randn(3, 5, 17))
    for tensor in (y, dx, dscale):
        assert tensor[[0, 2]].isfinite().all()
    assert y[1, 2].isnan().any() and dscale[1].isnan().all()


def test_repeated_runs_are_identical() -> None:
    inputs = make_inputs(4, 33, 64, 96, 64, "bank", torch.float32)
    dy = torch.randn(4, 33, 96)
    for first, second in zip(run(hf.svd_linear, inputs, dy), run(hf.svd_linear, inputs, dy), strict=True):
        assert torch.equal(first, second)


def test_a_small_offset_survives_in_half_precision() -> None:
    """scale is applied in float32: an offset of one thousandth is not rounded away, as it would be in bfloat16."""
    x, u = torch.ones(1, 1, 1, dtype=torch.bfloat16), torch.ones(1, 1, dtype=torch.bfloat16)
    x[:], scale = 1.4921875, torch.tensor([[1.003]])
    assert hf.svd_linear(x, u, scale, u).item() == torch.tensor(1.4921875 * 1.003).bfloat16().item() != x.item()


@pytest.mark.parametrize("rank", [None, 96])
def test_float16_is_finite_where_a_plain_layer_is(rank: int | None) -> None:
    """A weight with one large singular value, as trained MLPs have: h and g are sqrt(out) times as large as y."""
    u = torch.nn.functional.normalize(torch.ones(512) + 0.1 * torch.randn(512), dim=0)
    v = torch.nn.functional.normalize(torch.randn(128), dim=0)
    linear = torch.nn.Linear(128, 512).half()
    linear.weight.data = (60 * torch.outer(u, v) + 0.02 * torch.randn(512, 128)).half()
    layer = hf.FastSVDLinear.from_linear(linear, rank)
    x = (4000 * v + torch.randn(6, 128)).half().requires_grad_()
    delta = torch.zeros(6, layer.rank, dtype=torch.float16, requires_grad=True)
    y, expected = layer(x, delta), linear(x)
    assert expected.isfinite().all()
    assert relative_error(y, expected) < 1e-3

    dy = (1500 * u + 0.01 * torch.randn(6, 512)).half()
    assert (60 * dy.float() @ u > 65504).all()
    found = torch.autograd.grad(y, (x, delta), dy)
    assert relative_error(found[0], torch.autograd.grad(expected, x, dy)[0]) < 2e-3
    wide = (dy.double() @ layer.u.double()) * (x.detach().double() @ layer.vh.double().T)
    assert torch.equal(found[1].isinf(), wide.abs() > 65504) and not found[1].isnan().any()
