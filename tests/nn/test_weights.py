"""Weights that cannot be factored are refused by name, with what to do, and nothing is replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

import hystar_fast as hf
from hystar_fast.nn.attention import SVDAttention

MATRIX = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Quantised(Tensor):
    """A tensor of four bits that says it is one of bfloat16, as those of torchao do."""

    @staticmethod
    def __new__(cls, values: Tensor) -> Quantised:
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.bfloat16)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return args[0]
        raise NotImplementedError(str(func))


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = distributed.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield
    distributed.destroy_process_group()


def sharded() -> Tensor:
    return distribute_tensor(MATRIX, init_device_mesh("cpu", (1,)), [Shard(0)])


def nested(layout: torch.layout) -> Tensor:
    return torch.nested.nested_tensor([MATRIX[:3], MATRIX[3:]], layout=layout)


KINDS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "float8": (lambda: MATRIX.to(torch.float8_e4m3fn), r"one of torch\.float8_e4m3fn; convert the layer first"),
    "complex": (lambda: MATRIX.to(torch.complex64), r"one of torch\.complex64; convert the layer first"),
    "four bits": (lambda: Quantised(MATRIX), "a Quantised; inject before the model is quantised"),
    "nested": (lambda: nested(torch.strided), "a nested one; give the layer one matrix"),
    "jagged": (lambda: nested(torch.jagged), "a nested one; give the layer one matrix"),
    "sparse": (MATRIX.to_sparse, r"one of layout torch\.sparse_coo; give the layer weight\.to_dense\(\) first"),
    "sharded": (sharded, r"a DTensor; inject before the model is sharded \(fully_shard, parallelize_module\)"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, that nested and sparse tensors may change
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("one_process")
def test_other_kinds_of_weights_are_refused_by_name(kind: str) -> None:
    build, reason = KINDS[kind]
    model = nn.Sequential(nn.Linear(4, 12, bias=False), nn.Linear(12, 4))
    model[0].weight = nn.Parameter(build(), requires_grad=False)
    message = rf"weight must be a plain tensor in float16, bfloat16, float32 or float64, got {reason}"
    with pytest.raises(ValueError, match=rf"got 0 \({message}.*\); none was replaced"):
        hf.inject(model, "*")
    assert type(model[1]) is nn.Linear
    with pytest.raises(TypeError, match=message):
        hf.FastSVDLinear.from_linear(model[0])
    with pytest.raises(TypeError, match=message):
        SVDAttention.from_linears([model[0]], nn.Linear(4, 4), 2)
    layer = hf.FastSVDLinear(4, 12, bias=False)
    kept = layer.u.clone()
    with pytest.raises(RuntimeError, match=rf"0\.{message}"):
        nn.Sequential(layer).load_state_dict({"0.weight": build()})
    assert torch.equal(layer.u, kept)


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.int8, torch.complex64])
def test_a_layer_has_a_usual_floating_type(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"dtype must be torch\.float16, .* or torch\.float64, got {dtype}"):
        hf.FastSVDLinear(4, 12, dtype=dtype)


def test_a_model_on_the_meta_device_is_injected_and_filled_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plain, x = nn.Sequential(nn.Linear(4, 12)), torch.randn(3, 4)
    for assign in (True, False):
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(4, 12))
        assert hf.inject(model, "*") == ["0"]
        assert model(x.to("meta")).shape == (3, 12) and model[0].weight.is_meta
        if not assign:
            model.to_empty(device="cpu")
        model.load_state_dict(plain.state_dict(), assign=assign)
        torch.testing.assert_close(model(x), plain(x))
    with pytest.raises(RuntimeError, match=r"0\.weight must have values, got a tensor on the meta device"):
        model.load_state_dict({name: value.to("meta") for name, value in plain.state_dict().items()})
