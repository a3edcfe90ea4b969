"""The label distributions of FGAN: the variational bottleneck, its decoder and divergence, and the teachers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hystar_fast.methods.fgan.fgan_losses import reconstruction_error, standard_normal_divergence
from hystar_fast.methods.fgan.labels import LabelHead
from hystar_fast.methods.fgan.teachers import (
    NetworkTeacher,
    PrototypeTeacher,
    class_word_labels,
    load_into,
    one_hot_labels,
    perplexity,
    random_labels,
)

WIDTH, LABELS = 16, 10


def head(**options):
    return LabelHead(WIDTH, LABELS, **options)


def test_labels_depend_on_the_mean_of_the_latent_alone_and_sum_to_one():
    made = head().train()
    regions = torch.randn(3, 5, WIDTH)
    first, second = made(regions), made(regions)
    assert first.log_labels.equal(second.log_labels)
    torch.testing.assert_close(first.log_labels.exp().sum(-1), torch.ones(3))
    torch.testing.assert_close(first.log_labels, made.to_labels(first.mean).log_softmax(-1))


def test_the_pooled_regions_are_the_mean_of_those_that_are_no_padding():
    made = head(pool_projection=False)
    regions, padding = torch.randn(2, 4, WIDTH), torch.tensor([[False] * 4, [False, False, True, True]])
    pooled = made(regions, padding).pooled
    torch.testing.assert_close(pooled, torch.stack([regions[0].mean(0), regions[1, :2].mean(0)]))
    projected = head()
    torch.testing.assert_close(projected(regions, padding).pooled, projected.project(pooled))


def test_the_decoder_gets_a_sample_of_the_latent():
    made = head()
    output = made(torch.randn(3, 5, WIDTH))
    noise = torch.randn(3, WIDTH)
    sample = output.mean + output.log_variance.exp().sqrt() * noise
    torch.testing.assert_close(made.reconstruct(output, noise), made.decoder(sample))
    assert not made.reconstruct(output, noise).equal(made.reconstruct(output, -noise))


def test_the_decoder_of_labels_gets_the_labels_and_no_noise():
    made = head(reconstruct="labels")
    output = made(torch.randn(3, 5, WIDTH))
    found = made.reconstruct(output, torch.randn(3, WIDTH))
    torch.testing.assert_close(found, made.decoder(output.log_labels.exp()))


def test_every_parameter_of_the_bottleneck_gets_a_gradient():
    made = head()
    output = made(torch.randn(3, 5, WIDTH))
    error = reconstruction_error(made.reconstruct(output, torch.randn(3, WIDTH)), output.pooled.detach())
    (error + standard_normal_divergence(output.mean, output.log_variance) + output.log_labels[:, 0].sum()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in made.parameters())


def test_the_linear_bottleneck_is_one_layer_without_a_decoder():
    made = head(bottleneck="linear", pool_projection=False)
    output = made(torch.randn(3, 5, WIDTH))
    torch.testing.assert_close(output.log_labels, made.to_labels(output.pooled).log_softmax(-1))
    assert output.mean is None and [name for name, _ in made.named_children()][1:] == ["to_labels"]
    with pytest.raises(TypeError, match='bottleneck must be "vae" to reconstruct, got "linear"'):
        made.reconstruct(output, torch.randn(3, WIDTH))


def test_without_noise_and_divergence_64_vectors_are_learnt():
    width = 32
    made = LabelHead(width, LABELS, pool_projection=False).double()
    # of fewer dimensions than the hidden layers, whose norm takes two
    vectors = torch.randn(64, 4, dtype=torch.float64) @ torch.randn(4, width, dtype=torch.float64) / 2
    optimizer = torch.optim.LBFGS(made.parameters(), max_iter=400, history_size=30, line_search_fn="strong_wolfe")

    def error():
        optimizer.zero_grad()
        output = made(vectors[:, None])
        found = reconstruction_error(made.reconstruct(output, torch.zeros(64, width)), output.pooled)
        found.backward()
        return found

    assert error().item() > 0.5
    optimizer.step(error)
    assert error().item() < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bottleneck": "ae"}, "bottleneck must be one of .*got 'ae'"),
        ({"reconstruct": "z"}, "reconstruct must be one of .*got 'z'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        head(**options)


def test_a_network_teaches_its_softmax_stays_frozen_and_in_evaluation_mode():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    teacher = NetworkTeacher(network).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    images = torch.randn(6, 3, 8, 8)
    found = [teacher(images) for _ in range(5)]
    torch.testing.assert_close(found[0], network(images).softmax(-1))
    torch.testing.assert_close(found[0][:2], teacher(images[:2]))
    assert not found[0].requires_grad and not any(p.requires_grad for p in teacher.parameters())
    assert all(value.equal(before[name]) for name, value in teacher.state_dict().items())


def test_prototypes_teach_their_cosines():
    prototypes, features = 3 * torch.randn(5, 8), torch.randn(4, 8)
    found = PrototypeTeacher(prototypes, scale=7.0)(features)
    cosines = [[F.cosine_similarity(f, c, dim=0) for c in prototypes] for f in features]
    torch.testing.assert_close(found, (7 * torch.tensor(cosines)).softmax(-1))
    with pytest.raises(ValueError, match=r"prototypes must be \[C, D\] with C of at least 2, got \[1, 8\]"):
        PrototypeTeacher(torch.randn(1, 8))
    with pytest.raises(ValueError, match="scale must be above 0, got 0"):
        PrototypeTeacher(prototypes, scale=0)


def test_the_labels_of_the_ablations():
    teacher = torch.randn(6, LABELS).softmax(-1)
    hard = one_hot_labels(teacher)
    assert hard.argmax(-1).equal(teacher.argmax(-1)) and hard.sum(-1).tolist() == [1] * 6
    first, again, other = (random_labels(6, LABELS, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.equal(again) and not first.equal(other)
    torch.testing.assert_close(first.sum(-1), torch.ones(6))
    words = torch.tensor([[3.0, 4.0], [0.6, 0.8]])
    torch.testing.assert_close(class_word_labels(words, 10.0), torch.tensor([[6.0, 8.0]]).softmax(-1).expand(2, 2))


def test_perplexity_counts_labels():
    assert perplexity(F.one_hot(torch.tensor([1, 2]), 5).float()) == 1
    assert perplexity(torch.full((3, 7), 1 / 7)) == pytest.approx(7, abs=1e-5)


def test_a_state_dict_is_loaded_by_its_part_and_a_wrong_one_is_named(tmp_path):
    network, other = nn.Linear(3, 2), nn.Linear(3, 2)
    file = tmp_path / "weights.pt"
    torch.save({f"fc.{name}": value for name, value in network.state_dict().items()}, file)
    load_into(other, str(file), None, "fc.")
    assert other.weight.equal(network.weight)
    torch.save({"weight": torch.full((2, 3), torch.nan), "bias": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match="finite weights, got NaN or inf in weight"):
        load_into(other, str(file), None)
    torch.save({"weight": torch.zeros(9, 9)}, file)
    with pytest.raises(ValueError, match=r"pretrained must be the name of torchvision weights or a state dict, got"):
        load_into(other, str(file), None)
