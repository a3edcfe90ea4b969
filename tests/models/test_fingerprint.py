"""Fingerprints: a change of any value of any weight changes them, and an adapter is rejected on other weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hystar_fast.methods.adapter_files import load_method, save_method
from hystar_fast.methods.suite import create_method
from hystar_fast.models import adapter_format
from hystar_fast.models.adapter_format import Hashed, are_same_weights, fingerprint
from tests.support.small_clip import small_config

MEBIBYTE = 1 << 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_every_value_counts(dtype: torch.dtype) -> None:
    """Change one bit of each of 3001 values in turn."""
    tensor = torch.randn(3001).to(dtype)
    found = {fingerprint([("first", torch.ones(3)), ("a", tensor), ("last", torch.ones(3))])}
    for place in range(len(tensor)):
        changed = tensor.clone()
        changed[place : place + 1].view(torch.uint8)[0] ^= 1
        found.add(fingerprint([("first", torch.ones(3)), ("a", changed), ("last", torch.ones(3))]))
    assert len(found) == 1 + len(tensor)


@pytest.mark.parametrize("count", [MEBIBYTE - 1, MEBIBYTE, MEBIBYTE + 1, 3 * MEBIBYTE + 5])
def test_every_value_of_a_large_tensor_counts(count: int) -> None:
    """Change values at the edges of the chunks of a mebibyte, and within them."""
    tensor = torch.randint(256, (count,), dtype=torch.uint8)
    edges = {edge + step for edge in range(0, count + MEBIBYTE, MEBIBYTE) for step in (-1, 0, 1)}
    places = sorted({place for place in edges | {count - 1, count // 2, count // 3} if 0 <= place < count})
    found = {fingerprint([("a", tensor)])}
    for place in places:
        changed = tensor.clone()
        changed[place] ^= 1
        found.add(fingerprint([("a", changed)]))
    assert len(found) == 1 + len(places)


def test_values_that_change_places_are_told_apart() -> None:
    large = torch.randint(256, (4 * MEBIBYTE,), dtype=torch.uint8)
    chunks = large.view(4, MEBIBYTE)
    assert len({fingerprint([("a", chunks[list(order)])]) for order in ((0, 1, 2, 3), (1, 0, 2, 3), (0, 1, 3, 2))}) == 3
    a, b = torch.randn(5), torch.randn(5)
    assert fingerprint([("a", a), ("b", b)]) != fingerprint([("a", b), ("b", a)])


def test_values_shapes_types_and_names_are_told_apart() -> None:
    base = torch.randn(40, 60)
    variants = [("a", base), ("b", base), ("a", base.reshape(60, 40)), ("a", base.bfloat16()), ("a", base + 1e-6)]
    assert len({fingerprint([variant]) for variant in variants}) == len(variants)
    found = [fingerprint([variant]) for variant in variants]
    assert not any(are_same_weights(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    "copied",
    [Tensor.clone, lambda base: base.t().contiguous().t(), lambda base: base.repeat(2, 1)[40:], torch.nn.Parameter],
)
def test_equal_values_have_one_fingerprint_wherever_they_lie(copied: Callable[[Tensor], Tensor]) -> None:
    base = torch.randn(40, 60)
    assert fingerprint([("a", copied(base))]) == fingerprint([("a", base)])


def test_scalars_empty_tensors_and_tensors_without_values() -> None:
    scalar, empty = ("scalar", torch.tensor(1.0)), ("empty", torch.empty(0))
    assert (
        len({fingerprint(tensors) for tensors in ([scalar], [empty], [scalar, empty], [("scalar", -scalar[1])])}) == 4
    )
    assert fingerprint([scalar, ("a", torch.empty(2, device="meta"))]) is None


def test_memory_that_is_used_again_is_hashed_again() -> None:
    """A tensor that is created after another was freed often has the same address."""
    one_by_one = fingerprint((str(n), torch.full((5000,), float(n))) for n in range(9))
    assert one_by_one == fingerprint([(str(n), torch.full((5000,), float(n))) for n in range(9)])


def test_shared_tensors_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: Hashed = {}
    state, sizes = {"a": torch.randn(7), "b": torch.randn(9)}, []
    compute = adapter_format._hash_in_chunks

    def record(content: memoryview, pool: Any) -> bytes:
        sizes.append(len(content))
        return compute(content, pool)

    monkeypatch.setattr(adapter_format, "_hash_in_chunks", record)
    first = fingerprint(state.items(), hashed)
    assert fingerprint(((f"again.{name}", tensor.detach()) for name, tensor in state.items()), hashed) != first
    assert sizes == [28, 36]


def test_only_known_fingerprints_that_differ_are_other_weights() -> None:
    base = torch.randn(5000)
    changed = base.clone()
    changed[1] += 1
    first, second = (fingerprint([("a", tensor)]) for tensor in (base, changed))
    assert are_same_weights(first, first) and not are_same_weights(first, second)
    assert are_same_weights(None, first) and are_same_weights(first, None)
    assert not are_same_weights("", first)


# Adapters


def change_one_value(folder: Path, name: str, place: int) -> None:
    file = folder / "clip" / "open_clip_model.safetensors"
    tensors = load_file(file)
    tensors = {key: value.clone() for key, value in tensors.items()}
    tensors[name].view(-1)[place] += 1
    save_file(tensors, file)


@pytest.mark.parametrize("place", [1, -2])
@pytest.mark.parametrize("method", ["hystar", "ssf"])
def test_an_adapter_is_rejected_where_one_value_of_the_backbone_differs(
    tmp_path: Path, method: str, place: int
) -> None:
    trained = create_method(method, small_config(tmp_path))
    save_method(trained, tmp_path / "adapter")
    load_method(tmp_path / "adapter")
    change_one_value(tmp_path, "token_embedding.weight", place)
    with pytest.raises(ValueError, match="was trained on another backbone"):
        load_method(tmp_path / "adapter")
