"""The choice of regions, their saliency and their embedding."""

from __future__ import annotations

import pytest
import torch

from hystar_fast.methods.fgan.regions import RegionHead, Saliency, hard_top_k, mean_of_regions

WIDTH, EMBEDDING = 16, 12


def padded(lengths, width=WIDTH, extra=0, seed=0):
    """Return random regions [B, N, width] of these lengths and their padding, which holds large numbers."""
    N = max(lengths) + extra
    regions = torch.full((len(lengths), N, width), 1e3)
    padding = torch.ones(len(lengths), N, dtype=torch.bool)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(seed + row)
        regions[row, :length] = torch.randn(length, width, generator=generator)
        padding[row, :length] = False
    return regions, padding


def head(**options):
    torch.manual_seed(1)
    return RegionHead(WIDTH, EMBEDDING, **options).eval()


def test_the_hard_choice_is_in_order_of_position_and_of_equal_scores_the_first():
    scores = torch.tensor([[0.1, 0.9, 0.4, 0.9, 0.9], [0.5, 0.5, 0.5, 0.5, 0.5]])
    rows = hard_top_k(scores, 2)
    assert rows.argmax(-1).tolist() == [[1, 3], [0, 1]] and rows.sum(-1).tolist() == [[1, 1], [1, 1]]
    assert hard_top_k(scores, 3).argmax(-1).tolist() == [[1, 3, 4], [0, 1, 2]]


def test_masked_regions_are_never_chosen_and_missing_rows_are_zero():
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.3, 0.4]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    rows = hard_top_k(scores, 2, mask)
    assert rows.tolist() == [[[0, 0, 1], [0, 0, 0]], [[0, 1, 0], [0, 0, 1]]]
    more = hard_top_k(scores, 5, mask)
    assert more.shape == (2, 5, 3) and more.sum((1, 2)).tolist() == [1, 3]
    assert more[1, :3].equal(torch.eye(3)) and more[1, 3:].abs().max() == 0
    assert hard_top_k(scores, 2, torch.ones(2, 3, dtype=torch.bool)).abs().max() == 0


def test_a_nan_in_one_item_does_not_touch_another():
    scores = torch.rand(3, 6)
    expected = hard_top_k(scores, 2)
    scores[1] = torch.nan
    assert hard_top_k(scores, 2)[[0, 2]].equal(expected[[0, 2]])


def test_saliency_is_between_0_and_1_and_equals_torch_attention_with_a_sigmoid():
    saliency = Saliency(WIDTH).eval()
    regions, padding = padded([5, 3])
    found = saliency(regions, padding)
    assert found.shape == (2, 5) and ((found > 0) & (found < 1)).all()
    alone = saliency.attention(regions[1:, :3], regions[1:, :3], regions[1:, :3])[0]
    torch.testing.assert_close(found[1, :3], saliency.score(alone)[0, :, 0].sigmoid(), rtol=0, atol=1e-6)


def test_concat_joins_the_chosen_regions_in_order_of_position():
    regions = torch.randn(2, 6, WIDTH)
    made = head(kept=3, normalise=False)
    found = made(regions)
    places = [sorted(row.argsort(descending=True)[:3].tolist()) for row in found.saliency]
    joined = torch.stack([regions[b, places[b]].flatten() for b in range(2)])
    torch.testing.assert_close(found.embedding, made.project(joined))


def test_mean_averages_the_chosen_regions():
    regions = torch.randn(2, 6, WIDTH)
    made = head(kept=3, aggregate="mean")
    found = made(regions)
    places = [row.argsort(descending=True)[:3] for row in found.saliency]
    mean = torch.stack([regions[b, places[b]].mean(0) for b in range(2)])
    torch.testing.assert_close(found.embedding, made.norm(made.project(mean)))


@pytest.mark.parametrize(("share", "counts"), [(0.3, [4, 1, 3]), (0.1, [1, 1, 1])])
def test_a_share_is_of_the_own_length_of_each_item_and_at_least_one(share, counts):
    regions, padding = padded([16, 3, 10])
    made = head(kept=share, aggregate="mean", normalise=False)
    found = made(regions, padding)
    for b, count in enumerate(counts):
        scores = found.saliency[b].masked_fill(padding[b], -1)
        mean = regions[b, scores.argsort(descending=True)[:count]].mean(0)
        torch.testing.assert_close(found.embedding[b], made.project(mean), rtol=1e-5, atol=1e-5)


def test_a_share_of_the_authors_images_is_four_of_49():
    assert head(kept=0.1, aggregate="mean")._counts(torch.zeros(2, 49, WIDTH), None) == [4, 4]


