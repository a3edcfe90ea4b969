"""Gradients of a batch in chunks equal those of the whole batch, for Hystar and baselines, in two precisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hystar_fast.data.emoji import load_emoji
from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.images import to_float, to_uint8
from hystar_fast.methods.hystar_method import HystarMethod
from hystar_fast.methods.interface import Method
from hystar_fast.methods.suite import create_method, tiny_config
from hystar_fast.nn.losses import LOSSES, create_loss
from hystar_fast.train.pairs import GALLERY, LoadedPictures, PairBatch, PairSampler, TrainingPairs
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.step import Inputs, backward, pair_loss, prepare
from tests.support.linear_method import Linear
from tests.support.tolerance import relative_error

pytestmark = pytest.mark.usefixtures("narrow_tiny")
STYLES = ("sketch", "outline", "text")
RECIPE = Recipe({}, batch_size=10, bf16=False)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_emoji("train").select(limit=24)


def pairs_of(method: Method, images: ImageSet, styles: tuple[str, ...] = STYLES) -> TrainingPairs:
    pairs = TrainingPairs(images, styles, method.resize)
    pairs.preload(method)
    return pairs


def create(name: str, dtype: torch.dtype) -> Method:
    method = create_method(name, tiny_config(None), parameters=5000)
    for module in method.modules:
        module.to(dtype)
    method.train(True)
    return method


def gradients(method: Method, run: Callable[[], Any]) -> list[Tensor]:
    parameters = [p for group in method.parameter_groups().values() for p in group]
    for parameter in parameters:
        parameter.grad = None
    run()
    assert all(p.grad is not None for p in parameters)
    return [p.grad.clone() for p in parameters if p.grad is not None]


def batch_of(method: Method, images: ImageSet, dtype: torch.dtype) -> Inputs:
    pairs = pairs_of(method, images)
    inputs = prepare(method, pairs, PairSampler(pairs, 10, seed=4).batch(0), RECIPE, 0)
    assert 0 < len(inputs.texts) < 10
    style = None if inputs.style is None else inputs.style.to(dtype)
    return replace(inputs, images=to_float(inputs.images).to(dtype), style=style)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize("name", ["hystar", "static", "lora", "vpt", "last_block"])
def test_gradients_in_chunks_equal_those_of_the_whole_batch(
    name: str, dtype: torch.dtype, limit: float, images: ImageSet
) -> None:
    method = create(name, dtype)
    inputs = batch_of(method, images, dtype)
    losses = []
    whole = gradients(method, lambda: losses.append(backward(method, inputs, RECIPE)))
    for chunk_size in (5, 16):
        recipe = replace(RECIPE, chunk_size=chunk_size)
        chunked = gradients(method, lambda recipe=recipe: losses.append(backward(method, inputs, recipe)))  # type: ignore[misc]
        for found, wanted in zip(chunked, whole, strict=True):
            assert relative_error(found, wanted) < limit
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert max(grad.abs().max() for grad in whole) > 0


def test_one_pass_has_exactly_the_gradients_of_the_loss(images: ImageSet) -> None:
    method = create("hystar", torch.float32)
    pairs = pairs_of(method, images, ("sketch",))
    batch = PairSampler(pairs, 6).batch(3)
    direct = gradients(method, lambda: pair_loss(method, pairs, batch, RECIPE, 3).backward())
    ours = gradients(method, lambda: backward(method, prepare(method, pairs, batch, RECIPE, 3), RECIPE))
    assert all(torch.equal(a, b) for a, b in zip(direct, ours, strict=True))


@pytest.mark.parametrize("chunk_size", [0, 7])
def test_recomputing_blocks_changes_no_gradient(chunk_size: int, images: ImageSet) -> None:
    method = create("hystar", torch.float32)
    inputs, recipe = batch_of(method, images, torch.float32), replace(RECIPE, chunk_size=chunk_size)
    kept = gradients(method, lambda: backward(method, inputs, recipe))
    method.model.set_gradient_checkpointing()  # type: ignore[attr-defined]
    recomputed = gradients(method, lambda: backward(method, inputs, recipe))
    for found, wanted in zip(recomputed, kept, strict=True):
        assert relative_error(found, wanted) < 1e-6


def test_a_style_that_encode_image_computes_needs_no_separate_pass(images: ImageSet) -> None:
    """Pairs that are not preloaded have no style vectors: they are computed only for displaced pictures."""
    method = create_method("hystar", replace(tiny_config(None), style="prefix", blocks=(2, 4)))
    assert isinstance(method, HystarMethod)
    pairs, recipe = pairs_of(method, images, ("sketch",)), replace(RECIPE, jitter=0.0)
    batch = PairSampler(pairs, 6).batch(0)
    entered: list[int] = []
    method.model.backbone.blocks[0].get_submodule("mlp").register_forward_pre_hook(lambda *_: entered.append(1))
    given = prepare(method, pairs, batch, recipe, 0)
    read = TrainingPairs(images, ("sketch",), method.resize)
    bare, moved = (prepare(method, read, batch, r, 0) for r in (recipe, replace(recipe, jitter=0.1)))
    assert entered == [1], "a pass was run for pictures that are not displaced"
    assert given.style is not None and bare.style is None and moved.style is not None
    torch.testing.assert_close(moved.style, given.style)
    wanted = gradients(method, lambda: backward(method, given, recipe))
    found = gradients(method, lambda: backward(method, bare, recipe))
    for one, other in zip(found, wanted, strict=True):
        assert relative_error(one, other) < 1e-4


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_the_same_gradients_in_chunks(name: str, images: ImageSet) -> None:
    method, criterion = Linear(), create_loss(name)
    pairs = pairs_of(method, images)
    inputs = prepare(method, pairs, PairSampler(pairs, 10, seed=4).batch(0), RECIPE, 0)
    whole = gradients(method, lambda: backward(method, inputs, RECIPE, criterion=criterion))
    recipe = replace(RECIPE, chunk_size=3)
    chunked = gradients(method, lambda: backward(method, inputs, recipe, criterion=criterion))
    for found, wanted in zip(chunked, whole, strict=True):
        assert wanted.abs().max() > 0
        assert relative_error(found, wanted) < 1e-4


class Noisy(Linear):
    """A linear method with dropout and a trained text encoder."""

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        return torch.nn.functional.dropout(super().encode_image(images, style), 0.5)

    def encode_text(self, texts: Any) -> Tensor:
        return super().encode_text(texts) * (1 + self.shift)


def test_dropout_is_the_same_in_both_passes_and_depends_on_the_step_only(images: ImageSet) -> None:
    method = Noisy()
    pairs = pairs_of(method, images)
    batch, recipe = PairSampler(pairs, 10, seed=4).batch(0), replace(RECIPE, chunk_size=4)
    inputs = prepare(method, pairs, batch, recipe, 0)
    before = torch.random.get_rng_state()
    first = gradients(method, lambda: backward(method, inputs, recipe))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    again = gradients(method, lambda: backward(method, inputs, recipe))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    # the expected gradient: one pass over the whole batch with the same dropout masks
    masks, parts = [], []
    for number, chunk in enumerate(inputs.images.split(4)):
        torch.manual_seed(inputs.seed + number)
        masks.append(torch.nn.functional.dropout(torch.ones(len(chunk), 64), 0.5))
    for chunk, style, mask in zip(
        inputs.images.split(4),
        inputs.style.split(4),
        masks,
        strict=True,  # type: ignore[union-attr]
    ):
        parts.append((chunk, style, mask))

    def by_hand() -> None:
        embedded = torch.cat([Linear.encode_image(method, i, s) * m for i, s, m in parts])
        query = torch.cat([embedded[:-10], method.encode_text(inputs.texts)])[inputs.order]
        method.loss(query, embedded[-10:]).backward()

    for found, wanted in zip(first, gradients(method, by_hand), strict=True):
        assert relative_error(found, wanted) < 1e-5
    other = gradients(method, lambda: backward(method, prepare(method, pairs, batch, recipe, 1), recipe))
    assert not torch.equal(first[0], other[0])


class PairsWithUnreadable(TrainingPairs):
    """Training pairs of which some query pictures cannot be read."""

    unreadable: tuple[int, ...] = (2, 5)

    def load(self, items: Tensor, styles: Tensor, draws: Tensor) -> LoadedPictures:
        found = super().load(items, styles, draws)
        unreadable = torch.isin(items, torch.tensor(self.unreadable)) & (styles != GALLERY)
        return LoadedPictures(found.images, found.style, ~unreadable)


def test_pairs_with_unreadable_pictures_are_excluded_from_the_loss(images: ImageSet) -> None:
    method, recipe = Linear(), replace(RECIPE, jitter=0.0)
    partial = PairsWithUnreadable(images, STYLES, method.resize)
    partial.labels = torch.tensor([0, 1, 2, 3, 3, 5, 6, 7, *range(8, 24)])
    outlined = 3 in partial.items_with("outline").tolist()
    items, styles = torch.tensor([1, 2, 3, 4, 5, 6]), torch.tensor([0, 0, int(outlined), 2, 0, 2])
    seen: list[tuple[Tensor, ...]] = []

    def criterion(query: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        seen.append((query, target, mask))
        return create_loss("info_nce")(query, target, mask)

    batch = PairBatch(items, styles, torch.zeros(6))
    backward(method, prepare(method, partial, batch, recipe, 0), recipe, criterion=criterion)
    query, target, mask = seen[0]
    gallery = torch.stack([to_uint8(images.read(images.gallery[item])) for item in (1, 3, 4, 6)])
    # all six were encoded together, so the products may round differently
    assert relative_error(target, method.encode_image(gallery)) < 1e-6
    assert torch.equal(query[2], method.encode_text(partial.texts[4])[0])
    assert mask.nonzero().tolist() == [[1, 2], [2, 1]]  # items 3 and 4 have one label
    partial.unreadable = tuple(range(24))
    drawn = PairBatch(items[[0, 1, 2, 3]], styles[[0, 1, 4, 3]], torch.zeros(4))
    with pytest.raises(ValueError, match="a batch must have 2 pairs with readable pictures, got 1 of 4"):
        backward(method, prepare(method, partial, drawn, recipe, 0), recipe, criterion=criterion)


def test_recipe_values_out_of_range_are_rejected() -> None:
    with pytest.raises(ValueError, match="chunk_size must not be negative, got -1"):
        Recipe({}, chunk_size=-1)
    with pytest.raises(ValueError, match="schedule must be one of cosine, constant, got 'step'"):
        Recipe({}, schedule="step")
