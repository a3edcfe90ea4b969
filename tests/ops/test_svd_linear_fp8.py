"""svd_linear in e4m3: the error of its emulation, its kernels interpreted, gradients, layer, compile, bad input."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hystar_fast as hf
from hystar_fast.kernels.tuning import Gpu
from hystar_fast.ops.svd_linear import fp8 as op
from hystar_fast.ops.svd_linear.fp8 import quantise_factors
from hystar_fast.ref.svd_linear import svd_linear as reference
from tests.support.gpu import requires_cuda
from tests.support.shapes import SVD_LINEAR
from tests.support.svd_linear_cases import KINDS, make_inputs, run
from tests.support.tolerance import relative_error

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def plain_fp8(x: Tensor, weight: Tensor) -> Tensor:
    """A plain linear layer with x and weight in e4m3 and a scale a row: what others call fp8 inference."""

    def rounded(a: Tensor) -> Tensor:
        scale = a.abs().amax(1, keepdim=True) / 448
        return (a / scale).to(torch.float8_e4m3fn).float() * scale

    return rounded(x) @ rounded(weight).t()


@pytest.mark.parametrize("spectrum", ["as it comes", "decaying a thousandfold"])
@pytest.mark.parametrize("out_features", [1024, 3072])
def test_the_error_is_near_that_of_a_plain_fp8_layer(out_features: int, spectrum: str) -> None:
    """Two roundings more than a plain fp8 linear (g and u) make sqrt(2) times its error; 1.5 is the limit."""
    u, s, vh = (a.float() for a in torch.linalg.svd(torch.randn(out_features, 1024) / 32, full_matrices=False))
    s = s if spectrum == "as it comes" else torch.logspace(0, -3, 1024)
    x, scale = torch.randn(2, 64, 1024), s * (1 + 0.1 * torch.randn(2, 1024))
    truth = reference(x.double(), u.double(), scale.double(), vh.double())
    plain = torch.cat([plain_fp8(one, (u * row) @ vh) for one, row in zip(x, scale, strict=True)]).view(truth.shape)
    limit = 1.5 * relative_error(plain, truth)
    for dtype in DTYPES:
        y = hf.svd_linear(x.to(dtype), u.to(dtype), scale, vh.to(dtype), precision="fp8")
        assert y.dtype == dtype
        assert 0.02 < relative_error(y, truth) <= limit  # not below what e4m3 can do: it does round


def test_numerics_in_the_interpreter(pytestconfig: pytest.Config) -> None:
    """Every branch of the kernels gives what the emulation gives."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.svd_linear_fp8_interpreted"],
        cwd=pytestconfig.rootpath,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SVD_LINEAR, ids=str)
def test_values_and_gradients_on_odd_shapes(shape: tuple[int, int, int, int, int], kind: str) -> None:
    inputs = make_inputs(*shape, kind, torch.float32)
    dy = torch.randn(*inputs[0].shape[:-1], shape[3])
    kept = quantise_factors(inputs[1], inputs[3])

    def fp8(*args: Tensor, index: Tensor | None) -> Tensor:
        return hf.svd_linear(*args, index=index, precision="fp8", factors=kept)

    actual, truth = run(fp8, inputs, dy), run(reference, inputs, dy)
    for name, one, other in zip(("y", "dx", "dscale", "dbias"), actual, truth, strict=True):
        # few values do not average their roundings: each of four operands is off by 1/16 at most
        assert relative_error(one, other) < {"y": 0.12, "dscale": 0.12}.get(name, 1e-5), name
    with torch.no_grad():
        assert torch.equal(fp8(*inputs[:5], index=inputs[5]), actual[0])


def test_leading_shapes_and_factors_made_on_the_way() -> None:
    _, u, scale, vh, bias, _ = make_inputs(4, 1, 13, 17, 11, "sample", torch.float32)
    x = torch.randn(4, 2, 3, 13)
    y = hf.svd_linear(x, u, scale, vh, bias, precision="fp8")
    flat = hf.svd_linear(x.view(4, 6, 13), u, scale, vh, bias, precision="fp8", factors=quantise_factors(u, vh))
    assert torch.equal(y.view(4, 6, 17), flat)
    assert hf.svd_linear(x[0, 0, 0], u, scale[0], vh, precision="fp8").shape == (17,)


