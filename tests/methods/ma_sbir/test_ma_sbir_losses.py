"""Losses of MA-SBIR: closed forms, the formulas of the published code, gradients and symmetries."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hystar_fast.methods.ma_sbir.ma_sbir_config import PRESETS, MASBIRConfig
from hystar_fast.methods.ma_sbir.ma_sbir_losses import clip_loss, converted, orthogonality_loss
from hystar_fast.methods.ma_sbir.modality_vectors import ModalityVectors
from tests.support.ma_sbir_cases import Case, published, random_case

TERMS = ("loss", "clip", "sem", "mc", "rec", "ortho")


def close(a: Tensor, b: float | Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=tolerance, atol=tolerance)


def test_equal_embeddings_and_orthonormal_classes_have_closed_forms() -> None:
    B, tau = 6, 0.3
    labels, unit = torch.arange(B), torch.eye(B, dtype=torch.float64)
    same = unit[:1].expand(B, B)
    for duplicates in ("masked", "negatives"):
        close(clip_loss(same, same, labels, tau, duplicates), math.log(B))
        close(clip_loss(unit, unit, labels, tau, duplicates), math.log(1 + (B - 1) * math.exp(-1 / tau)))


def test_repeated_captions_bound_the_loss_unless_they_are_masked() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    z = torch.eye(3, dtype=torch.float64)[labels]
    counts = labels.bincount()[labels].double()
    close(clip_loss(z, z, labels, 1e-3, "negatives"), counts.log().mean())
    close(clip_loss(z, z, labels, 1e-3, "masked"), 0.0)
    one = torch.zeros(256, dtype=torch.int64)
    same = z[:1].expand(256, 3)
    close(clip_loss(same, same, one, 0.07, "negatives"), math.log(256))


def test_masked_pictures_are_classified_over_the_captions_of_the_batch() -> None:
    case = random_case(items=9)
    distinct, index = case.labels.unique(return_inverse=True)
    texts = torch.stack([case.texts[case.labels == label][0] for label in distinct])
    to_text = F.cross_entropy(case.pictures @ texts.T / 0.2, index)
    rows = []
    for i in range(9):
        kept = (case.labels != case.labels[i]) | (torch.arange(9) == i)
        scores = case.texts[i] @ case.pictures[kept].T / 0.2
        rows.append(scores.logsumexp(0) - case.texts[i] @ case.pictures[i] / 0.2)
    close(clip_loss(case.pictures, case.texts, case.labels, 0.2, "masked"), (to_text + torch.stack(rows).mean()) / 2)


def test_modalities_of_zero_and_a_classifier_of_zero_have_closed_forms() -> None:
    case = random_case(modality_init="zero", lambda_ortho=0.1)
    torch.nn.init.zeros_(case.modalities.vectors)
    torch.nn.init.zeros_(case.modalities.classifier.weight)
    torch.nn.init.zeros_(case.modalities.classifier.bias)
    found = case.losses()
    z, t = case.pictures, case.texts
    middle = F.normalize(z + t, dim=-1)
    close(found["sem"], (2 - 2 * (z * middle).sum(-1)).mean())
    close((z * middle).sum(-1), (t * middle).sum(-1))
    close(found["rec"], 2 * (1 - (z * t).sum(-1)).mean())
    close(found["ortho"], 0.0)
    close(found["mc"], math.log(3))


@pytest.mark.parametrize("seed", range(3))
def test_the_authors_preset_is_the_published_code(seed: int) -> None:
    weights = {"sem": 0.1, "mc": 0.2, "rec": 0.02, "ortho": 0.3}
    changes: dict[str, Any] = {f"lambda_{name}": value for name, value in weights.items()}
    case = random_case("authors", items=8, seed=seed, **changes)
    assert case.modalities.vectors.shape == (4, 6), "photo, sketch, one without pictures, text"
    ours, theirs = case.losses(math.exp(-2.6592)), published(case, weights)
    inputs = (case.pictures, case.texts, *case.modalities.parameters())
    for name in TERMS:
        close(ours[name], theirs[name], 1e-9)
    for a, b in zip(*(torch.autograd.grad(x["loss"], inputs) for x in (ours, theirs)), strict=True):
        close(a, b, 1e-9)
    assert case.modalities.vectors.grad is None and ours["loss"].requires_grad


def test_the_paper_preset_is_what_is_printed() -> None:
    case = random_case("paper", lambda_ortho=0.2)
    m, z, t, kinds = case.modalities.vectors, case.pictures, case.texts, case.kinds
    found = case.losses()
    as_text = F.normalize(z - m[kinds], dim=-1) + m[2]
    as_picture = F.normalize(t - m[2], dim=-1) + m[kinds]
    cosine = torch.cosine_similarity
    close(found["rec"], (2 - cosine(as_text, t) - cosine(as_picture, z)).mean())
    logits = [case.modalities.classifier(F.normalize(x, dim=-1)) for x in (as_text, as_picture)]
    text = torch.full_like(kinds, 2)
    close(found["mc"], (F.cross_entropy(logits[0], text) + F.cross_entropy(logits[1], kinds)) / 2)
    middle = F.normalize((z + t) / 2, dim=-1)
    close(found["ortho"], sum((middle @ m[j]).abs().mean() for j in range(3)) / 3)
    weights = {"sem": 0.1, "mc": 0.1, "rec": 0.02, "ortho": 0.2}
    close(found["loss"], found["clip"] + sum(weight * found[name] for name, weight in weights.items()))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", TERMS)
def test_gradients_are_those_of_finite_differences(preset: str, name: str) -> None:
    case = random_case(preset, items=4, width=3, lambda_ortho=0.2)
    state = dict(case.modalities.named_parameters())

    def term(pictures: Tensor, texts: Tensor, *values: Tensor) -> Tensor:
        arguments = (pictures, texts, case.labels, case.kinds, 0.5)
        return torch.func.functional_call(_Losses(case.modalities), _named(state, values), arguments)[name]

    inputs = (case.pictures, case.texts, *(value.detach().requires_grad_() for value in state.values()))
    assert torch.autograd.gradcheck(term, inputs)


class _Losses(torch.nn.Module):
    """Calls `losses` of modality vectors, for a functional call."""

    def __init__(self, modalities: ModalityVectors) -> None:
        super().__init__()
        self.modalities = modalities

    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        return self.modalities.losses(*arguments)


def _named(state: dict[str, Tensor], values: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {f"modalities.{name}": value for name, value in zip(state, values, strict=True)}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_order_of_a_batch_does_not_matter(preset: str) -> None:
    case = random_case(preset, lambda_ortho=0.1)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    parts = (case.pictures[order], case.texts[order], case.labels[order], case.kinds[order])
    turned = Case(*parts, case.modalities)
    for name, value in turned.losses().items():
        close(value, case.losses()[name])


def test_elementwise_orthogonality_is_never_less() -> None:
    for seed in range(20):
        case = random_case(seed=seed)
        arguments = case.pictures, case.texts, case.modalities.vectors
        assert orthogonality_loss(*arguments, "elementwise") >= orthogonality_loss(*arguments, "dot")


def test_losses_of_weight_zero_reach_nothing_that_is_trained() -> None:
    off = dict.fromkeys(("lambda_sem", "lambda_mc", "lambda_rec", "lambda_ortho"), 0.0)
    case = random_case(**off)
    found = case.losses()
    found["loss"].backward()
    assert torch.equal(found["loss"], found["clip"]) and all(p.grad is None for p in case.modalities.parameters())
    assert not case.modalities.own.trains_modalities and found["sem"] > 0


def test_converting_and_back_returns_and_the_own_modality_is_the_identity() -> None:
    case = random_case()
    m, z = case.modalities.vectors, case.pictures
    close(converted(z, m[0], m[0]), z)
    close(converted(converted(z, m[0], m[1]), m[1], m[0]), z)
    assert (converted(z, m[0], m[0], "normalised") - z).abs().max() > 0.1


def test_vectors_start_at_the_means_zero_or_normal_numbers() -> None:
    torch.manual_seed(0)
    mean = ModalityVectors(MASBIRConfig(unused_modalities=1), 2, 512)
    pictures, text = torch.rand(2, 512), torch.rand(512)
    assert not mean.vectors.any()
    mean.start(pictures, text)
    expected = torch.stack([*pictures, (pictures.sum(0) + text) / 3, text])
    torch.testing.assert_close(mean.vectors.detach(), expected)
    normal = ModalityVectors(MASBIRConfig(modality_init="normal"), 2, 512)
    assert normal.vectors.norm(dim=-1).mean().item() == pytest.approx(22.6, abs=1)
    counts = {p.numel() for p in normal.parameters()}
    assert counts == {1536, 3} and sum(p.numel() for p in normal.classifier.parameters()) == 1539
    authors = ModalityVectors(MASBIRConfig.preset("authors"), 2, 512)
    assert [p.numel() for p in (authors.vectors, *authors.classifier.parameters())] == [2048, 2048, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ortho": "dots"}, "ma_sbir.ortho must be one of 'dot', 'elementwise', got 'dots'"),
        ({"temperature": 0.0}, "ma_sbir.temperature must be finite and above 0, got 0.0"),
        ({"lambda_mc": -1.0}, "ma_sbir.lambda_mc must be finite and at least 0, got -1.0"),
        ({"unused_modalities": -1}, "ma_sbir.unused_modalities must be a whole number of at least 0, got -1"),
        ({"template": "a photo"}, "ma_sbir.template must have {} once, got 'a photo'"),
        ({"lambda_ment": 1.0}, "settings must be those of MA-SBIR, got 'lambda_ment'"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as found:
        MASBIRConfig.from_dict(change)
    assert message in str(found.value)
    for wrong in ({"freeze_text": 1}, {"lambda_rec": "a"}):
        with pytest.raises(TypeError, match=r"ma_sbir\.(freeze_text|lambda_rec) must be"):
            MASBIRConfig.from_dict(wrong)
    with pytest.raises(ValueError, match="name must be one of package, authors, paper, fine, got 'code'"):
        MASBIRConfig.preset("code")
