"""The published protocol, joint queries and zero-shot classification against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.methods.interface import Method
from hystar_fast.methods.pixels import Pixels
from hystar_fast.retrieval.batch24 import BATCH, CUTOFFS, batch24_ranks
from hystar_fast.retrieval.joint import joint_ranks
from hystar_fast.retrieval.metrics import recall, target_ranks
from hystar_fast.retrieval.zero_shot import class_embeddings, numbered


def points(n: int, noise: float = 0.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    clean = F.normalize(torch.randn(n, 16, generator=generator), dim=-1)
    return F.normalize(clean + noise * torch.randn(n, 16, generator=torch.Generator().manual_seed(seed + 1)), dim=-1)


def published(similarity: Tensor, places: int) -> float:
    """Return the share of rows whose diagonal entry is among the last `places` of an ascending sort."""
    order = similarity.softmax(-1).argsort(dim=1)
    return (order[:, -places:] == torch.arange(len(similarity))[:, None]).any(1).double().mean().item()


@pytest.mark.parametrize("places", CUTOFFS.values())
def test_batch24_is_the_mean_over_whole_batches_of_the_published_recall(places):
    gallery, queries = points(60), points(60, noise=0.5)
    found = recall(batch24_ranks(queries, gallery, torch.arange(60)), places)
    batches = [slice(0, 24), slice(24, 48)]
    expected = sum(published(100 * queries[b] @ gallery[b].mT, places) for b in batches) / 2
    assert found == pytest.approx(expected)
    assert 0 < found < 1


def test_batch24_recall_is_higher_than_that_of_the_whole_gallery():
    gallery, queries = points(240), points(240, noise=0.5)
    within_batches = recall(batch24_ranks(queries, gallery, torch.arange(240)), 1)
    whole = recall(target_ranks(queries, gallery, torch.arange(240)), 1)
    assert within_batches > whole + 0.2


def test_batch24_drops_the_tail_and_needs_one_batch():
    gallery = points(47)
    assert len(batch24_ranks(gallery, gallery, torch.arange(47))) == BATCH
    with pytest.raises(ValueError, match="at least 24 for the batch24 protocol, got 23"):
        batch24_ranks(gallery[:23], gallery, torch.arange(23))


def test_batch24_finds_its_targets_wherever_they_are_in_the_gallery():
    gallery = points(100)
    targets = torch.randperm(100)[:48]
    assert batch24_ranks(gallery[targets], gallery, targets).tolist() == [0] * 48


@pytest.mark.parametrize("block", [1, 7, 4096])
@pytest.mark.parametrize("combine", ["similarity", "softmax"])
def test_joint_ranks_are_those_of_the_full_matrix(combine, block):
    gallery, style, text = points(31), points(31, noise=0.6), points(31, noise=1.5, seed=0)
    targets = torch.randint(31, (31,))
    first, second = style.double() @ gallery.double().mT, text.double() @ gallery.double().mT
    if combine == "softmax":
        first, second = (100 * first).softmax(1), (100 * second).softmax(1)
    scores = torch.maximum(first, second)
    own = scores.gather(1, targets[:, None])
    expected = (scores > own).sum(1)
    assert torch.equal(joint_ranks(style, text, gallery, targets, combine=combine, block=block), expected)


def test_the_two_rules_differ_where_one_modality_is_far_from_the_gallery():
    """Texts are less similar to pictures than pictures are: only the softmax rule uses their ranking."""
    gallery = torch.eye(8)
    style = F.normalize(torch.full((8, 8), 1.0), dim=-1)  # equally similar to every item
    text = 0.3 * torch.eye(8)  # most similar to the relevant item, at a low score
    targets = torch.arange(8)
    assert joint_ranks(style, text, gallery, targets, combine="softmax").tolist() == [0] * 8
    assert joint_ranks(style, text, gallery, targets, combine="similarity").tolist() == [7] * 8


def test_batch24_joint_takes_its_softmax_over_the_batch():
    gallery, style, text = points(48), points(48, noise=0.6), points(48, noise=1.0)
    found = batch24_ranks(style, gallery, torch.arange(48), text=text, combine="softmax")
    for rows in (slice(0, 24), slice(24, 48)):
        part = joint_ranks(style[rows], text[rows], gallery[rows], torch.arange(24), combine="softmax")
        assert torch.equal(found[rows], part)


def test_joint_ranks_reject_an_unknown_rule_and_unequal_widths():
    with pytest.raises(ValueError, match="combine must be one of"):
        joint_ranks(torch.eye(2), torch.eye(2), torch.eye(2), torch.arange(2), combine="mean")
    with pytest.raises(ValueError, match="with one D"):
        joint_ranks(torch.eye(2), torch.ones(2, 3), torch.eye(2), torch.arange(2))


class Letters(Method):
    """A text encoder that counts letters."""

    name = "letters"

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        raise AssertionError("texts alone are encoded here")

    def encode_text(self, texts) -> Tensor:
        counts = [[text.count(chr(97 + i)) for i in range(26)] for text in texts]
        return F.normalize(torch.tensor(counts, dtype=torch.float32), dim=-1)


def test_a_class_is_the_normalised_mean_of_its_templates():
    names = ["ice_cream", "cat", "dog"]
    templates = ("a photo of a {}.", "{}, drawn")
    found = class_embeddings(Letters(), names, templates)
    expected = sum(Letters().encode_text([t.format(n.replace("_", " ")) for n in names]) for t in templates)
    assert torch.allclose(found, F.normalize(expected, dim=-1), atol=1e-6)
    images = Letters().encode_text(["dog", "cat", "dog"])
    order, labels = numbered(["dog", "cat", "dog"])
    assert order == ["cat", "dog"]
    assert recall(target_ranks(images, class_embeddings(Letters(), order, ("{}",)), labels), 1) == 1.0


def test_class_embeddings_reject_a_method_without_text_and_bad_templates():
    with pytest.raises(ValueError, match="method must take text"):
        class_embeddings(Pixels(), ["cat"])
    with pytest.raises(ValueError, match=r"one \{\} for the name"):
        class_embeddings(Letters(), ["cat"], ("a photo",))
    with pytest.raises(ValueError, match="names and templates must not be empty, got"):
        class_embeddings(Letters(), [])
