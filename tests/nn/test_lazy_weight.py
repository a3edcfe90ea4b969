"""FastSVDLinear.weight: models that read it instead of calling the layer train its offset, and no write is lost."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hystar_fast as hf

X = torch.randn(3, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["full rank", "remainder", "truncated"])
def layer(request: pytest.FixtureRequest) -> hf.FastSVDLinear:
    torch.manual_seed(0)
    rank = None if request.param == "full rank" else 5
    keep = request.param == "remainder"
    made = hf.FastSVDLinear(13, 17, rank=rank, keep_remainder=keep, dtype=torch.float64)
    with torch.no_grad():
        made.delta_s_static.normal_()
    return made


READS: dict[str, Callable[[hf.FastSVDLinear], Tensor]] = {
    "linear": lambda layer: F.linear(X, layer.weight, layer.bias),
    "matmul": lambda layer: X @ layer.weight.T + layer.bias,
    "einsum": lambda layer: torch.einsum("bi,oi->bo", X, layer.weight) + layer.bias,
    "parts": lambda layer: torch.cat([F.linear(X, part) for part in layer.weight.split([9, 8])], -1) + layer.bias,
    "a cast": lambda layer: F.linear(X, layer.weight.to(torch.float64), layer.bias),
    "a clone": lambda layer: F.linear(X, layer.weight.clone(), layer.bias),
}


@pytest.mark.parametrize("read", READS)
def test_reading_the_weight_gives_the_gradient_of_calling_the_layer(read: str, layer: hf.FastSVDLinear) -> None:
    outputs = [READS[read](layer), layer(X)]
    torch.testing.assert_close(outputs[0], outputs[1])
    ours, theirs = (torch.autograd.grad(y.square().sum(), layer.delta_s_static)[0] for y in outputs)
    assert float(theirs.abs().max()) > 0.1
    torch.testing.assert_close(ours, theirs)


def test_compiled_and_transformed_code_gets_the_gradient_too(layer: hf.FastSVDLinear) -> None:
    def loss(x: Tensor) -> Tensor:
        return F.linear(x, layer.weight).square().sum()

    (expected,) = torch.autograd.grad(loss(X), layer.delta_s_static)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(X), layer.delta_s_static)[0], expected)
    mapped = torch.func.vmap(loss)(X).sum()
    torch.testing.assert_close(torch.autograd.grad(mapped, layer.delta_s_static)[0], expected)


def test_the_weight_requires_grad_where_its_offset_does(layer: hf.FastSVDLinear) -> None:
    assert layer.weight.requires_grad and not layer.weight.is_leaf
    with torch.no_grad():
        assert not layer.weight.requires_grad
    assert not layer.weight.detach().requires_grad and not layer.weight.data.requires_grad
    layer.delta_s_static.requires_grad_(False)
    assert not layer.weight.requires_grad


def test_a_model_that_reads_the_weight_of_its_projection_trains_its_offset() -> None:
    torch.manual_seed(0)
    options = {"depth": 1, "embed_dim": 48, "num_heads": 3, "img_size": 32, "init_values": 1.0}
    model = timm.create_model("beit_base_patch16_224", **options).requires_grad_(False).eval()
    nn.init.normal_(model.head.weight)
    image = torch.randn(2, 3, 32, 32)
    before = model(image)
    assert hf.inject(model, "qkv") == ["blocks.0.attn.qkv"]
    after = model(image)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(after.square().sum(), model.blocks[0].attn.qkv.delta_s_static)
    assert float(gradient.abs().min()) > 0


@pytest.mark.parametrize(
    "reach",
    [
        lambda weight: weight.share_memory_(),
        lambda weight: weight.data_ptr(),
        lambda weight: weight.untyped_storage(),
        lambda weight: weight.set_(torch.zeros(17, 13)),
    ],
)
@pytest.mark.parametrize("grad", [True, False], ids=["grad mode", "no_grad"])
def test_its_memory_cannot_be_reached(reach: Callable[[Tensor], object], grad: bool) -> None:
    layer = hf.FastSVDLinear(13, 17)
    before = layer.weight.clone()
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=r"FastSVDLinear.weight must not be"):
        reach(layer.weight)
    assert torch.equal(layer.weight.clone(), before)


def test_peft_refuses_to_merge_into_the_layer() -> None:
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(13, 17))
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False))
    hf.inject(lora, "base_layer")
    for safe in (False, True):
        with pytest.raises(RuntimeError, match=r"FastSVDLinear.weight must not be written to"):
            copy.deepcopy(lora).merge_and_unload(safe_merge=safe)


def test_a_layer_in_shared_memory_and_a_pickle_are_whole(layer: hf.FastSVDLinear) -> None:
    expected = layer(X)
    torch.testing.assert_close(layer.share_memory()(X), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(X), expected)
