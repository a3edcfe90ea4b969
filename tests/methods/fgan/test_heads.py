"""Heads of FGAN: the parameters of the presets, padding, gradients, and every term of the loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hystar_fast.methods.fgan.encoders import Tokens
from hystar_fast.methods.fgan.fgan_config import FGANConfig
from hystar_fast.methods.fgan.fgan_losses import (
    alignment,
    cosine_distances,
    fine_grained_contrast,
    reconstruction_error,
    standard_normal_divergence,
)
from hystar_fast.methods.fgan.heads import Branch, FGANHeads
from hystar_fast.methods.fgan.label_similarity import LabelSimilarity
from hystar_fast.methods.fgan.regions import hard_top_k
from hystar_fast.train.settings import read_settings

SMALL = {"width": 16, "embedding": 12, "labels": 7, "image_regions_kept": 2, "text_regions_kept": 2}
M, WORDS = 6, [5, 2, 1, 4, 3, 5]


def soft(scores, k, mask):
    """Stand in for the perturbed top-K: the hard rows, with a gradient of the scores."""
    shift = scores if mask is None else scores.masked_fill(mask, 0)
    return hard_top_k(scores, k, mask) + (shift - shift.detach())[:, None]


def images(width=16, seed=1):
    return Tokens(torch.randn(M, 9, width, generator=torch.Generator().manual_seed(seed)))


def words(extra=0, order=None, filler=0.0, width=10):
    lengths = WORDS if order is None else [WORDS[i] for i in order]
    values = torch.full((M, max(WORDS) + extra, width), filler)
    padding = torch.ones(values.shape[:2], dtype=torch.bool)
    for row, place in enumerate(order or range(M)):
        values[row, : lengths[row]] = torch.randn(
            lengths[row], width, generator=torch.Generator().manual_seed(100 + place)
        )
        padding[row, : lengths[row]] = False
    return Tokens(values, padding)


def heads(**options):
    torch.manual_seed(2)
    classes = 4 if options.get("contrast") == "classify" else None
    return FGANHeads(FGANConfig(**{**SMALL, **options}), 16, 10, "words", classes=classes)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def built(config, image_width=512, other_width=300, other="words"):
    with torch.device("meta"):
        return FGANHeads(config, image_width, other_width, other)


def test_the_shipped_settings_have_as_many_parameters_as_published():
    authors, paper = built(read_settings("fgan-authors").own), built(FGANConfig())
    assert count(authors) == 7_932_370
    assert count(paper) == 9_505_234  # the 9.5 M of Table 5, for VGG-19 and for ResNet-18, both with 512 channels
    assert count(built(FGANConfig(pool_projection=False))) == 8_979_922


def test_the_parts_have_as_many_parameters_as_specified():
    made = built(FGANConfig())
    assert count(made.other.context.gru) == 857_088
    assert count(made.image.region_head.saliency.attention) == 1_050_624
    assert count(made.image.region_head) == 2_101_249
    assert count(built(FGANConfig(aggregate="mean")).image.region_head) == 1_314_817
    labels = made.image.label_head
    assert count(labels.encoder) + count(labels.decoder) == 1_315_328
    assert count(labels.to_labels) == 513_000


def test_other_widths_get_a_linear_layer_and_pictures_on_both_sides_heads_of_their_own():
    vit = built(FGANConfig(), 768, 768, "tokens")
    text_part = count(built(FGANConfig()).other.context)
    assert count(vit) == 9_505_234 - text_part + 2 * (768 * 512 + 512)
    sketches = built(FGANConfig(), 512, 512, "pictures")
    assert count(sketches) == 2 * count(sketches.image) and sketches.other.context is None
    assert count(built(FGANConfig(text_context="none")).other.context) == 300 * 512 + 512 + 1024
    with pytest.raises(ValueError, match=r"side must be one of .*got 'text'"):
        Branch(FGANConfig(), 512, "text")


@pytest.mark.parametrize("context", ["gru", "none"])
def test_padding_to_any_length_and_the_order_of_a_batch_do_not_change_a_text(context):
    made = heads(text_context=context).eval()
    with torch.no_grad():
        plain = made.other(words()).descriptors
        longer = made.other(words(extra=7, filler=50.0)).descriptors
        order = [3, 0, 5, 1, 4, 2]
        turned = made.other(words(order=order)).descriptors
    torch.testing.assert_close(longer, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(turned, plain[order], rtol=0, atol=1e-6)


def test_a_leading_token_counts_in_the_labels_and_is_no_region():
    made = heads().eval()
    tokens = images()
    with torch.no_grad():
        plain, led = made.image(tokens), made.image(tokens._replace(leading=1))
        rest = made.image(Tokens(tokens.values[:, 1:]))
    assert led.saliency.shape == (M, 8)
    torch.testing.assert_close(led.embedding, rest.embedding)
    torch.testing.assert_close(led.labels.log_labels, plain.labels.log_labels)


def test_descriptors_are_a_unit_embedding_and_log_probabilities():
    found = heads().eval().image(images()).descriptors
    assert found.shape == (M, 12 + 7)
    torch.testing.assert_close(found[:, :12].norm(dim=1), torch.ones(M))
    torch.testing.assert_close(found[:, 12:].exp().sum(1), torch.ones(M))
    prepared = LabelSimilarity(12).prepare(found)
    torch.testing.assert_close(LabelSimilarity(12).scores(prepared, prepared).diagonal(), torch.ones(M))


def test_the_loss_is_made_of_its_terms():
    made = heads(kl_weight=0.01, align=0.25, alpha=0.2, region_weight=0.7, label_weight=0.5).eval()
    classes, teacher = torch.tensor([0, 0, 1, 1, 2, 3]), torch.randn(M, 7).softmax(-1)
    tokens = images(), words()
    found = made.losses(*tokens, classes, teacher, select=hard_top_k, generator=torch.Generator().manual_seed(5))
    image, other = made.image(tokens[0]), made.other(tokens[1])
    contrast = fine_grained_contrast(cosine_distances(image.embedding, other.embedding), classes)
    generator = torch.Generator().manual_seed(5)
    errors, divergences = [], []
    for branch, output in ((made.image, image), (made.other, other)):
        noise = torch.randn(M, 16, generator=generator)
        errors.append(reconstruction_error(branch.label_head.reconstruct(output.labels, noise), output.labels.pooled))
        divergences.append(standard_normal_divergence(output.labels.mean, output.labels.log_variance))
    align = alignment(teacher, image.labels.log_labels, other.labels.log_labels, factor=1.0)
    expected = {
        "negative": contrast.negative,
        "semi_positive": contrast.semi_positive,
        "align": align,
        "reconstruction": sum(errors),
        "divergence": sum(divergences),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")
    regions = contrast.negative + 0.2 * contrast.semi_positive
    labels = sum(errors) + 0.01 * sum(divergences) + 0.25 * align
    torch.testing.assert_close(found["loss"], 0.7 * regions + 0.5 * labels)
    regions = image.saliency.std(1, correction=0).mean()
    torch.testing.assert_close(found["image_saliency_spread"], regions)
    hidden = tokens[1].padding[:, tokens[1].leading :]
    each = [row[~mask].std(correction=0) for row, mask in zip(other.saliency, hidden, strict=True)]
    torch.testing.assert_close(found["other_saliency_spread"], torch.stack(each).mean())
    assert set(found) == {*expected, "loss", "image_saliency_spread", "other_saliency_spread"}


OPTIONS = {
    "authors": {"aggregate": "mean", "image_regions_kept": 0.3, "text_regions_kept": 0.3},
    "no contrast": {"region_weight": 0.0},
    "no labels": {"label_weight": 0.0},
    "mean of regions": {"regions": "mean"},
    "random regions": {"regions": "random"},
    "linear": {"bottleneck": "linear"},
    "no semi-positives": {"alpha": 0.0},
    "all triplets": {"triplets": "all"},
    "pairwise": {"contrast": "pairwise"},
    "classify": {"contrast": "classify"},
    "labels decoded": {"reconstruct": "labels"},
    "norm": {"reconstruction": "l2"},
    "live": {"reconstruction_target": "live"},
    "images as anchors": {"anchors": "image"},
    "no norm": {"region_norm": False, "pool_projection": False},
    "no context": {"text_context": "none"},
}
WITHOUT_GRADIENT = {
    "no contrast": ("region_head",),
    "no labels": ("label_head",),
    "labels decoded": ("label_head.encoder.3",),  # of it the half for the variance, which only the divergence trains
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains_all_that_it_uses(name):
    made = heads(kl_weight=0.1, **OPTIONS[name]).train()
    classes, teacher = torch.tensor([0, 0, 1, 1, 2, 3]), torch.randn(M, 7).softmax(-1)
    found = made.losses(images(), words(), classes, teacher if made.config.label_weight else None, select=soft)
    assert all(value.isfinite() and value.ndim == 0 for value in found.values())
    found["loss"].backward()
    unused = WITHOUT_GRADIENT.get(name, ()) if name != "labels decoded" else ()
    for key, parameter in made.named_parameters():
        is_used = not any(part in key for part in unused)
        # adding one number to every key changes no softmax, so the bias of the keys has no gradient but rounding
        assert (parameter.grad is not None and parameter.grad.abs().max() > 0) == is_used, key


def test_the_noise_comes_from_the_generator_and_dropout_from_torch():
    made = heads().eval()
    classes, teacher = torch.arange(M), torch.randn(M, 7).softmax(-1)

    def loss(seed):
        generator = torch.Generator().manual_seed(seed)
        return made.losses(images(), words(), classes, teacher, select=hard_top_k, generator=generator)["loss"]

    assert loss(1).equal(loss(1)) and not loss(1).equal(loss(2))


def test_labels_are_not_learnt_without_a_teacher_and_classes_must_be_known_to_classify():
    with pytest.raises(ValueError, match=r"teacher must be given with label_weight 1\.0, got None"):
        heads().losses(images(), words(), torch.arange(M), None, select=soft)
    with pytest.raises(ValueError, match=r'classes must be at least 2 with contrast="classify", got None'):
        FGANHeads(FGANConfig(**SMALL, contrast="classify"), 16, 10, "words")


def test_a_batch_of_one_class_and_a_batch_without_semi_positives_train():
    made = heads().train()
    teacher = torch.randn(M, 7).softmax(-1)
    for classes in (torch.zeros(M, dtype=torch.long), torch.arange(M)):
        made.zero_grad()
        found = made.losses(images(), words(), classes, teacher, select=soft)
        found["loss"].backward()
        assert all(parameter.grad.isfinite().all() for parameter in made.parameters())
    assert isinstance(made.other.context.gru, nn.GRU) and found["semi_positive"] == 0