def test_the_result_may_be_changed_in_place() -> None:
    """Autograd refuses that for a view that an op of ours returns."""
    inputs = make_inputs(2, 5, 13, 17, 11, "sample", torch.bfloat16)
    dy = torch.randn(2, 5, 17)

    def fp8(*args: Tensor, index: Tensor | None) -> Tensor:
        return hf.svd_linear(*args, index=index, precision="fp8")

    doubled = run(lambda *args, index: fp8(*args, index=index).mul_(2), inputs, dy)
    assert torch.equal(doubled[0], 2 * fp8(*inputs[:5], index=inputs[5]))
    for actual, expected in zip(doubled[1:], run(fp8, inputs, 2 * dy)[1:], strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kind", ["sample", "bank"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_affects_only_itself(kind: str, poison: float) -> None:
    x, u, scale, vh, bias, _ = make_inputs(3, 5, 13, 17, 11, kind, torch.float32)
    index = torch.tensor([0, 1, 2]) if kind == "bank" else None
    x[1, 2] = poison
    scale[2, 3] = float("nan")
    y = hf.svd_linear(x, u, scale, vh, bias, index=index, precision="fp8")
    assert y[0].isfinite().all() and y[1, [0, 1, 3, 4]].isfinite().all()
    assert y[1, 2].isnan().all() and y[2].isnan().all()


def test_a_row_that_lies_along_a_factor_does_not_overflow() -> None:
    """The bound on g is reached when x is parallel to the row of vh with the largest scale, and rounding exceeds it."""
    for seed in range(20):
        torch.manual_seed(seed)
        vh = torch.rand(1, 9) + 0.5
        y = hf.svd_linear(vh, torch.ones(1, 1), torch.full((1, 1), 3.0), vh, precision="fp8")
        assert relative_error(y, reference(vh, torch.ones(1, 1), torch.full((1, 1), 3.0), vh)) < 0.2


def test_opcheck() -> None:
    """Without its schema test, whose own comparison multiplies, which torch does not for float8."""
    utils = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for kind in KINDS:
        x, u, scale, vh, bias, index = make_inputs(3, 5, 13, 17, 11, kind, torch.float32)
        for save in (False, True):
            arguments = (x, scale, *quantise_factors(u, vh), bias, index, save)
            torch.library.opcheck(torch.ops.hystar_fast.svd_linear_fp8_forward.default, arguments, test_utils=utils)


def test_never_materialises(monkeypatch: pytest.MonkeyPatch) -> None:
    """One fp8 product through each factor costs at most what one bf16 product through the weight does."""
    monkeypatch.setattr("hystar_fast.ops.svd_linear.api.materialising_is_cheaper", lambda *_, **__: True)
    x, u, scale, vh, _, _ = make_inputs(3, 5, 13, 17, 11, "shared", torch.float32)
    assert relative_error(hf.svd_linear(x, u, scale, vh, precision="fp8"), reference(x, u, scale, vh)) > 1e-3


@pytest.mark.parametrize("called_before", [False, True])
def test_a_layer_compiles_without_a_graph_break(called_before: bool) -> None:
    layer = hf.FastSVDLinear.from_linear(nn.Linear(13, 17), precision="fp8")
    x, delta_s = torch.randn(3, 5, 13), 0.1 * torch.randn(3, 13)
    expected = copy.deepcopy(layer)(x, delta_s)
    if called_before:
        layer(x, delta_s)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert torch.equal(compiled(x, delta_s), expected)
    with torch.no_grad():
        assert torch.equal(compiled(x, delta_s), expected)


@pytest.mark.parametrize("rank", [None, 5])
def test_a_layer_quantises_once_and_again_when_it_must(rank: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []

    def counting(u: Tensor, vh: Tensor) -> op.Fp8Factors:
        made.append(u)
        return quantise_factors(u, vh)

    monkeypatch.setattr("hystar_fast.nn.fast_svd_linear.quantise_factors", counting)
    linear = nn.Linear(64, 96)
    layer, x = hf.FastSVDLinear.from_linear(linear, rank), torch.randn(4, 64)
    plain = layer(x)
    assert not made and "precision" not in repr(layer)
    layer.precision = "fp8"
    first = layer(x)
    assert torch.equal(layer(x), first) and len(made) == 1 and "precision=fp8" in repr(layer)
    assert 1e-4 < relative_error(first, plain) < 0.1 or rank is not None  # zero offset: the remainder is all
    with torch.inference_mode():
        layer(x)
    with torch.no_grad():
        layer.u.neg_()
    layer(x)
    assert len(made) == 2
    layer.load_state_dict(hf.FastSVDLinear.from_linear(linear, rank).state_dict())
    assert torch.equal(layer(x), first) and len(made) == 3
    assert set(layer.state_dict()) == set(hf.FastSVDLinear.from_linear(linear, rank).state_dict())
    layer.bfloat16()
    assert layer(x.bfloat16()).dtype == torch.bfloat16 and len(made) == 4
    assert len(pickle.dumps(layer)) < 1.2 * len(pickle.dumps(hf.FastSVDLinear.from_linear(linear, rank).bfloat16()))


def test_training_a_layer_moves_it_as_full_precision_would() -> None:
    layer = hf.FastSVDLinear.from_linear(nn.Linear(64, 96))
    x, delta_s, dy = torch.randn(8, 20, 64), torch.zeros(8, 64, requires_grad=True), torch.randn(8, 20, 96)
    exact = torch.autograd.grad(layer(x, delta_s), (delta_s, layer.delta_s_static), dy)
    layer.precision = "fp8"
    for actual, truth in zip(
        torch.autograd.grad(layer(x, delta_s), (delta_s, layer.delta_s_static), dy), exact, strict=True
    ):
        assert relative_error(actual, truth) < 0.05


def test_bad_input() -> None:
    x, u, scale, vh, _, _ = make_inputs(3, 5, 13, 17, 11, "sample", torch.float32)
    factors = quantise_factors(u, vh)
    with pytest.raises(ValueError, match="precision must be None or 'fp8', got 'fp4'"):
        hf.svd_linear(x, u, scale, vh, precision="fp4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision must be 'fp8' if factors are given, got None"):
        hf.svd_linear(x, u, scale, vh, factors=factors)
    with pytest.raises(TypeError, match=r"x must be float16.* for precision='fp8', got torch.float64"):
        hf.svd_linear(x.double(), u.double(), scale, vh.double(), precision="fp8")
    with pytest.raises(TypeError, match=r"factors must be the Fp8Factors of quantise_factors.*got tuple"):
        hf.svd_linear(x, u, scale, vh, precision="fp8", factors=tuple(factors))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"factors must have u of shape \[17, 11\] on cpu, got \[11, 13\] on cpu"):
        hf.svd_linear(x, u, scale, vh, precision="fp8", factors=quantise_factors(vh, u))
    with pytest.raises(ValueError, match=r"index must be in \[0, 3\)"):
        hf.svd_linear(x, u, scale, vh, index=torch.tensor([0, 1, 3]), precision="fp8")
    with pytest.raises(ValueError, match="precision must be None or 'fp8', got 'int8'"):
        hf.FastSVDLinear(4, 4, precision="int8")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capability", "reason"),
    [((8, 0), r"it needs compute capability \(8, 9\), this GPU has \(8, 0\)"), ((8, 9), None), ((9, 0), None)],
)
def test_an_older_gpu_is_an_error(
    capability: tuple[int, int], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (op.fp8_problem(capability) is None) == (reason is None)
    if reason:
        monkeypatch.setattr("hystar_fast.ops.svd_linear.cuda.gpu", lambda _: Gpu(capability, 108))
        x, u, scale, vh, _, _ = make_inputs(3, 5, 13, 17, 11, "sample", torch.float32)
        with pytest.raises(ValueError, match="precision must be None on this GPU, got 'fp8': " + reason):
            op.forward_cuda(x, scale, *quantise_factors(u, vh), None, None, False)


@requires_cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SVD_LINEAR, (3, 257, 1024, 3072, 1024)], ids=str)
def test_on_a_gpu(shape: tuple[int, int, int, int, int], dtype: torch.dtype, kind: str) -> None:
    """The GPU computes what is emulated, but sums in another order, so a few values round differently."""
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU with fp8 tensor cores")
    cpu = make_inputs(*shape, kind, dtype)
    x, u, scale, vh, bias, index = (None if tensor is None else tensor.cuda() for tensor in cpu)
    y = hf.svd_linear(x, u, scale, vh, bias, index=index, precision="fp8")  # type: ignore[arg-type]
    assert torch.equal(y, hf.svd_linear(x, u, scale, vh, bias, index=index, precision="fp8"))  # type: ignore[arg-type]
    emulated = hf.svd_linear(*cpu[:5], index=cpu[5], precision="fp8")
    assert relative_error(y, emulated) < 1e-2