def test_an_item_shorter_than_k_has_zeros_with_concat_and_the_mean_of_all_with_mean():
    regions, padding = padded([2, 6])
    joined = head(kept=4, normalise=False)
    expected = joined.project(torch.cat([regions[0, :2].flatten(), torch.zeros(2 * WIDTH)]))
    torch.testing.assert_close(joined(regions, padding).embedding[0], expected)
    averaged = head(kept=4, aggregate="mean", normalise=False)
    torch.testing.assert_close(averaged(regions, padding).embedding[0], averaged.project(regions[0, :2].mean(0)))


@pytest.mark.parametrize(
    "options", [{}, {"aggregate": "mean", "kept": 0.4}, {"regions": "mean"}, {"regions": "random"}]
)
def test_padding_and_the_order_of_a_batch_do_not_change_an_embedding(options):
    lengths = [7, 2, 5]
    made = head(**options)
    regions, padding = padded(lengths)
    found = made(regions, padding).embedding
    longer = made(*padded(lengths, extra=9)).embedding
    turned = made(regions.flip(0), padding.flip(0)).embedding.flip(0)
    alone = torch.cat([made(regions[b : b + 1, :n]).embedding for b, n in enumerate(lengths)])
    for other in (longer, turned, alone):
        torch.testing.assert_close(other, found, rtol=0, atol=2e-6)


@pytest.mark.parametrize("aggregate", ["concat", "mean"])
def test_a_nan_in_the_padding_is_not_seen_by_the_chosen_regions(aggregate):
    regions, padding = padded([3, 5])
    made = head(aggregate=aggregate, kept=2, regions="random")
    expected = made(regions, padding).embedding
    regions[0, 4] = torch.nan
    torch.testing.assert_close(made(regions, padding).embedding, expected)
    assert mean_of_regions(regions, padding).isfinite().all()


def test_random_regions_differ_between_steps_and_not_between_evaluations():
    regions = torch.randn(2, 20, WIDTH)
    made = head(regions="random", kept=2)
    assert made(regions).embedding.equal(made(regions).embedding) and made(regions).saliency is None
    made.train()
    first, again, other = (made(regions, generator=torch.Generator().manual_seed(seed)).embedding for seed in (3, 3, 4))
    assert first.equal(again) and not first.equal(other)


def test_the_selector_gets_scores_in_float32_and_its_weights_carry_gradients_to_the_saliency():
    seen = []

    def select(scores, k, mask):
        seen.append((scores.dtype, k, mask))
        weights = scores.softmax(-1)
        return weights[:, None].expand(-1, k, -1)

    made = head(kept=2).train()
    regions, padding = padded([4, 3])
    made(regions, padding, select=select).embedding.square().sum().backward()
    assert made.saliency.score.weight.grad.abs().max() > 0
    made.bfloat16()(regions.bfloat16(), padding, select=select)
    assert [(kind, k) for kind, k, _ in seen] == [(torch.float32, 2)] * 2 and seen[0][2] is padding


def test_the_mean_of_all_regions_takes_no_choice():
    regions, padding = padded([4, 2])
    made = head(regions="mean")
    assert made.saliency is None and made.project.in_features == WIDTH
    expected = torch.stack([regions[0].mean(0), regions[1, :2].mean(0)])
    torch.testing.assert_close(made(regions, padding).embedding, made.norm(made.project(expected)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kept": 0.1}, ValueError, 'kept must be a whole number with aggregate="concat".*got 0.1'),
        ({"kept": 0}, ValueError, "kept must be at least 1 region, got 0"),
        ({"kept": 1.5, "aggregate": "mean"}, ValueError, "kept must be a share between 0 and 1 .*got 1.5"),
        ({"kept": "4"}, TypeError, "kept must be a number of regions .*got '4'"),
        ({"aggregate": "sum"}, ValueError, "aggregate must be one of .*got 'sum'"),
        ({"regions": "all"}, ValueError, "regions must be one of .*got 'all'"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        head(**options)


def test_wrong_arguments_of_the_choice_are_named():
    with pytest.raises(ValueError, match=r"k at least 1, got \[2, 3\] and 0"):
        hard_top_k(torch.rand(2, 3), 0)
    with pytest.raises(ValueError, match=r"mask must have the shape \[2, 3\] of scores, got \[3\]"):
        hard_top_k(torch.rand(2, 3), 1, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="width must be a multiple of 4 heads, got 10"):
        Saliency(10)
